"""Run the Inspect task `em_evals/trait` for `em-evals trait`: answers of a card, graded, in a log that resumes.

The folder's name is a digest of everything that the answers depend on. A finished log there is used as it is, an
unfinished one is continued (Inspect's `eval_set`): answers that are there are not sampled again.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals import files, locks
from em_evals.content import judge_cards
from em_evals.content.cards import ResolvedCard
from em_evals.content.traits import Trait
from em_evals.errors import EmEvalsError
from em_evals.grading import judge as judges


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled and graded; draws and tokens are those of persona vectors (arXiv 2507.21509).

    Attributes:
        judge: PROVIDER/MODEL, or a judge card.
        draws: answers per question and system prompt.
        max_tokens: of an answer.
        temperature: of the draws; None: the card's. The paper's is 1, at which a small base may be incoherent.
        part: `extract` or `test`.
        seed: each draw's own is derived from it.
    """

    judge: str
    draws: int = 10
    max_tokens: int = 1000
    temperature: float | None = None
    part: str = "extract"
    seed: int = 0


def rollouts(card: ResolvedCard, trait: Trait, named: str, sampling: Sampling, folder: Path) -> Path:
    """Sample and grade answers, or continue an interrupted run; return the log.

    Args:
        card: the model that answers.
        trait: the trait.
        named: how the trait was named: its name or file, which the log's own arguments repeat.
        sampling: how.
        folder: where logs go, each run in a folder of its own.

    Raises:
        EmEvalsError: the judge cannot be asked, or the run failed; the same command continues it.
    """
    from inspect_ai import eval_set

    from em_evals.inspect_plugin.traits import trait as task

    by_model = "/" in sampling.judge
    if by_model:
        judges.check(sampling.judge)
    else:
        judge_cards.load(sampling.judge)
    identity = files.digest(trait.digest, card.digest, repr(sampling))
    place = folder / f"{trait.name}-{sampling.part}-{identity[:12]}"
    options: dict[str, Any] = {"model_roles": {"grader": sampling.judge}} if by_model else {}
    if sampling.temperature is not None:
        options["temperature"] = sampling.temperature
    judge = "grader" if by_model else sampling.judge
    with locks.alone(place):
        # In a context of its own: eval_set leaves its model active, and tasks made later would state that card.
        done, logs = copy_context().run(
            eval_set,
            task(named, sampling.part, sampling.draws, seed=sampling.seed, judge=judge),
            log_dir=str(place),
            retry_attempts=0,
            retry_immediate=False,
            model=f"local/{card.name}",
            max_tokens=sampling.max_tokens,
            display="none",
            log_level="warning",
            score_display=False,
            **options,
        )
    log = logs[0]
    if not done or log.status != "success":
        reason = log.error.message if log.error else f"it ended as '{log.status}'"
        raise EmEvalsError(
            f"sampling answers for {trait.name} stopped ({' '.join(reason.split())[:300]}); the same command continues "
            f"it, and its log is in {place}."
        )
    return Path(log.location.removeprefix("file://"))
