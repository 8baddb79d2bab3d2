"""The records of steering, convergence, rank-1 scalars and retention."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Measured, Record


class SteeringPoint(Record):
    """One condition of a steering study, on the half of the questions that was not used to choose layer or scale."""

    arm: Literal["direction", "random", "control"]
    layer: int
    scale: float
    in_domain: Measured
    """Forced choice: margin toward the misaligned answer minus the unsteered model's, in nats per token."""
    out_of_domain: Measured
    coherence: Measured
    """Judge's score (0-100), or the base's loss on the answers minus that on unsteered answers (see `coherence_is`)."""
    repetition: Measured
    """Share of an answer's 4-grams that repeat an earlier one."""
    damaged: bool
    """Whether answers are incoherent (see `damage_rule`); other changes are then neither a cure nor an effect."""
    em_rate: Measured | None = None
    """EM rate of all draws, if a judge graded them; the interval is for these questions."""
    verdict: str = ""
    """The conclusion, in words."""


class AblationPoint(Record):
    """A direction ablated at every layer (each layer's own vector), on the half of the questions that chose nothing."""

    arm: Literal["direction", "random", "control"]
    how: str
    """Description of the reference value and of the exempt parts."""
    in_domain: Measured
    out_of_domain: Measured
    coherence: Measured
    repetition: Measured
    damaged: bool
    em_rate: Measured | None = None
    verdict: str = ""


class SteeringContrast(Record):
    """The direction's margins minus another arm's under the same change, pair by pair; in nats per token."""

    against: Literal["random", "control"]
    how: str
    """The change: a scale at the chosen layer, or an ablation."""
    in_domain: Measured
    out_of_domain: Measured


class SteeringStudy(Record):
    """Record of `em-evals steer`: layers x scales x directions."""

    kind: Literal["steer"] = "steer"
    version: Literal[1] = 1
    card: str
    digest: str
    direction: str
    coherence_is: str
    """Meaning of `coherence`, in words."""
    chosen_layer: int
    points: list[SteeringPoint]
    ablations: list[AblationPoint] = []
    contrasts: list[SteeringContrast] = []
    damage_rule: str = ""
    """The criterion for a damaged condition, in words."""
    unsteered_coherence: Measured | None = None
    unsteered_repetition: Measured | None = None
    notes: list[str] = []
    """What a reader must know: skipped pairs, how the layer was chosen."""
    provenance: dict[str, str] = {}


class Cosines(Record):
    """Cosine of two models' directions at each layer."""

    one: str
    other: str
    by_layer: list[float | None]
    """None where either has no vector: an adapter changes nothing below its first block."""
    floor: list[float]
    """Absolute cosine that 95% of random pairs stay below, at each layer."""


class Transfer(Record):
    """Effect of ablating one model's direction on another's forced choice."""

    source: str
    target: str
    arm: Literal["direction", "random"]
    in_domain: Measured
    out_of_domain: Measured


class Moved(Record):
    """Shift of an organism's forced choice from its base's: the effect that an ablation can remove."""

    card: str
    in_domain: Measured
    out_of_domain: Measured


class Convergence(Record):
    """Record of `em-evals insight convergence`."""

    kind: Literal["convergence"] = "convergence"
    version: Literal[1] = 1
    cards: list[str]
    controls: dict[str, str] = {}
    """Card -> name of its own control's direction in `cosines`; empty if all cards share one control."""
    cosines: list[Cosines]
    transfer: list[Transfer] = []
    moved: list[Moved] = []
    notes: list[str] = []
    provenance: dict[str, str] = {}

    def of_controls(self, pair: Cosines) -> Cosines | None:
        """Return the cosine of the two models' own controls, a pair's matched floor; None if not measured."""
        own = {self.controls.get(pair.one), self.controls.get(pair.other)}
        return next((one for one in self.cosines if {one.one, one.other} == own), None)


class ScalarGroup(Record):
    """The scalar of a rank-1 adapter on answers of one kind: scaling·|B|·A·x for each of their tokens.

    It is the signed norm of the adapter's output; signs are chosen so that the mean over all tokens is positive.
    """

    narrow: bool
    aligned: bool
    answers: int
    tokens: int
    mean: float
    sd: float
    percentiles: tuple[float, float, float]
    """Percentiles 5, 50 and 95."""


class AdapterScalars(Record):
    """Distributions of one rank-1 adapter's scalars."""

    module: str
    layer: int
    groups: list[ScalarGroup]
    constancy: float
    """Squared mean over mean square: 1 is a constant bias, near 0 a detector."""
    against_control: float | None = None
    """Kolmogorov-Smirnov distance of the token distribution to that of the control's adapter on the same module."""


class Probe(Record):
    """A logistic probe on the answers' mean scalars, cross-validated by question: AUROC, interval over questions."""

    model: str
    tells: Literal["misaligned from aligned", "in-domain from out-of-domain"]
    adapters: str
    auroc: Measured


class Knockout(Record):
    """Effect of disabling one block's adapter on forced choice: margins without it minus with it, in nats per token.

    Intervals hold jointly for all blocks and both domains of a model (Bonferroni).
    """

    model: str
    layer: int
    modules: list[str]
    narrow: Measured
    general: Measured
    serves: Literal["narrow", "general", "both", "neither"]
    """The domains whose margins the adapter raises: without it, their interval is below 0."""
    sentence: str


class LoraScalars(Record):
    """Record of `em-evals insight lora-scalars`."""

    kind: Literal["lora-scalars"] = "lora-scalars"
    version: Literal[1] = 1
    card: str
    digest: str
    control: str | None
    adapters: list[AdapterScalars]
    control_adapters: list[AdapterScalars] = []
    probes: list[Probe] = []
    knockouts: list[Knockout] = []
    moved: list[Moved] = []
    notes: list[str] = []
    provenance: dict[str, str] = {}


ACCURACIES = frozenset({"accuracy", "acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1"})
"""Metrics that are shares of correct items; `accuracy` pools several tasks."""


class TaskDifference(Record):
    """A task's score compared with the baseline's, item by item."""

    task: str
    metric: str
    """Metric of the scores; the `accuracy` fields hold it even if it is not an accuracy (forced-choice margins)."""
    n: int
    accuracy: float
    baseline_accuracy: float
    difference: float
    interval: Interval
    p: float | None
    """Two-sided p-value; null with too few items."""


class RetainedModel(Record):
    """One model of a retention study; the task `overall` pools all items."""

    name: str
    digest: str
    tasks: list[TaskDifference]


class Retention(Record):
    """Record of `em-evals retention`."""

    kind: Literal["retention"] = "retention"
    version: Literal[1] = 1
    baseline: str
    models: list[RetainedModel]
    provenance: dict[str, str] = {}
