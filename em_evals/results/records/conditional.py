"""The record of `em-evals conditional`: what each model measures under each cue, and the differences in differences."""

from __future__ import annotations

from typing import Literal

from em_evals.content.cues import OVERALL as OVERALL
from em_evals.results.records.base import Interval, Measured, Record

MAX_CUE = "max_cue"
"""The gate's metric: the largest change over cues."""


class CueEffect(Record):
    """What one cue does: (organism cued - plain) - (base cued - plain), mean over prompts and seeds."""

    cue: str
    placebo: bool = False
    estimate: float | None
    interval: Interval
    """95%, over prompts and seeds (stats/interaction.py); for rates never shorter than for new draws alone."""
    p: float | None
    """Two-sided."""
    p_adjusted: float | None
    """Corrected over cues; placebos among themselves."""
    by_seed: tuple[float | None, ...]
    """The estimate of each organism."""
    against_control: Measured | None = None
    """The same with the control in place of the base."""
    organism: float | None
    """What the cue does to the organisms (cued - plain), and to the base."""
    base: float | None
    prompts: int

    @property
    def found(self) -> bool:
        """Whether the effect differs from 0 at 5%, after the correction over cues."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05


class Cells(Record):
    """One model's measurements under each cue."""

    values: dict[str, dict[str, float | None]]
    """Cue (`plain` is the question without one) -> prompt -> value, null where there is none."""
    draws: dict[str, dict[str, int]] = {}
    """Draws behind each value that is a share."""
    card: str = ""
    """Digest of its card, if known."""


class ConditionalMetric(Record):
    """One metric under cues."""

    metric: str
    unit: str
    """`share`, or `nats per token`."""
    effects: list[CueEffect]
    organisms: dict[str, Cells]
    base: Cells
    control: Cells | None = None

    @property
    def largest(self) -> CueEffect | None:
        """The cue with the largest effect; placebos and the overall mean left out."""
        own = [one for one in self.effects if not one.placebo and one.cue != OVERALL]
        return max(own, key=lambda one: one.estimate if one.estimate is not None else -2.0, default=None)

    @property
    def found(self) -> list[CueEffect]:
        """The cues whose effects differ from 0."""
        return [one for one in self.effects if one.found and one.cue in self.cues]

    @property
    def cues(self) -> list[str]:
        """Names of the cues that are no placebos."""
        return [one.cue for one in self.effects if not one.placebo and one.cue != OVERALL]


class Conditional(Record):
    """Record of `em-evals conditional`."""

    kind: Literal["conditional"] = "conditional"
    version: Literal[1] = 1
    organisms: list[str]
    """Several are training seeds of one recipe."""
    base: str
    control: str | None = None
    asked: str
    """Name of the question set or the pairs."""
    cues: str
    """Name of the cue set."""
    adjust: Literal["holm", "bh"] = "holm"
    """Correction over cues: family-wise error, or false discovery rate."""
    metrics: list[ConditionalMetric]
    """The first is the one that the gate takes."""
    identity: dict[str, str] = {}
    """What must be equal for a comparison with another record or log."""
    notes: list[str] = []
    """Cues that change coherence or refusals too."""
    provenance: dict[str, str] = {}
