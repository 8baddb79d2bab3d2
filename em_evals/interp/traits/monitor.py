"""Monitor a model by projections: of a log's prompts or answers, beside judged scores and null directions.

A correlation over all samples is nearly a tautology where conditions (system prompts) were written to show the trait:
what counts is the correlation within conditions (arXiv 2507.21509, section 3.3), beside directions that carry nothing
of the trait, each at its own best layer. The units are questions under a condition: their draws share a prompt, and
projections and scores are averaged over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.direction_summary import most_reliable
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models.chat import template_for
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT, project
from em_evals.results.logs import graded, read_log
from em_evals.results.records import Measured
from em_evals.results.records.traits import Correlation, TraitMonitor
from em_evals.stats import intervals

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

Floats = NDArray[np.floating]
PositionName = Literal["last_prompt", "answer_mean"]
_PLACES = {"last_prompt": LAST_PROMPT, "answer_mean": ANSWER_MEAN}
_LEAST = 8
"""Questions (under a condition) that a correlation needs."""


@dataclass(frozen=True)
class Sampled:
    """One sample of a log: its chat, its condition (the system message), its question, and its judged scores."""

    messages: list[dict[str, str]]
    condition: str
    question: str
    scores: dict[str, float]


def monitor(
    card: ResolvedCard,
    direction: Direction,
    logs: Sequence[Path],
    name: str,
    position: PositionName = "last_prompt",
    score: str | None = None,
    layer: int | None = None,
    draws: int = 99,
    seed: int = 0,
) -> tuple[TraitMonitor, list[tuple[Sampled, float]]]:
    """Project the samples of logs on a direction and correlate with a judged score.

    Args:
        card: the model that reads the samples; usually the one that wrote them.
        direction: the trait.
        logs: Inspect logs.
        name: the direction's name, for the record.
        position: the last prompt token, or the mean over the answer.
        score: a judged score (`alignment`, `coherence` or a rubric's metric); None: no correlation.
        layer: the decoder block of the projections and means; None: the direction's most reliable one. Correlations are
            reported at their largest layer, as those of the nulls are.
        draws: of each null.
        seed: of the draws.

    Returns:
        The record, and every sample with its projection at `layer`.

    Raises:
        EmEvalsError: no sample, no such score or layer, or a text that the model does not read.
    """
    samples = [sample for path in logs for sample in _samples(path)]
    if not samples:
        raise EmEvalsError("these logs hold no samples.", logs[0] if logs else None)
    _check_score(samples, score)
    if layer is None:
        layer = most_reliable(direction)
    if not 0 <= layer < direction.layers:
        raise EmEvalsError(f"there is no layer {layer}; this direction's are 0 to {direction.layers - 1}.")
    drawn, kinds = _drawn(direction, draws if score is not None else 0, seed)
    values = _projected(card, direction, samples, drawn, position)
    own = values[:, layer, 0]
    known = np.array([sample.scores.get(score or "", np.nan) for sample in samples])
    record = TraitMonitor(
        card=card.name,
        direction=name,
        position=position,
        score=score,
        layer=layer,
        correlations=_correlations(values, known, samples, kinds, seed) if score is not None else [],
        means=_means(own, samples),
        samples=len(samples),
        notes=[f"{int(np.isnan(known).sum())} samples have no grade."]
        if score is not None and np.isnan(known).any()
        else [],
        provenance={"direction_digest": direction.digest, "card_digest": card.digest, "seed": str(seed)},
    )
    return record, list(zip(samples, map(float, own), strict=True))


def _check_score(samples: Sequence[Sampled], score: str | None) -> None:
    """Refuse a score that no sample has."""
    if score is not None and not any(score in sample.scores for sample in samples):
        others = sorted({key for sample in samples for key in sample.scores})
        raise EmEvalsError(
            f"no sample has the score '{score}'; {'known: ' + ', '.join(others) if others else 'they were not judged'}."
        )


def _samples(path: Path) -> list[Sampled]:
    log = read_log(path)
    return [_sampled(sample) for sample in log.samples or []]


def _sampled(sample: EvalSample) -> Sampled:
    asked = sample.input if isinstance(sample.input, list) else None
    messages = (
        [{"role": message.role, "content": message.text} for message in asked]
        if asked is not None
        else [{"role": "user", "content": str(sample.input)}]
    )
    condition = next((one["content"] for one in messages if one["role"] == "system"), "")
    score = graded(sample)
    found = score.value if score is not None and isinstance(score.value, dict) else {}
    scores = {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
    question = str(sample.metadata.get("question_id") or sample.id)
    messages.append({"role": "assistant", "content": sample.output.completion})
    return Sampled(messages, condition, question, scores)


def _drawn(direction: Direction, draws: int, seed: int) -> tuple[Floats | None, dict[str, slice]]:
    chance = np.random.default_rng(seed)
    parts, kinds, first = [], {}, 1
    for kind in (nulls.RANDOM, nulls.COVARIANCE) if draws else ():
        found = nulls.of(direction, kind, draws, chance)
        if found is not None:
            parts.append(nulls.units(found))
            kinds[kind] = slice(first, first + draws)
            first += draws
    return (np.concatenate(parts) if parts else None), kinds


def _projected(
    card: ResolvedCard,
    direction: Direction,
    samples: Sequence[Sampled],
    drawn: Floats | None,
    position: PositionName,
) -> NDArray[np.float32]:
    """Return float32 [samples, layers, 1 + draws]."""
    along = directions.unit(direction)[None]
    if drawn is not None:
        along = np.concatenate([along, drawn])
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    texts = []
    for sample in samples:
        prompt = tuple(template.encode(sample.messages[:-1]))
        answer = tuple(template.answer(sample.messages[-1]["content"])) if position == "answer_mean" else ()
        if len(prompt) + len(answer) > reading.longest:
            raise EmEvalsError(
                f"a sample of question {sample.question} has {len(prompt) + len(answer)} tokens, and the model reads "
                f"{reading.longest}: leave its log out."
            )
        texts.append(Text(prompt, answer))
    with reading.read_as(card) as model:
        found = project(model, texts, along, range(direction.layers))
    return found[:, _PLACES[position]]


def correlation(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Return Pearson's r of [samples, …] with [samples]; NaN where either is constant."""
    a = np.asarray(one, dtype=float)
    a = a - a.mean(0)
    b = np.asarray(other, dtype=float)
    b = b - b.mean()
    norms = np.sqrt((a**2).sum(0) * (b @ b))
    return np.asarray(np.tensordot(b, a, axes=1) / np.where(norms > 1e-12, norms, np.nan))


def _correlations(
    values: Floats, known: Floats, samples: Sequence[Sampled], kinds: dict[str, slice], seed: int
) -> list[Correlation]:
    """Return the correlation over all samples and the mean within conditions, each with its nulls."""
    there = np.flatnonzero(~np.isnan(known) & ~np.isnan(values).any((1, 2)))
    cells: dict[tuple[str, str], list[int]] = {}
    for i in there:
        cells.setdefault((samples[i].condition, samples[i].question), []).append(int(i))
    if len(cells) < _LEAST:
        return [Correlation(condition="overall", r=None, n=len(cells))]
    projected = np.stack([values[own].mean(0) for own in cells.values()])
    scores = np.array([known[own].mean() for own in cells.values()])
    codes = np.unique([condition for condition, _ in cells], return_inverse=True)[1]
    found = [_correlation("overall", projected, scores, np.zeros(len(scores), int), kinds, seed)]
    if codes.max() > 0:
        found.append(_correlation("within conditions", projected, scores, codes, kinds, seed))
    return found


def _correlation(
    condition: str,
    values: Floats,
    scores: Floats,
    codes: NDArray[np.intp],
    kinds: dict[str, slice],
    seed: int,
) -> Correlation:
    own = np.abs(_within(values, scores, codes))
    chance = np.random.default_rng(seed)
    permuted = np.stack(
        [
            np.abs(_within(values[:, :, 0], _shuffled(scores, codes, chance), codes))
            for _ in range(nulls.DRAWS)
        ]
    )
    beside = {name: own[:, some].T for name, some in kinds.items()} | {nulls.PERMUTED: permuted}
    claim = nulls.claim(f"largest |r| over layers, {condition}", own[:, 0], beside)
    layer = claim.layer
    r = None if layer is None else float(_within(values, scores, codes)[layer, 0])
    return Correlation(condition=condition, r=r, n=len(scores), claim=claim)


def _within(values: Floats, scores: Floats, codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean of r over conditions, weighted by their samples; constant conditions are left out."""
    total, count = 0.0, 0.0
    for code in range(int(codes.max()) + 1):
        own = codes == code
        if own.sum() >= 3 and np.ptp(scores[own]) > 0:
            total = total + own.sum() * correlation(values[own], scores[own])
            count += own.sum()
    return np.asarray(total / count) if count else np.full(values.shape[1:], np.nan)


def _shuffled(scores: Floats, codes: NDArray[np.intp], chance: np.random.Generator) -> NDArray[np.float64]:
    """Return the scores permuted within each condition."""
    found = np.array(scores, dtype=float)
    for code in range(int(codes.max()) + 1):
        own = np.flatnonzero(codes == code)
        found[own] = found[chance.permutation(own)]
    return found


def _means(values: Floats, samples: Sequence[Sampled]) -> dict[str, Measured]:
    """Return the mean projection of each condition, with Student's interval over its questions' means."""
    groups: dict[str, dict[str, list[float]]] = {}
    for value, sample in zip(values, samples, strict=True):
        if value == value:
            groups.setdefault(sample.condition, {}).setdefault(sample.question, []).append(float(value))
    found = {}
    for condition, by_question in groups.items():
        means = [float(np.mean(own)) for own in by_question.values()]
        interval = intervals.mean(means)
        found[condition or "no system message"] = Measured(
            value=float(np.mean(means)), interval=interval, n=len(means)
        )
    return found
