"""A trait's direction from judged answers (persona vectors, arXiv 2507.21509, section 2).

Answers under positive and under negative system prompts are graded and filtered (results/rollouts.py). The direction at
block l is the mean over kept positive answers of the activation, averaged over the answer's tokens, minus that over
negative ones; each answer weighs the same. The same means over the prompt's tokens and at its last token give two more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.traits import Trait
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.contrast import Chat, Contrast, Side
from em_evals.interp.extraction.extract import MINIMUM, extract
from em_evals.interp.extraction.extract import Settings as Extraction
from em_evals.interp.extraction.prefix_tree import Position
from em_evals.results import rollouts
from em_evals.results.rollouts import Pool, Rollout, Rule

POSITIONS: tuple[Position, ...] = ("answer_mean", "prompt_mean", "last_prompt")
"""`answer_mean` comes first: the paper found it the strongest at equal norm (figure 11)."""


@dataclass(frozen=True)
class Settings:
    """How graded answers become directions.

    Attributes:
        rule: the filter, `paper` or `code`.
        minimum: kept answers that each side needs, on the questions that the direction is found on.
        split: find on half of the questions and test on the other; off: the paper's, on all.
        seed: of the null draws.
    """

    rule: Rule = "paper"
    minimum: int = MINIMUM
    split: bool = True
    seed: int = 0


def extract_judged(
    card: ResolvedCard,
    trait: Trait,
    logs: Sequence[Path],
    settings: Settings = Settings(),
    positions: Sequence[Position] = POSITIONS,
    state: Path | None = None,
) -> dict[Position, Direction]:
    """Compute a trait's directions from logs of `em_evals/trait`, one for each position.

    Their metadata hold, beside those of `extraction.extract`, `filter`: the rule and each side's counts.

    Args:
        card: the model that reads the answers; usually the one that gave them.
        trait: the trait.
        logs: graded logs.
        settings: how.
        positions: tokens to average over.
        state: a folder for sums of an interrupted extraction; the caller deletes it.

    Raises:
        EmEvalsError: a log does not fit, nothing was graded, or too few answers are left on a side.
    """
    answers, sources = rollouts.read(logs, trait)
    pools = rollouts.filtered(answers, settings.rule)
    _enough(trait, pools, settings)
    sides = [Side(_chats(pools[name].kept), card) for name in ("positive", "negative")]
    how = f"{trait.name}: judged answers under positive - negative system prompts"
    contrast = Contrast(sides[0], sides[1], how, sources)
    known: dict[str, Any] = {
        "trait": trait.name,
        "kind": trait.kind,
        "trait_digest": trait.digest,
        "filter": {"rule": settings.rule, **{name: dict(pool.counts) for name, pool in pools.items()}},
    }
    found = {}
    for position in positions:
        one = extract(
            card,
            contrast,
            Extraction(position, settings.split, settings.minimum, seed=settings.seed),
            state=state,
        )
        found[position] = replace(one, metadata=one.metadata | known)
    return found


def _enough(trait: Trait, pools: Mapping[str, Pool], settings: Settings) -> None:
    """Refuse a side of which less is left than the direction needs, with what became of the others.

    Raises:
        EmEvalsError: says how many were kept of how many.
    """
    for name, pool in pools.items():
        if len(pool.kept) < max(settings.minimum, 1):
            counts = pool.counts
            raise EmEvalsError(
                f"{len(pool.kept)} of {counts['answers']} {name} answers show what {trait.name} asks for "
                f"(filter `{settings.rule}`; {counts['graded']} graded, {counts['refusals']} refusals), and a "
                f"direction needs {settings.minimum}: draw more answers, or lower --minimum and read its reliability."
            )


def _chats(kept: Sequence[Rollout]) -> tuple[Chat, ...]:
    return tuple(
        Chat(one.question, [{"role": role, "content": text} for role, text in one.messages]) for one in kept
    )
