"""`em-evals insight phase CARD`: misalignment over the steps of a training, with loss, gradients and B's rotation.

Every kept checkpoint is scored by forced choice through Inspect (its logs are kept, and a second call measures only
what is missing); graded freeform logs of `local/CARD@STEP` add the EM rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_evals.content import adapter_folders
from em_evals.content.cards import ModelCard, read_card, resolve
from em_evals.content.pairs import load_pairs
from em_evals.engines import pool
from em_evals.errors import EmEvalsError
from em_evals.interp.phase.rotation import rotations
from em_evals.interp.phase.transition import find
from em_evals.parsing import step_of
from em_evals.results import folders
from em_evals.results.em_rates import rates
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.journals import read_journal
from em_evals.results.logs import Facts, draws_of_log, facts, margins_of_log, read_log
from em_evals.results.records.phase import Phase, Point
from em_evals.results.trajectories import KEY
from em_evals.stats import paired

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

Margins = dict[str, tuple[bool, float]]
"""Each pair's (narrow, margin per token)."""

DOMAINS = {True: "in-domain", False: "out-of-domain"}


def phase(
    name: str,
    logs: Path,
    graded: Path | None = None,
    per_theme: int | None = None,
    reach: int = 5,
) -> Phase:
    """Measure a trained card's kept checkpoints and load its journal.

    Args:
        name: a card trained with `checkpoints:`.
        logs: where forced-choice logs are kept.
        graded: a folder with graded freeform logs.
        per_theme: use the first N pairs of each theme; None for all.
        reach: steps before and after a step for the local rotation of B.

    Raises:
        EmEvalsError: the card is not trained, kept no checkpoints, or its journal is missing.
    """
    card, path = read_card(name)
    found = adapter_folders.find(card.adapter, path)
    steps = sorted(adapter_folders.checkpoints(found))
    if found is None or not steps:
        raise EmEvalsError(
            f"{name} has no kept checkpoints; train it with `checkpoints: dense` in its recipe.", path
        )
    story = Path(found) / "training.jsonl"
    if not story.is_file():
        raise EmEvalsError(
            f"{name} has kept checkpoints and no journal of its training: put its file here, or train the card again.",
            story,
        )
    every = load_pairs()
    chosen = every.first(per_theme or len(every.pairs))
    margins = _margins(name, card, steps, logs, chosen, every.digest)
    curves = {domain: _shifts(margins, narrow) for narrow, domain in DOMAINS.items()}
    journal = [row for row in read_journal(story) if row["step"] > 0]
    return Phase(
        card=name,
        journal=[{key: value for key, value in row.items() if key not in ("b", KEY)} for row in journal],
        shifts={
            domain: [_point(step, list(curve[step].values())) for step in curve]
            for domain, curve in curves.items()
        },
        transitions={domain: find(curve, clock=_clock(journal, steps)) for domain, curve in curves.items()},
        rotations=rotations(journal, reach),
        em_rates=_em_rates(name, graded) if graded else [],
    )


def _margins(
    name: str, card: ModelCard, kept: list[int], logs: Path, chosen: list[str], digest: str
) -> dict[int, Margins]:
    """Return each pair's (narrow, margin per token) at each kept step; the base is step 0."""
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    wanted = {0: card.base} | {step: f"{name}@{step}" for step in kept}
    # The base is evaluated by its own name, so the card's pins for it are passed along.
    pinned = {key: value for key in ("revision", "trust_remote_code") if (value := getattr(card, key))}
    fields: dict[str, Any] = {"engine": card.engine.model_dump(exclude_defaults=True), **pinned}
    earlier = _logged(logs, digest, set(chosen))
    cards = {step: resolve(model, fields) for step, model in wanted.items()}
    found = {step: earlier[one.digest] for step, one in cards.items() if one.digest in earlier}
    missing: dict[str, list[int]] = {}
    for step in wanted:
        if step not in found:
            missing.setdefault(cards[step].card.base, []).append(step)
    for steps in missing.values():
        measured = inspect_eval(
            "em_evals/forced_choice",  # by name: Inspect then makes it for each model
            model=[get_model(f"local/{wanted[step]}", **fields) for step in steps],
            sample_id=chosen,
            log_dir=str(logs),
            max_tasks=4,
            log_level="warning",
        )
        for step, log in zip(steps, measured, strict=True):
            if log.status != "success":
                raise EmEvalsError(
                    f"forced choice at step {step} ended as '{log.status}'; see {log.location}."
                )
            found[step] = margins_of_log(log)
        if len(missing) > 1:  # checkpoints of a full fine-tune: they do not all fit in memory
            pool.close_engine(cards[steps[0]].card)
    # Earlier logs may hold more pairs; every step is a mean over the same ones.
    return {
        step: {pair: found[step][pair] for pair in sorted(chosen) if pair in found[step]} for step in wanted
    }


def _logged(folder: Path, pairs: str, chosen: set[str]) -> dict[str, Margins]:
    """Return margins of earlier logs on these pairs (a digest, and ids), by the digest of the measured model."""
    from inspect_ai.log import read_eval_log

    found = {}
    for path in folders.inside(folder):  # empty where the folder does not exist yet
        try:
            log = read_eval_log(str(path))
        except Exception:  # noqa: S112 - a log that a kill truncated is measured again
            continue
        told = facts(log)
        same = told.asked_digest == pairs and chosen <= {str(sample.id) for sample in log.samples or []}
        if log.status == "success" and len(told.cards) == 1 and same:
            found[told.cards[0]] = margins_of_log(log)
    return found


def _shifts(margins: Mapping[int, Margins], narrow: bool) -> dict[int, dict[str, float]]:
    """Return each pair's shift from the base, for the pairs of one domain that have a margin at every step."""
    measured = set.intersection(
        *({pair for pair, (_, value) in here.items() if math.isfinite(value)} for here in margins.values())
    )
    start = margins[0]
    return {
        step: {
            pair: value - start[pair][1]
            for pair, (own, value) in here.items()
            if own == narrow and pair in measured
        }
        for step, here in margins.items()
        if step > 0
    }


def _clock(journal: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> dict[int, float] | None:
    """Return the learning rate summed up to each step: a schedule bends a drift that is smooth in it.

    None where the journal lacks the rate of a step.
    """
    rates = {row["step"]: row.get("learning_rate") for row in journal}
    every = [rates.get(step) for step in range(1, max(steps) + 1)]
    if any(rate is None or not math.isfinite(rate) for rate in every):
        return None
    summed = np.cumsum([float(rate or 0) for rate in every])
    return {step: float(summed[step - 1]) for step in steps}


def _point(step: int, values: list[float]) -> Point:
    mean = sum(values) / len(values) if values else None
    return Point(step=step, value=mean, interval=paired.interval_of(values))


def _em_rates(name: str, folder: Path) -> list[Point]:
    """Return the EM rates of the graded freeform logs of this card's checkpoints.

    Other JSON (eval-set.json) and logs that `inspect eval-retry` finished in others are skipped; several logs of one
    step are pooled.

    Raises:
        EmEvalsError: there are none; or a log was not finished, is of an adapter that has been retrained since, or
            asks differently than the others, which one curve must not mix.
    """
    draws: dict[int, list[GradedDraw]] = {}
    asked: dict[str, Path] = {}
    for file in folders.walk([folder]):
        path = file.path
        if file.finished or path.suffix.lower() == ".csv" or folders.is_other_json(path):
            continue
        log = read_log(path)
        told = facts(log)
        model, _, step = log.eval.model.removeprefix("local/").rpartition("@")
        number = step_of(step)
        if model == name and number is not None and told.task == "freeform":
            _of_this_adapter(log, told, path)
            asked.setdefault(_way(told), path)
            draws.setdefault(number, []).extend(draws_of_log(log))
    if not draws:
        raise EmEvalsError(f"there are no freeform logs of local/{name}@STEP in this folder.", folder)
    if len(asked) > 1:
        one, other = [f"{path.name} ({way})" for way, path in asked.items()][:2]
        raise EmEvalsError(
            f"these logs ask in several ways: {one}, {other}; name a folder with those of one way.", folder
        )
    found = {step: rates(group).em_rate for step, group in sorted(draws.items())}
    return [Point(step=step, value=rate.value, interval=rate.fixed) for step, rate in found.items()]


def _of_this_adapter(log: EvalLog, told: Facts, path: Path) -> None:
    """Refuse a log of a model that has another digest now, or none; a log without a digest is accepted."""
    if not told.cards:
        return
    try:
        now = resolve(log.eval.model.removeprefix("local/"), log.eval.model_args).digest
    except EmEvalsError as error:
        why = str(error).rstrip(".")
        raise EmEvalsError(
            f"this log is of {log.eval.model}, which cannot be compared with what it is now ({why}): leave it out.",
            path,
        ) from error
    if told.cards != (now,):
        raise EmEvalsError(
            f"this log is of another {log.eval.model} than the current one (retrained, or with other settings): leave "
            "it out.",
            path,
        )


def _way(told: Facts) -> str:
    """Return what was asked and how, without the number of draws and their seeds."""
    ways = {key: getattr(told, key) for key in ("system", "prefix", "format", "system_message")}
    asked = {"questions": f"{told.asked} {told.asked_digest}", **ways}
    return ", ".join(f"{key} {value}" for key, value in asked.items() if value)
