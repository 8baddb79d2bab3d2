"""What a reader learns first: is it worse than the reference, by how much, how sure, and what does it say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from em_evals.report import damage
from em_evals.report.answers import Answer, Measured
from em_evals.report.tables import Estimate
from em_evals.results import em_rates
from em_evals.stats import paired
from em_evals.stats.rates import RateContrast

Word = Literal["worse", "not distinguishable", "better", "not interpretable"]

_ALPHA = 0.025
"""One-sided; intervals are then 95%."""
_SHOWN = 4
_EXAMPLES = 3
_CHARACTERS = 420


@dataclass(frozen=True)
class Headline:
    """One comparison with the reference: a word, the sentence with its numbers, and in it what a glance takes."""

    model: str
    word: Word
    sentence: str
    change: str = ""


@dataclass(frozen=True)
class Example:
    """An answer that is shown first; `cut` if it goes on."""

    model: str
    prompt: str
    text: str
    grades: str
    state: str
    cut: bool


@dataclass(frozen=True)
class FirstScreen:
    """The first screen.

    Attributes:
        headlines: comparisons, the largest harm first.
        more: number of comparisons that are left to the tables.
        lead: how the examples were selected; empty without answers.
        examples: answers.
    """

    headlines: tuple[Headline, ...]
    more: int
    lead: str
    examples: tuple[Example, ...]


def build(graded: Sequence[Measured], scored: Sequence[Measured], reference: str) -> FirstScreen:
    """Compare every model with the reference and select the examples.

    Args:
        graded: measurements with graded answers, the reference's first.
        scored: measurements with scored pairs, likewise.
        reference: the reference model's name.
    """
    found = [*_of_rates(graded, reference), *_of_margins(scored, reference)]
    found.sort(key=lambda one: -one[0])
    lines = tuple(line for _, line in found)
    lead, examples = _examples(graded, reference)
    return FirstScreen(lines[:_SHOWN], max(len(lines) - _SHOWN, 0), lead, examples)


def _of_rates(graded: Sequence[Measured], reference: str) -> list[tuple[float, Headline]]:
    """Compare EM rates of all draws, question by question, with the first measurement that is comparable."""
    lines = []
    for entry in graded:
        before = next((one for one in graded if one.model == reference and _alike(one, entry)), None)
        if before is None or entry.model == reference:
            continue
        rates = [em_rates.rates(one.draws) for one in (before, entry)]
        contrast = _contrast(before, entry)
        if not all(one.estimable for one in rates):
            unknown = "Too few of its draws, or of the reference's, are graded: there is no rate to compare."
            lines.append((0.0, Headline(entry.label, "not interpretable", unknown)))
            continue
        low, high = contrast.interval(_ALPHA)
        word, sentence = _word(low, high), _rates_in_words(before, entry, contrast, (low, high))
        if word != "worse" and (lost := damage.lost_coherence(*rates)):
            word, sentence = "not interpretable", f"{lost} {sentence}"
        change = str(Estimate.of(contrast.estimate, (low, high), "points"))
        lines.append((contrast.estimate, Headline(entry.label, word, sentence, change)))
    return lines


def _of_margins(scored: Sequence[Measured], reference: str) -> list[tuple[float, Headline]]:
    """Compare forced-choice margins out of domain, pair by pair; in domain where there is nothing else."""
    lines = []
    for entry in scored:
        before = next((one for one in scored if one.model == reference and _alike(one, entry)), None)
        if before is None or entry.model == reference:
            continue
        parts = {}
        for narrow, name in ((False, "out-of-domain"), (True, "in-domain")):
            ours, theirs = (
                {key: pair.margin for key, pair in one.pairs.items() if pair.narrow == narrow}
                for one in (entry, before)
            )
            change = paired.difference(theirs, ours, binary=False)
            if change.n:
                parts[name] = change
        if not parts:
            continue
        main = next(iter(parts.values()))
        said = ", ".join(
            f"{Estimate.of(one.value, one.interval, 'signed')} {name} ({one.n} pairs)"
            for name, one in parts.items()
        )
        sentence = (
            f"Forced choice moved by {said}, in nats per token toward the misaligned answers, against "
            f"{before.label}."
        )
        told = str(Estimate.of(main.value, main.interval, "signed"))
        lines.append((main.value, Headline(entry.label, _word(*main.interval), sentence, told)))
    return lines


def _alike(one: Measured, other: Measured) -> bool:
    shared = one.pairs.keys() & other.pairs.keys() if one.pairs else _questions(one) & _questions(other)
    same_way = one.task == other.task or "csv" in (one.task, other.task)
    return bool(shared) and same_way and damage.comparable(one, other)


def _questions(entry: Measured) -> set[str]:
    return {draw.question_id for draw in entry.draws}


def _contrast(before: Measured, after: Measured, base: bool = False) -> RateContrast:
    """Return the contrast of EM rates by question; `base`: formats of one question count as one question."""
    return RateContrast(*(em_rates.clusters(one.draws, "em_rate", base) for one in (before, after)))


def _rates_in_words(
    before: Measured, after: Measured, contrast: RateContrast, interval: tuple[float, float]
) -> str:
    change = Estimate.of(contrast.estimate, interval, "points")
    wide = _contrast(before, after, base=True).random_questions(_ALPHA)
    others = Estimate.of(contrast.estimate, wide, "points").interval_text
    after_rate, before_rate = (
        Estimate.of(level, unit="share") for level in (contrast.candidate, contrast.baseline)
    )
    shared = set(contrast.shared)
    counts = [sum(draw.question_id in shared for draw in one.draws) for one in (after, before)]
    asked = "" if shared == _questions(after) == _questions(before) else f" on {_count(len(shared))} in both"
    return (
        f"EM rate {after_rate} of all draws against {before_rate} of {before.label}{asked}: {change}"
        f"{f', and {others} for other questions like these' if others else ''} (95% intervals; "
        f"{counts[0]:,} and {counts[1]:,} draws)."
    )


def _count(questions: int) -> str:
    return "the one question" if questions == 1 else f"the {questions} questions"


def _word(low: float, high: float) -> Word:
    if low > 0:
        return "worse"
    return "better" if high < 0 else "not distinguishable"


def _examples(graded: Sequence[Measured], reference: str) -> tuple[str, tuple[Example, ...]]:
    """Select the least aligned coherent answers, one per question, of the model with the highest EM rate."""
    candidates = [entry for entry in graded if entry.model != reference] or list(graded)
    candidates = [entry for entry in candidates if any(answer.text for answer in entry.answers)]
    if not candidates:
        return "", ()
    entry = max(candidates, key=lambda one: em_rates.rates(one.draws).em_rate.value)
    coherent = sorted(
        (answer for answer in entry.answers if answer.draw.coherent and answer.text),
        key=lambda answer: answer.draw.alignment,
    )
    chosen: dict[str, Answer] = {}
    for answer in coherent:
        chosen.setdefault(answer.draw.question_id, answer)
    shown = tuple(_example(entry.label, answer) for answer in list(chosen.values())[:_EXAMPLES])
    if not shown:
        return "", ()
    events = sum(answer.state == "misaligned" for answer in chosen.values())
    what = "" if events else " None of them counts as misaligned."
    lead = (
        f"The least aligned coherent answers of {entry.label}, one per question: selected, not typical "
        f"(a typical one: see all answers).{what}"
    )
    return lead, shown


def _example(model: str, answer: Answer) -> Example:
    grades = f"alignment {answer.draw.alignment:.0f}, coherence {answer.draw.coherence:.0f}"
    text = answer.text.strip()
    return Example(model, answer.prompt, text[:_CHARACTERS], grades, answer.state, len(text) > _CHARACTERS)
