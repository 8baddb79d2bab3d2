"""Rates corrected for a judge's errors, from draws that people labeled as well.

With the judge's sensitivity Se and specificity Sp, a true rate p is judged as r = p Se + (1 - p)(1 - Sp). Rogan and
Gladen (1978, Am. J. Epidemiology 107) solve that for p. Prediction-powered inference (Angelopoulos et al. 2023, arXiv
2301.09633; the power-tuned form, arXiv 2311.01453) adds the labels' mean error to the judged rate; it needs labels of a
random sample of the same draws, and takes no model of the errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from em_evals.stats.intervals import CONFIDENCE, Interval, fixed_questions
from em_evals.stats.special import special

_SAMPLES = 20_000
_SEED = 0


@dataclass(frozen=True)
class Labels:
    """Labeled draws by people's and the judge's verdict: true and false positives and negatives of the judge."""

    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int

    @property
    def total(self) -> int:
        """Number of labeled draws."""
        return self.positives + self.false_positives + self.true_negatives

    @property
    def positives(self) -> int:
        """Number of draws that people call positive."""
        return self.true_positives + self.false_negatives

    @property
    def sensitivity(self) -> float:
        """Share of people's positives that the judge finds; NaN without any."""
        return self.true_positives / self.positives if self.positives else math.nan

    @property
    def specificity(self) -> float:
        """Share of people's negatives that the judge leaves; NaN without any."""
        negatives = self.total - self.positives
        return self.true_negatives / negatives if negatives else math.nan


@dataclass(frozen=True)
class Corrected:
    """A corrected rate.

    Attributes:
        value: as a fraction; NaN where it cannot be estimated.
        interval: 95%.
        clipped: whether the estimate left 0 to 1 and was set to the nearer end.
        why: why there is no estimate; else empty.
    """

    value: float
    interval: Interval
    clipped: bool = False
    why: str = ""


def rogan_gladen(events: int, draws: int, labels: Labels) -> Corrected:
    """Return p = (r + Sp - 1) / (Se + Sp - 1), with the judged rate r = events / draws.

    The interval holds 95% of p where r, Se and Sp each follow their Jeffreys posterior; it widens with few labels.
    """
    nowhere = math.nan, math.nan
    sensitivity, specificity = labels.sensitivity, labels.specificity
    if not draws or math.isnan(sensitivity) or math.isnan(specificity):
        return Corrected(math.nan, nowhere, why="the labels hold no positive draw, or no negative one")
    informed = sensitivity + specificity - 1
    if informed <= 0:
        return Corrected(math.nan, nowhere, why="the judge is no better than chance on the labels")
    raw = (events / draws + specificity - 1) / informed
    random = np.random.default_rng(_SEED)
    rate, found, left = (
        random.beta(k + 0.5, n - k + 0.5, _SAMPLES)
        for k, n in (
            (events, draws),
            (labels.true_positives, labels.positives),
            (labels.true_negatives, labels.total - labels.positives),
        )
    )
    better = found + left > 1
    samples = np.clip((rate + left - 1)[better] / (found + left - 1)[better], 0, 1)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(samples, [tail, 1 - tail]))
    # Labels and draws that contradict each other leave hardly a sample: true positives alone bound the rate then.
    least, most = fixed_questions(events, draws)
    if raw < 0:
        high = max(high, min(1.0, most / sensitivity))
    if raw > 1:
        low = min(low, max(0.0, 1 - (1 - least) / specificity))
    value = min(max(raw, 0.0), 1.0)
    return Corrected(value, (min(low, value), max(high, value)), clipped=not 0 <= raw <= 1)


def prediction_powered(events: int, draws: int, labels: Labels) -> Corrected:
    """Return the labels' rate plus a multiple of (judged rate of the other draws - judged rate of labeled draws).

    The multiple, between 0 and 1, minimizes the variance. The interval is Wilson's on p (1 - p) / variance draws. Few
    labels often hold no error of a kind that the judge makes, and the variance that they show is then too small (for 20
    to 50 labels the interval held 72 to 95%): it is that of the labels with one false negative and one false positive
    more. With a judge that agrees with every label the estimate is the judged rate; the interval comes near that of the
    judged draws as labels grow.

    Args:
        events: judged positives among all draws, labeled ones included.
        draws: number of all draws.
        labels: of a random sample of these draws.
    """
    number, rest = labels.total, draws - labels.total
    nowhere = math.nan, math.nan
    if not number or rest < 0:
        return Corrected(math.nan, nowhere, why="there are no labels, or more labels than draws")
    people, judge = labels.positives / number, (labels.true_positives + labels.false_positives) / number
    if rest == 0:
        return Corrected(people, _wilson(people, number))
    others = (events - labels.true_positives - labels.false_positives) / rest
    if not 0 <= others <= 1:
        return Corrected(math.nan, nowhere, why="the labels are not of these draws")
    overall = events / draws
    weight = _weight(labels, number / rest)
    raw = people + weight * (others - judge)
    # Label - weight * judge of the four kinds of labels, with their shares.
    kinds = np.array([1 - weight, 1.0, -weight, 0.0])
    shares = np.array(
        [labels.true_positives, labels.false_negatives + 1, labels.false_positives + 1, labels.true_negatives]
    ) / (number + 2)
    error = float(shares @ kinds**2 - (shares @ kinds) ** 2)
    variance = error / number + weight**2 * overall * (1 - overall) / rest
    value = min(max(raw, 0.0), 1.0)
    shrunk = (value * number + 1) / (number + 2)  # a rate of 0 in 20 labels is no sign of 0 variance
    effective = shrunk * (1 - shrunk) / variance
    return Corrected(value, _wilson(value, min(effective, draws)), clipped=not 0 <= raw <= 1)


def _weight(labels: Labels, ratio: float) -> float:
    """Return how much the judge's grades of the other draws count: cov(label, judge) / (var(judge) (1 + ratio)).

    Args:
        labels: one of each kind is added, so that few labels do not decide between all and nothing.
        ratio: labeled draws / other draws.
    """
    if not labels.false_negatives + labels.false_positives:
        return 1 / (1 + ratio)
    number = labels.total + 4
    people, judge = (
        (labels.positives + 2) / number,
        (labels.true_positives + labels.false_positives + 2) / number,
    )
    shared = (labels.true_positives + 1) / number - people * judge
    return min(max(shared / (judge * (1 - judge) * (1 + ratio)), 0.0), 1.0)


def _wilson(share: float, number: float) -> Interval:
    """Return Wilson's interval of a share of a number of draws that need not be whole."""
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    center = (share + z * z / (2 * number)) / (1 + z * z / number)
    reach = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number)) / (1 + z * z / number)
    return (max(0.0, center - reach) if share else 0.0), (min(1.0, center + reach) if share < 1 else 1.0)
