"""What a plan costs: questions, draws of each and judge calls; and how to split draws over questions.

Draws for one question correlate (`correlation`, ρ). Over all questions of a kind, Q questions with n draws each are
worth Q n / (1 + (n − 1) ρ) independent draws (Kish's design effect, Survey Sampling, 1965). If a further question costs
as much as c draws, a given precision is cheapest at n = √(c (1 − ρ) / ρ) draws of each question (Cochran, Sampling
Techniques, 1977, section 10.6). About fixed questions, the split does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Questions and draws of one model.

    Attributes:
        scope: what the verdict is about.
        questions: number of questions.
        each: draws of each question.
        draws: all draws.
        judge_calls: what grading them takes.
    """

    scope: str
    questions: int
    each: int
    draws: int
    judge_calls: int


def correlation(clusters: Sequence[tuple[int, int]]) -> float:
    """Return the correlation of two draws for one question: the analysis of variance's estimate, at least 0.

    Args:
        clusters: (events, draws) of each question.

    Returns:
        NaN with fewer than two questions, or without a second draw of any.

    Example:
        >>> correlation([(5, 10), (5, 10)]), correlation([(10, 10), (0, 10)])
        (0.0, 1.0)
    """
    counted = np.array([(events, draws) for events, draws in clusters if draws], dtype=float)
    if len(counted) < 2 or counted[:, 1].sum() <= len(counted):
        return math.nan
    events, draws = counted.T
    total, groups = float(draws.sum()), len(counted)
    rate, own = float(events.sum()) / total, events / draws
    between = float((draws * (own - rate) ** 2).sum()) / (groups - 1)
    within = float((draws * own * (1 - own)).sum()) / (total - groups)
    usual = (total - float((draws**2).sum()) / total) / (groups - 1)
    whole = between + (usual - 1) * within
    return max(0.0, (between - within) / whole) if whole > 0 else 0.0


def best_draws(own: float, question_cost: float) -> int | None:
    """Return the cheapest number of draws of each question; None without correlation, where any number does.

    Example:
        >>> best_draws(0.1, 20), best_draws(0.0, 20)
        (13, None)
    """
    return max(1, round(math.sqrt(question_cost * (1 - own) / own))) if own > 0 else None


def fixed(draws: int, questions: int, judge_calls: int) -> Split:
    """Return how so many draws of given questions are asked."""
    each = math.ceil(draws / questions)
    return Split("questions", questions, each, each * questions, each * questions * judge_calls)


def sampled(draws: int, own: float, question_cost: float, judge_calls: int, least: int = 2) -> Split:
    """Return the cheapest questions and draws that are worth so many independent draws of the population.

    Args:
        draws: independent draws that are needed.
        own: correlation of draws for one question.
        question_cost: cost of a further question in draws.
        judge_calls: judge calls for a draw.
        least: questions that are needed in any case.
    """
    each = best_draws(own, question_cost) or max(1, math.ceil(draws / least))
    questions = max(least, math.ceil(draws * (1 + (each - 1) * own) / each))
    if questions == least:  # fewer draws of each do
        room = least - draws * own
        each = max(1, math.ceil(draws * (1 - own) / room)) if room > 0 else each
    return Split("population", questions, each, questions * each, questions * each * judge_calls)
