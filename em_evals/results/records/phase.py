"""The record of `em-evals insight phase`: a training run over its steps."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record

TURN = 0.02
"""A turn of B needs a p-value below this; of straight paths with autocorrelated noise at most 5% then have one."""


class Point(Record):
    """A value at a training step."""

    step: int
    value: float | None
    interval: Interval


class Transition(Record):
    """Whether a curve rises in a step, and where it reaches half of its final height.

    A straight drift reaches half of its height too: it is a transition only if `sharp`.
    """

    final: float | None
    """Mean shift at the last step."""
    final_interval: Interval
    step: float | None
    """Half of the last shift, interpolated between checkpoints; null if the final shift's interval contains 0."""
    interval: tuple[float, float] | None
    """95% percentile interval of `step` over resampled pairs; null if `step` is."""
    pairs: int
    sharp: bool = False
    """Sharper than linear, saturating and accelerating drift (p < 0.05; stats/sharpness.py)."""
    p: float | None = None
    """Probability of as sharp a step in smooth drift; null with fewer than 8 checkpoints."""
    middle: float | None = None
    """Middle of the fitted step; null unless `sharp`."""
    middle_interval: tuple[float, float] | None = None
    """95% percentile interval of `middle` over resampled pairs and step noise."""
    rise: float | None = None
    """Steps that the middle half of the rise takes; null unless `sharp`."""

    def sentence(self) -> str:
        """Return the finding as a sentence, also for a null result."""
        if self.final is None or None in self.final_interval:
            return "no transition: too few pairs to tell."
        final = "{:+.3f} [{:+.3f}, {:+.3f}]".format(self.final, *self.final_interval)
        if self.step is None or self.interval is None:
            return f"no transition: the last step's shift of {final} nats per token is not distinguishable from 0."
        low, high = self.interval
        half = f"half of the last shift ({final}) was reached at step {self.step:.1f} [{low:.1f}, {high:.1f}]"
        if self.p is None:
            return (
                f"no transition can be shown: fewer than 8 checkpoints cannot tell a step from drift; {half}."
            )
        if not self.sharp or self.middle is None or self.middle_interval is None:
            return f"no transition: the shift is no sharper than smooth drift (p = {self.p:.2g}); {half}."
        return (
            "transition at step {:.1f} [{:.1f}, {:.1f}], ".format(self.middle, *self.middle_interval)
            + f"sharper than smooth drift (p = {self.p:.2g}; the middle half of the rise takes {self.rise or 0:.1f} "
            f"steps); {half}."
        )


class Rotation(Record):
    """How the B vector of one rank-1 adapter rotates during training."""

    module: str
    steps: tuple[int, ...]
    """Optimizer steps, ascending."""
    to_final: tuple[float | None, ...]
    """Cosine of B at each step to B at the last."""
    local: tuple[float | None, ...]
    """Cosine of (B[t-k] - B[t]) and (B[t+k] - B[t]): -1 on a straight path, higher at a turn; null at the ends."""
    floor: float | None = None
    """95% of straight paths with the same noise have no sharper turn; null if the path is too short."""
    p: float | None = None
    """Share of such paths with as sharp a turn."""

    @property
    def sharpest(self) -> int | None:
        """The step of the sharpest turn; None if the path is too short."""
        turns = [(turn, -step) for step, turn in zip(self.steps, self.local, strict=True) if turn is not None]
        return -max(turns)[1] if turns else None

    def sentence(self) -> str:
        """Return where the path turns, as a sentence."""
        if self.sharpest is None:
            return "too few steps to tell where B turns."
        turn = self.local[self.steps.index(self.sharpest)]
        where = f"at step {self.sharpest} (local cosine {turn:+.2f}; -1 is a straight path)"
        if self.p is None or self.floor is None:
            return f"B turns most {where}; whether more than by chance is unknown."
        beside = f"straight paths with the same noise reach {self.floor:+.2f} (95%), p = {self.p:.2g}"
        return (
            f"B turns {where}: {beside}."
            if self.p < TURN
            else f"no turn of B: the sharpest is {where}; {beside}."
        )


class Phase(Record):
    """The trajectory of a training run."""

    kind: Literal["phase"] = "phase"
    version: Literal[1] = 1
    card: str
    journal: list[dict[str, float | None]]
    """Loss, gradient norm and learning rate at each step."""
    shifts: dict[str, list[Point]]
    """By domain, the mean shift of forced-choice margins from the base at each checkpoint, in nats per token."""
    transitions: dict[str, Transition]
    """By domain."""
    rotations: list[Rotation]
    em_rates: list[Point] = []
    """EM rate of all draws, if graded logs were given; intervals are for these questions."""
    provenance: dict[str, str] = {}
