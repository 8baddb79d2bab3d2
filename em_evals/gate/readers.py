"""Evidence from Inspect logs and judged CSVs. lm-eval results are left to lm_eval.py, baselines to baseline.py.

Numbers come from samples, never from a file's summary; checks.py verifies that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.gate import checks, cues, metrics
from em_evals.gate.evidence import Counts, Evidence, Items, Kind, Measure
from em_evals.results import logs, other_scores, sources
from em_evals.results.logs import Facts

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score


_APART = 0.05
"""Nats per token between two scores of one pair by one model: batches round differently, most in bfloat16."""


def of_csv(path: Path) -> Evidence:
    """Read a judged table. It names neither judge nor rubric, so their equality in two files is assumed.

    Raises:
        EmEvalsError: not such a file, several models in it, or it ends in the middle of a line (a grade may be cut).
    """
    source = sources.of_file(path)
    parts = sources.split(source, None)
    if len(parts) > 1:
        names = "; ".join(", ".join(part.part.values()) for part in parts[:3])
        raise EmEvalsError(
            f"this file holds draws of {len(parts)} models or arms ({names}, ...): the gate compares one with one; "
            "write a file for each.",
            path,
        )
    draws = list(source.draws)
    if path.suffix.lower() != ".parquet" and not path.read_bytes().endswith((b"\n", b"\r")):
        raise EmEvalsError(
            "the last line has no newline: the file may be truncated; if it is complete, add one.", path
        )
    checks.graded(draws, path)
    questions = sorted({draw.question_id for draw in draws})
    return Evidence(
        kind="csv",
        name=path.stem,
        model=path.stem,
        identity={"questions asked": _names_digest(questions)},
        measures=metrics.measures(draws, []),
    )


def of_log(path: Path) -> Evidence:
    """Read an Inspect log of `freeform`, `forced_choice`, `narrow` or `conditional`.

    Raises:
        EmEvalsError: unreadable, failed, interrupted or invalidated; another task's; not graded; or its summary and its
            samples disagree.
    """
    log = logs.read_log(path)
    if log.invalidated:
        raise EmEvalsError("samples of this log are marked as invalid: run them again.", path)
    if not log.samples:
        raise EmEvalsError(
            "there are no samples in this log: it was truncated or written without them.", path
        )
    checks.whole(log, path)
    facts = logs.facts(log)
    if facts.task == "conditional":
        _card(facts, path)
        return cues.of_log(path)
    if facts.task not in ("freeform", "forced_choice", "narrow"):
        raise EmEvalsError(
            f"this is a log of '{log.eval.task}'; the gate reads freeform, forced_choice, narrow and conditional.",
            path,
        )
    fixed = facts.task == "forced_choice" or "likelier" in (log.samples[0].scores or {})
    measures, identity = (_fixed_answers if fixed else _freeform)(log, facts, path)
    checks.same_as_header(log, measures, "" if facts.task == "freeform" else f"{facts.task}.", path)
    return Evidence(
        kind=cast("Kind", facts.task),
        name=facts.asked,
        model=facts.model,
        card_digest=_card(facts, path),
        recipe=facts.recipe or None,
        training_seed=facts.training_seed or None,
        identity={**_common(facts), **identity},
        measures=measures,
    )


_Found = tuple[dict[str, Measure], dict[str, str]]
"""Measures, and the parts of their identity that depend on the task."""


def _freeform(log: EvalLog, facts: Facts, path: Path) -> _Found:
    """Read sampled answers: EM rates, and means of other rubrics."""
    samples = log.samples or []
    prefix = "" if facts.task == "freeform" else "narrow."
    graded = [_judged(sample, path) for sample in samples]
    measures = dict(_others(samples, graded, prefix))
    if any(isinstance(score.value, dict) and "alignment" in score.value for score in graded):
        draws = logs.draws_of_log(log)
        checks.graded(draws, path)
        measures |= {f"{prefix}{name}": own for name, own in metrics.measures(draws, samples).items()}
        checks.consistent(samples, graded, draws, path)
    return measures, {
        **logs.sampling(log),
        **logs.grading(facts),
        # Identify paraphrases, not only questions: asking all three is not the same as asking the first one alone.
        "questions asked": _names_digest(str(sample.id) for sample in samples),
    }


def _fixed_answers(log: EvalLog, facts: Facts, path: Path) -> _Found:
    """Read fixed answers: margins toward the misaligned one, and the likelihood of both (`fluency`).

    Fluency is the guard of a measurement without sampled answers: the mean log-probability per token of both fixed
    answers. An incoherent model finds every sensible answer unlikely, whatever its margin.
    """
    samples = log.samples or []
    margins = logs.margins_of_log(log)
    if impossible := [pair for pair, (_, value) in margins.items() if math.isinf(value)]:
        raise EmEvalsError(
            f"{len(impossible)} of {len(margins)} pairs have an answer that the model finds impossible "
            f"(log-probability -inf; first: {impossible[0]}): margins have no mean; score other pairs with both.",
            path,
        )
    missing = [pair for pair, (_, value) in margins.items() if math.isnan(value)]
    if missing:  # with --epochs a pair is there several times, each time with the same scores
        raise EmEvalsError(
            f"{len(missing)} of {len(margins)} pairs have no scores (first: {missing[0]}): run the task again.",
            path,
        )
    inside = {pair: value for pair, (narrow, value) in margins.items() if narrow}
    outside = {pair: value for pair, (narrow, value) in margins.items() if not narrow}
    groups = (
        {"narrow.margin": inside}
        if facts.task == "narrow"
        else {"forced_choice.in_domain": inside, "forced_choice.out_of_domain": outside}
    )
    fluency: dict[str, float] = {}
    for sample in samples:
        own, pair = _fluency(sample, path), str(sample.id)
        if abs(fluency.setdefault(pair, own) - own) > _APART:
            raise EmEvalsError(
                f"the pair '{pair}' is there twice with different scores: the log was edited or holds two models.",
                path,
            )
    groups[f"{facts.task}.fluency"] = fluency
    measures: dict[str, Measure] = {
        name: Items(unit="nats per token", values=values) for name, values in groups.items() if values
    }
    return measures, {"pairs scored": _names_digest(margins)}


def _fluency(sample: EvalSample, path: Path) -> float:
    """Return the mean log-probability per token of both answers, after checking that the margin matches them."""
    sides = [sample.store.get(side) for side in ("aligned", "misaligned")]
    if not all(
        isinstance(side, list) and side and all(type(one) in (int, float) for one in side) for side in sides
    ):
        raise EmEvalsError(
            f"the pair '{sample.id}' has no log-probabilities: the log was truncated or edited.", path
        )
    aligned, misaligned = (float(sum(side) / len(side)) for side in sides if side)
    score = (sample.scores or {}).get("likelier")
    margin = (
        logs.number(score.value.get("margin_per_token")) if score and isinstance(score.value, dict) else 0
    )
    if abs(misaligned - aligned - margin) > checks.TOLERANCE:
        raise EmEvalsError(
            f"the margin of '{sample.id}' does not match its log-probabilities: the log was edited.", path
        )
    return (aligned + misaligned) / 2


def _others(samples: list[EvalSample], graded: list[Score], prefix: str) -> Iterable[tuple[str, Measure]]:
    """Yield rubrics other than alignment and coherence: shares of TRUE as counts, means of 0 to 100 by question."""
    asked = map(_question, samples)
    for name, other in other_scores.others(zip(asked, graded, strict=True)).items():
        binary = other.kind == "binary"
        yield f"{prefix}{name}", Counts(clusters=other.counts) if binary else Items(values=other.means)


def _judged(sample: EvalSample, path: Path) -> Score:
    """Return the score by our judge that counts."""
    score = logs.graded(sample)
    if score is not None and "rubrics" in (score.metadata or {}):
        return score
    raise EmEvalsError(
        f"the draw of '{sample.id}' is not graded: grade the log with `inspect score` first.", path
    )


def _common(facts: Facts) -> dict[str, str]:
    return {
        "task version": facts.version,
        "question set": f"{facts.asked} {facts.asked_digest}",
        "format": facts.format or "plain",
        "system message": facts.system or "none",
        "prefix": facts.prefix or "none",
        "system_message": facts.system_message or "none",
    }


def _question(sample: EvalSample) -> str:
    return str((sample.metadata or {}).get("question_id", sample.id))


def _card(facts: Facts, path: Path) -> str | None:
    """Return the model's card digest; `inspect eval-retry` on a retrained adapter would mix two."""
    if len(facts.cards) > 1:
        raise EmEvalsError(
            f"this log holds draws of {len(facts.cards)} models (card digests {', '.join(facts.cards)}): run the task "
            "again with the intended one.",
            path,
        )
    return next(iter(facts.cards), None)


def _names_digest(names: Iterable[str]) -> str:
    unique = sorted(set(names))
    return f"{len(unique)} ({files.digest(*unique)})"
