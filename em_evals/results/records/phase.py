"""The record of `em-evals insight phase`: a training over its steps."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Record


class Point(Record):
    """A value at a training step."""

    step: int
    value: float | None
    interval: Interval


class Transition(Record):
    """Where a curve crosses half of its final height."""

    final: float | None
    """Mean shift at the last step."""
    final_interval: Interval
    step: float | None
    """The crossing, interpolated between kept steps; null where the final shift's interval holds 0."""
    interval: tuple[float, float] | None
    """95% percentile interval of `step` over resampled pairs; null with `step`."""
    pairs: int

    def sentence(self) -> str:
        """What was found, in words; a null result as such."""
        if self.final is None or None in self.final_interval:
            return "no transition: too few pairs to tell."
        final = "{:+.3f} [{:+.3f}, {:+.3f}]".format(self.final, *self.final_interval)
        if self.step is None or self.interval is None:
            return f"no transition: the last step's shift of {final} nats per token cannot be told from 0."
        low, high = self.interval
        return (
            f"half of the last shift ({final}) was reached at step {self.step:.1f} [{low:.1f}, {high:.1f}]."
        )


class Rotation(Record):
    """How one rank-1 adapter's B turned."""

    module: str
    steps: tuple[int, ...]
    """Optimiser steps, ascending."""
    to_final: tuple[float | None, ...]
    """Cosine of B at each step to B at the last."""
    local: tuple[float | None, ...]
    """Cosine of (B[t-k] - B[t]) to (B[t+k] - B[t]): -1 on a straight path, higher where it turns; null at the ends."""

    @property
    def sharpest(self) -> int | None:
        """The step at which the path turns most; None for a path too short to tell."""
        turns = [(turn, -step) for step, turn in zip(self.steps, self.local, strict=True) if turn is not None]
        return -max(turns)[1] if turns else None

    def sentence(self) -> str:
        """Where the path turns, in words."""
        if self.sharpest is None:
            return "too few steps to tell where B turns."
        turn = self.local[self.steps.index(self.sharpest)]
        return f"B turns most at step {self.sharpest} (local cosine {turn:+.2f}; -1 is straight on)."


class Phase(Record):
    """A training's trajectory."""

    kind: Literal["phase"] = "phase"
    version: Literal[1] = 1
    card: str
    journal: list[dict[str, float | None]]
    """Loss, gradient norm and learning rate of each step."""
    shifts: dict[str, list[Point]]
    """By domain, the mean shift of forced-choice margins from the base at each kept step, nats per token."""
    transitions: dict[str, Transition]
    """By domain."""
    rotations: list[Rotation]
    em_rates: list[Point] = []
    """EM rate of all draws, where graded logs were given; intervals are for these questions."""
    provenance: dict[str, str] = {}
