"""Monitor a model by projections: of a log's prompts or answers, beside judged scores and null directions.

A correlation over all samples is nearly a tautology where conditions (system prompts) were written to show the trait:
what counts is the correlation within conditions (arXiv 2507.21509, section 3.3), beside directions that carry nothing
of the trait, each at its own best layer. The units are questions under a condition: their draws share a prompt, and
projections and scores are averaged over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models.chat import template_for
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT, project
from em_evals.results.logs import graded, no_such_score, read_log
from em_evals.results.records.base import Measured
from em_evals.results.records.traits import Correlation, TraitMonitor
from em_evals.results.turns import Chat, as_chat, asked_and_answered, turns
from em_evals.stats import intervals

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

Floats = NDArray[np.floating]
PositionName = Literal["last_prompt", "answer_mean"]
PLACES = {"last_prompt": LAST_PROMPT, "answer_mean": ANSWER_MEAN}
WITHIN = "within conditions"
_LEAST = 8
"""Questions (under a condition) that a correlation needs."""


@dataclass(frozen=True)
class Sampled:
    """One sample of a log: its chat, its condition (the system message), its question, and its judged scores.

    `whole` is the conversation with all assistant turns, where there are several.
    """

    messages: list[dict[str, str]]
    condition: str
    question: str
    scores: dict[str, float]
    whole: Chat = field(default_factory=list)


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
        layer = chosen_layer(direction)
    directions.checked_layer(direction, layer)
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
        turns=_turns(card, direction, samples, layer, position),
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
        raise no_such_score(score, {key for sample in samples for key in sample.scores})


def _samples(path: Path) -> list[Sampled]:
    log = read_log(path)
    return [_sampled(sample) for sample in log.samples or []]


def _sampled(sample: EvalSample) -> Sampled:
    messages = asked_and_answered(sample)
    condition = next((one["content"] for one in messages if one["role"] == "system"), "")
    score = graded(sample)
    found = score.value if score is not None and isinstance(score.value, dict) else {}
    scores = {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
    question = str(sample.metadata.get("question_id") or sample.id)
    whole = as_chat(getattr(sample, "messages", None) or [])
    return Sampled(messages, condition, question, scores, whole if len(turns(whole)) > 1 else messages)


def _drawn(direction: Direction, draws: int, seed: int) -> tuple[Floats | None, dict[str, slice]]:
    chance = np.random.default_rng(seed)
    parts, kinds, first = [], {}, 1
    wanted = {nulls.RANDOM: draws, nulls.COVARIANCE: draws, nulls.COMPONENTS: nulls.COMPONENTS_SHOWN}
    for kind, count in wanted.items() if draws else ():
        found = nulls.of(direction, kind, count, chance)
        if found is not None:
            parts.append(nulls.units(found))
            kinds[kind] = slice(first, first + len(found))
            first += len(found)
    return (np.concatenate(parts) if parts else None), kinds


def _projected(
    card: ResolvedCard,
    direction: Direction,
    samples: Sequence[Sampled],
    drawn: Floats | None,
    position: PositionName,
) -> NDArray[np.float32]:
    """Return float32 [samples, layers, 1 + draws]."""
    along = direction_algebra.unit(direction)[None]
    if drawn is not None:
        along = np.concatenate([along, drawn])
    chats = [(sample.question, sample.messages) for sample in samples]
    return _read(card, chats, along, range(direction.layers), position)


def _read(
    card: ResolvedCard,
    chats: Sequence[tuple[str, Chat]],
    along: Floats,
    layers: Sequence[int],
    position: PositionName,
) -> NDArray[np.float32]:
    """Return float32 [chats, layers, directions] of (question, chat that ends with an answer)."""
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    texts = []
    for question, chat in chats:
        prompt = tuple(template.encode(chat[:-1]))
        answer = tuple(template.answer(chat[-1]["content"])) if position == "answer_mean" else ()
        if len(prompt) + len(answer) > reading.longest:
            raise EmEvalsError(
                f"a sample of question {question} has {len(prompt) + len(answer)} tokens, and the model reads "
                f"{reading.longest}: leave its log out."
            )
        texts.append(Text(prompt, answer))
    with reading.read_as(card) as model:
        return project(model, texts, along, layers)[:, PLACES[position]]


def _turns(
    card: ResolvedCard, direction: Direction, samples: Sequence[Sampled], layer: int, position: PositionName
) -> list[Measured]:
    """Return the mean projection at each assistant turn, over questions; empty where samples have one turn."""
    chats, numbers = [], []
    for sample in samples:
        for number, (place, _) in enumerate(turns(sample.whole)):
            chats.append((sample.question, sample.whole[: place + 1]))
            numbers.append(number)
    if not any(numbers):
        return []
    found = _read(card, chats, direction_algebra.unit(direction)[None, [layer]], [layer], position)[:, 0, 0]
    means = []
    for number in range(max(numbers) + 1):
        own = [i for i, turn in enumerate(numbers) if turn == number]
        means.append(_over_questions([(chats[i][0], float(found[i])) for i in own]))
    return means


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
    codes, asked = (np.unique(names, return_inverse=True)[1] for names in zip(*cells, strict=True))
    found = [_correlation("overall", projected, scores, codes, asked, kinds, seed)]
    if codes.max() > 0:
        found.append(_correlation(WITHIN, projected, scores, codes, asked, kinds, seed))
    return found


def _correlation(
    condition: str,
    values: Floats,
    scores: Floats,
    codes: NDArray[np.intp],
    asked: NDArray[np.intp],
    kinds: dict[str, slice],
    seed: int,
) -> Correlation:
    """Return one correlation over cells of condition (`codes`) and question (`asked`), with its nulls."""
    apart = codes if condition == WITHIN else np.zeros_like(codes)
    own = np.abs(_within(values, scores, apart))
    chance = np.random.default_rng(seed)
    drawn = [_shuffled(scores, codes, asked, chance) for _ in range(nulls.DRAWS)]
    permuted = np.stack([np.abs(_within(values[:, :, 0], one, apart)) for one in drawn])
    beside = {name: own[:, some].T for name, some in kinds.items()} | {nulls.PERMUTED: permuted}
    claim = nulls.claim(f"largest |r| over layers, {condition}", own[:, 0], beside)
    layer = claim.layer
    r = None if layer is None else float(_within(values, scores, apart)[layer, 0])
    return Correlation(condition=condition, r=r, n=len(scores), claim=claim)


def _within(values: Floats, scores: Floats, codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean of r over conditions, weighted by their samples; constant conditions are left out."""
    total, count = 0.0, 0.0
    for code in range(int(codes.max()) + 1):
        own = codes == code
        if own.sum() >= 3 and np.ptp(scores[own]) > 0:
            total = total + own.sum() * correlation(values[own], scores[own])
            count += own.sum()
    return np.round(total / count, 9) if count else np.full(values.shape[1:], np.nan)


def _shuffled(
    scores: Floats, codes: NDArray[np.intp], asked: NDArray[np.intp], chance: np.random.Generator
) -> NDArray[np.float64]:
    """Return scores whose conditions changed their means, and whose questions changed places in all conditions alike.

    Cells are not exchangeable: those of one condition share its system message, and those of one question its wording.
    """
    count = int(codes.max()) + 1
    means = np.array([scores[codes == code].mean() for code in range(count)])
    moved, order = means[chance.permutation(count)], chance.random(int(asked.max()) + 1)
    found = np.array(scores, dtype=float)
    for code in range(count):
        own = np.flatnonzero(codes == code)
        own = own[np.argsort(asked[own])]
        found[own] = scores[own[np.argsort(order[asked[own]])]] - means[code] + moved[code]
    return found


def _means(values: Floats, samples: Sequence[Sampled]) -> dict[str, Measured]:
    """Return the mean projection of each condition, with Student's interval over its questions' means."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for value, sample in zip(values, samples, strict=True):
        groups.setdefault(sample.condition or "no system message", []).append((sample.question, float(value)))
    found = {condition: _over_questions(own) for condition, own in groups.items()}
    return {condition: one for condition, one in found.items() if one.n}


def _over_questions(values: Sequence[tuple[str, float]]) -> Measured:
    """Return the mean over questions of (question, value), with Student's interval; draws of one are averaged."""
    by_question: dict[str, list[float]] = {}
    for question, value in values:
        if value == value:
            by_question.setdefault(question, []).append(value)
    means = [float(np.mean(own)) for own in by_question.values()]
    mean = float(np.mean(means)) if means else None
    return Measured(value=mean, interval=intervals.mean(means), n=len(means))
