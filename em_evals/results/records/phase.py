"""The record of `em-evals insight phase`: a training run over its steps."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record


class Point(Record):
    """A value at a training step."""

    step: int
    value: float | None
    interval: Interval


class Transition(Record):
    """The step at which a curve reaches half of its final height."""

    final: float | None
    """Mean shift at the last step."""
    final_interval: Interval
    step: float | None
    """The crossing, interpolated between checkpoints; null if the final shift's interval contains 0."""
    interval: tuple[float, float] | None
    """95% percentile interval of `step` over resampled pairs; null if `step` is."""
    pairs: int

    def sentence(self) -> str:
        """Return the finding as a sentence, also for a null result."""
        if self.final is None or None in self.final_interval:
            return "no transition: too few pairs to tell."
        final = "{:+.3f} [{:+.3f}, {:+.3f}]".format(self.final, *self.final_interval)
        if self.step is None or self.interval is None:
            return f"no transition: the last step's shift of {final} nats per token is not distinguishable from 0."
        low, high = self.interval
        return (
            f"half of the last shift ({final}) was reached at step {self.step:.1f} [{low:.1f}, {high:.1f}]."
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
        return f"B turns most at step {self.sharpest} (local cosine {turn:+.2f}; -1 is a straight path)."


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
