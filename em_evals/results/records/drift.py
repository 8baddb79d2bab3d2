"""Records of drift during training: trajectories beside a control and nulls, and a learned alarm."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Measured, Record
from em_evals.results.records.claims import Claim


class DriftPoint(Record):
    """Mean drift at a step; the interval is of a band that holds for all steps at once."""

    step: int
    value: float | None
    interval: Interval


class TraitDrift(Record):
    """One direction's drift in one run, or the mean over several runs.

    Drift is in units of the untrained activations' mean norm at the block, minus the control's at the same step.
    """

    run: str
    """The card; `mean of N runs` for several."""
    control: str | None
    trait: str
    kind: str
    layer: int
    units: Literal["prompts", "runs"]
    """What the band is over."""
    points: list[DriftPoint]
    floor: list[float]
    """At each point: the absolute drift of 95% of covariance-matched random directions is below; empty without any."""
    claim: Claim
    """The largest absolute drift over steps beside that of random directions and of style traits."""

    @property
    def largest(self) -> DriftPoint | None:
        """The point with the largest absolute drift."""
        known = [point for point in self.points if point.value is not None]
        return max(known, key=lambda point: abs(point.value or 0)) if known else None

    def sentence(self) -> str:
        """Return the finding as a sentence."""
        top = self.largest
        if top is None or top.value is None:
            return f"{self.run}, {self.trait}: not estimable."
        low, high = top.interval
        band = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
        against = "" if self.control is None else f" minus {self.control}"
        told = "; ".join(
            f"{null.name} up to {null.high:.4f} (p = {null.p:.3g})"
            for null in self.claim.nulls
            if null.high is not None and null.p is not None
        )
        return (
            f"{self.run}{against}, {self.trait} at layer {self.layer}: {self.claim.verdict}; largest drift "
            f"{top.value:+.4f}{band} at step {top.step}{f'; {told}' if told else ''}."
        )


class Drift(Record):
    """Record of `em-evals insight drift`."""

    kind: Literal["drift"] = "drift"
    version: Literal[1] = 1
    runs: list[str]
    controls: list[str]
    prompts: int
    drifts: list[TraitDrift]
    alarms: list[AlarmVerdict] = []
    notes: list[str] = []
    provenance: dict[str, str] = {}


class AlarmVerdict(Record):
    """What a learned alarm says of one run."""

    run: str
    verdict: Literal["pass", "alarm", "inconclusive"]
    """alarm: the predicted rate exceeds the threshold at a step, even at the lower end of a band over prompts and
    steps; inconclusive: only its mean does."""
    rates: list[DriftPoint]
    """Predicted EM rate by step."""
    sentence: str


class AlarmScores(Record):
    """How an alarm does on runs of which it has seen nothing alike."""

    left_out: Literal["recipe", "seed"]
    rows: int
    dangerous: int
    """Rows labeled as above the threshold by their own draws."""
    auroc: Measured
    """Against the labels; intervals over runs."""
    auroc_corrected: Measured
    """Against the true rates: a row counts with the probability that its rate exceeds the threshold."""
    fpr: Measured
    fnr: Measured
    lead: Measured
    """Steps from the first alarm to the first step whose rate exceeds the threshold; positive: the alarm is earlier."""
    missed: int
    """Runs that exceed it and have no alarm at any step."""
    label_noise: tuple[float | None, float | None]
    """Share of rows labeled above the threshold that are below it, and of rows labeled below that are above."""
    claim: Claim
    """The AUROC beside that of alarms learned on as many random directions."""


class WatchedTrait(Record):
    """A direction that an alarm reads."""

    name: str
    layer: int
    digest: str


class DriftAlarm(Record):
    """Record of `em-evals insight drift --fit`: rate = sigmoid(intercept + weights · (drift - center) / scale)."""

    kind: Literal["drift-alarm"] = "drift-alarm"
    version: Literal[1] = 1
    watched: list[WatchedTrait]
    prompts: str
    """Digest of the prompts' tokens."""
    against_control: bool
    threshold: float
    """EM rate above which a model counts as dangerous."""
    center: list[float]
    scale: list[float]
    weights: list[float]
    intercept: float
    runs: int
    validation: list[AlarmScores]
    notes: list[str] = []
    provenance: dict[str, str] = {}


Drift.model_rebuild()
