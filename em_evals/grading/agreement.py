"""Do two judges, or a judge and people, grade alike? Over the same answers, before one replaces the other.

Answers are matched by question and text, so that a log and its rescored copy, a log and a table of labels, or two
tables can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from em_evals.errors import EmEvalsError
from em_evals.results import logs, tables
from em_evals.results.graded_draw import GradedDraw
from em_evals.stats import intervals

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample
    from inspect_ai.scorer import SampleScore

Level = Literal["nominal", "interval"]
_WORDS = ("refusal", "code")
"""Judges' words in place of an alignment that are categories of their own."""


@dataclass(frozen=True)
class Rating:
    """One rater's grades of one answer."""

    draw: GradedDraw
    category: str
    theme: str


@dataclass(frozen=True)
class Rater:
    """A judge (or people) and the ratings, by (question, answer, how often that answer came before)."""

    name: str
    ratings: dict[tuple[str, str, int], Rating]


@dataclass(frozen=True)
class Scale:
    """Agreement on grades from 0 to 100, over answers that both graded.

    Attributes:
        alpha: Krippendorff's, interval level: 1 − observed over expected squared disagreement.
        alpha_interval: 95%, by the jackknife over questions.
        rank: Spearman's correlation.
        bias: the second rater's mean grade minus the first's.
        bias_interval: 95%, over questions' means.
        bias_by_theme: the same for each theme.
    """

    answers: int
    alpha: float
    alpha_interval: intervals.Interval
    rank: float
    bias: float
    bias_interval: intervals.Interval
    bias_by_theme: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """Agreement on yes or no at the rubric's threshold: counts as (first, second), and Krippendorff's nominal alpha."""

    both: int
    first_only: int
    second_only: int
    neither: int
    alpha: float


@dataclass(frozen=True)
class Agreement:
    """Two raters over the answers that both saw."""

    first: str
    second: str
    answers: int
    unmatched: tuple[int, int]
    scales: dict[str, Scale]
    decisions: dict[str, Decision]
    categories: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often an answer is of one category for the first rater and of another for the second."""


def read_rater(path: Path) -> Rater:
    """Ratings out of a graded Inspect log, or a judged table with question_id, answer, aligned and coherent.

    Raises:
        EmEvalsError: neither, or not graded.
    """
    if not path.is_file():
        if path.is_dir():
            raise EmEvalsError("this is a folder; name one log or judged table in it.", path)
        raise EmEvalsError(f"there is no file '{path}'.")
    if path.suffix.lower() in tables.SUFFIXES:
        return _numbered(path.stem, _table_ratings(path))
    log = logs.read_log(path)
    draws = logs.draws_of_log(log)
    rated, names = [], set()
    for sample, draw in zip(log.samples or [], draws, strict=True):
        notes = _judge_notes(sample)
        names.add(str(notes.get("judge", "unknown judge")))
        category = str(notes.get("category") or ("answer" if draw.scored else "unscored"))
        rating = Rating(draw, category, str(sample.metadata.get("theme", "general")))
        rated.append((sample.output.completion, rating))
    return _numbered(", ".join(sorted(names)), iter(rated))


def agreement(first: Rater, second: Rater) -> Agreement:
    """How far two raters agree.

    Raises:
        EmEvalsError: they saw no answer in common.
    """
    common = [key for key in first.ratings if key in second.ratings]
    if not common:
        raise EmEvalsError(
            f"{first.name} and {second.name} graded no answer in common: grade one log twice with `inspect score`."
        )
    pairs = [(first.ratings[key], second.ratings[key]) for key in common]
    confusion: dict[str, Counter[str]] = {}
    for one, other in pairs:
        confusion.setdefault(one.category, Counter())[other.category] += 1
    scored = [(one, other) for one, other in pairs if one.draw.scored and other.draw.scored]
    return Agreement(
        first.name,
        second.name,
        len(common),
        (len(first.ratings) - len(common), len(second.ratings) - len(common)),
        {
            "alignment": _scale(pairs, lambda draw: draw.alignment),
            "coherence": _scale(pairs, lambda draw: draw.coherence),
        },
        {
            "misaligned": _decision(scored, lambda draw: draw.alignment < draw.misaligned_below),
            "coherent": _decision(scored, lambda draw: draw.coherent),
            "misaligned and coherent": _decision(pairs, lambda draw: draw.misaligned_coherent),
        },
        {name: dict(row) for name, row in confusion.items()},
    )


def krippendorff(units: Sequence[Sequence[float]], level: Level) -> float:
    """Krippendorff's alpha by Inspect's metric; NaN without units.

    Args:
        units: what each rater said of one answer.
        level: `nominal` for yes or no, `interval` for grades.
    """
    return _alpha(_units(units), level)


def _units(units: Sequence[Sequence[float]]) -> list[SampleScore]:
    from inspect_ai.scorer import SampleScore, Score

    return [SampleScore(score=Score(value=list(unit))) for unit in units]


def _alpha(units: list[SampleScore], level: Level) -> float:
    from inspect_ai.scorer import krippendorff_alpha

    compute = cast("Callable[[list[SampleScore]], Any]", krippendorff_alpha(level))
    result = compute(units)
    return float(result) if isinstance(result, int | float) else math.nan


def _judge_notes(sample: EvalSample) -> dict[str, Any]:
    """Return what our judge noted beside its grades."""
    score = logs.judged(sample)
    return (score.metadata or {}) if score else {}


def _scale(pairs: Sequence[tuple[Rating, Rating]], grade: Callable[[GradedDraw], float]) -> Scale:
    from scipy import stats

    rows = [(one, grade(one.draw), grade(other.draw)) for one, other in pairs]
    rows = [row for row in rows if not (math.isnan(row[1]) or math.isnan(row[2]))]
    questions: dict[str, list[tuple[float, float]]] = {}
    themes: dict[str, list[float]] = {}
    for rating, a, b in rows:
        questions.setdefault(rating.draw.question_id, []).append((a, b))
        themes.setdefault(rating.theme, []).append(b - a)
    differences = [b - a for _, a, b in rows]
    means = [sum(b - a for a, b in group) / len(group) for group in questions.values()]
    varies = len({a for _, a, _ in rows}) > 1 and len({b for _, _, b in rows}) > 1
    return Scale(
        answers=len(rows),
        alpha=krippendorff([(a, b) for _, a, b in rows], "interval"),
        alpha_interval=_jackknife(list(questions.values())),
        rank=float(stats.spearmanr([a for _, a, _ in rows], [b for _, _, b in rows]).statistic)
        if varies
        else math.nan,
        bias=_mean(differences),
        bias_interval=intervals.mean(means),
        bias_by_theme={theme: _mean(values) for theme, values in sorted(themes.items())},
    )


def _jackknife(groups: Sequence[Sequence[tuple[float, float]]]) -> intervals.Interval:
    """Student's t interval of alpha's jackknife pseudo-values, one question left out at a time."""
    count = len(groups)
    if count < 3:
        return math.nan, math.nan
    units = [_units(group) for group in groups]
    whole = _alpha([unit for group in units for unit in group], "interval")
    without = [
        _alpha([unit for other, group in enumerate(units) if other != left for unit in group], "interval")
        for left in range(count)
    ]
    low, high = intervals.mean([count * whole - (count - 1) * value for value in without])
    return max(-1.0, low), min(1.0, high)


def _decision(pairs: Sequence[tuple[Rating, Rating]], decide: Callable[[GradedDraw], bool]) -> Decision:
    decided = [(decide(one.draw), decide(other.draw)) for one, other in pairs]
    counts = Counter(decided)
    return Decision(
        both=counts[True, True],
        first_only=counts[True, False],
        second_only=counts[False, True],
        neither=counts[False, False],
        alpha=krippendorff([(float(a), float(b)) for a, b in decided], "nominal"),
    )


def _table_ratings(path: Path) -> Iterator[tuple[str, Rating]]:
    for row, draw in tables.rows(path):
        if "answer" not in row:
            raise EmEvalsError("the column 'answer' is missing; answers are matched by it.", path, 1)
        word = draw.category if draw.category in _WORDS else "unscored"
        yield row["answer"], Rating(draw, "answer" if draw.scored else word, row.get("theme") or "general")


def _numbered(name: str, rated: Iterator[tuple[str, Rating]]) -> Rater:
    seen: Counter[tuple[str, str]] = Counter()
    ratings = {}
    for answer, rating in rated:
        key = rating.draw.question_id, " ".join(answer.split())
        ratings[*key, seen[key]] = rating
        seen[key] += 1
    return Rater(name, ratings)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
