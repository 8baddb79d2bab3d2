"""The records of steering, convergence, rank-1 scalars and retention."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Measured, Record


class SteeringPoint(Record):
    """One condition of a steering study, on the half of the questions that chose nothing."""

    arm: Literal["direction", "random", "control"]
    layer: int
    scale: float
    in_domain: Measured
    """Forced choice: margin toward the misaligned answer minus the unsteered model's, nats per token."""
    out_of_domain: Measured
    coherence: Measured
    """Judge's 0-100, or the base's loss on the answers minus that on unsteered answers (see `coherence_is`)."""
    repetition: Measured
    """Share of an answer's 4-grams that it has said before."""
    damaged: bool
    """The answers fell apart (see `damage_rule`): whatever else changed is no cure and no effect."""
    em_rate: Measured | None = None
    """Of all draws, where a judge graded; the interval is for these questions."""
    verdict: str = ""
    """What may be said of it, in words."""


class AblationPoint(Record):
    """A direction taken out at every layer, each layer its own; on the half of the questions that chose nothing."""

    arm: Literal["direction", "random", "control"]
    how: str
    """Toward which reference, and what was left alone, in words."""
    in_domain: Measured
    out_of_domain: Measured
    coherence: Measured
    repetition: Measured
    damaged: bool
    em_rate: Measured | None = None
    verdict: str = ""


class SteeringContrast(Record):
    """The direction's margins minus another arm's, under the same change, pair by pair; nats per token."""

    against: Literal["random", "control"]
    how: str
    """The change: a scale at the chosen layer, or an ablation."""
    in_domain: Measured
    out_of_domain: Measured


class SteeringStudy(Record):
    """`em-evals steer`: layers x scales x directions."""

    kind: Literal["steer"] = "steer"
    version: Literal[1] = 1
    card: str
    digest: str
    direction: str
    coherence_is: str
    """What `coherence` means here, in words."""
    chosen_layer: int
    points: list[SteeringPoint]
    ablations: list[AblationPoint] = []
    contrasts: list[SteeringContrast] = []
    damage_rule: str = ""
    """When a condition is called damaged, in words."""
    unsteered_coherence: Measured | None = None
    unsteered_repetition: Measured | None = None
    notes: list[str] = []
    """What a reader has to know: pairs left out, how the layer was chosen."""
    provenance: dict[str, str] = {}


class Cosines(Record):
    """Cosine of two models' directions at each layer."""

    one: str
    other: str
    by_layer: list[float | None]
    """None where one of them has no vector: an adapter does nothing below its first block."""
    floor: list[float]
    """95% of random pairs lie below this absolute cosine, at each layer."""


class Transfer(Record):
    """What ablating one model's direction does to another's forced choice."""

    source: str
    target: str
    arm: Literal["direction", "random"]
    in_domain: Measured
    out_of_domain: Measured


class Moved(Record):
    """How far an organism's forced choice lies from its base's: what there is for an ablation to remove."""

    card: str
    in_domain: Measured
    out_of_domain: Measured


class Convergence(Record):
    """`em-evals insight convergence`."""

    kind: Literal["convergence"] = "convergence"
    version: Literal[1] = 1
    cards: list[str]
    controls: dict[str, str] = {}
    """Card -> what its own control's direction is called among the cosines; none where one control is everybody's."""
    cosines: list[Cosines]
    transfer: list[Transfer] = []
    moved: list[Moved] = []
    notes: list[str] = []
    provenance: dict[str, str] = {}

    def of_controls(self, pair: Cosines) -> Cosines | None:
        """The cosine of the two models' own controls, a pair's like-for-like floor; None where it was not measured."""
        own = {self.controls.get(pair.one), self.controls.get(pair.other)}
        return next((one for one in self.cosines if {one.one, one.other} == own), None)


class ScalarGroup(Record):
    """What a rank-1 adapter reads on the answers of one kind: scaling·|B|·A·x for each of their tokens.

    That is the length of what the adapter writes, with a sign; signs are turned so that the mean over all is positive.
    """

    narrow: bool
    aligned: bool
    answers: int
    tokens: int
    mean: float
    sd: float
    percentiles: tuple[float, float, float]
    """5, 50 and 95."""


class AdapterScalars(Record):
    """One rank-1 adapter's distributions."""

    module: str
    layer: int
    groups: list[ScalarGroup]
    constancy: float
    """Share of the mean square that is the squared mean: 1 is a bias, near 0 a detector."""
    against_control: float | None = None
    """Kolmogorov and Smirnov's distance of the tokens' distribution to the control's adapter on the same module."""


class Probe(Record):
    """A logistic probe on the answers' mean scalars, cross-validated by question: AUROC, interval over questions."""

    model: str
    tells: Literal["misaligned from aligned", "in-domain from out-of-domain"]
    adapters: str
    auroc: Measured


class Knockout(Record):
    """What switching one block's adapter off does to forced choice: margins without it minus with it, nats per token.

    Intervals hold for all blocks and both domains of a model together (Bonferroni).
    """

    model: str
    layer: int
    modules: list[str]
    narrow: Measured
    general: Measured
    serves: Literal["narrow", "general", "both", "neither"]
    """The domains whose margins it lifts: their interval lies below 0 without it."""
    sentence: str


class LoraScalars(Record):
    """`em-evals insight lora-scalars`."""

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
"""Metrics that are shares of items answered rightly; `accuracy` is that of several tasks together."""


class TaskDifference(Record):
    """A task's score beside the baseline's, item by item."""

    task: str
    metric: str
    """What the score is; `accuracy` and its difference hold it even where it is none, as forced-choice margins are."""
    n: int
    accuracy: float
    baseline_accuracy: float
    difference: float
    interval: Interval
    p: float | None
    """Two-sided; null where there are too few items for one."""


class RetainedModel(Record):
    """One model of a retention study; the task `overall` is all items."""

    name: str
    digest: str
    tasks: list[TaskDifference]


class Retention(Record):
    """`em-evals retention`."""

    kind: Literal["retention"] = "retention"
    version: Literal[1] = 1
    baseline: str
    models: list[RetainedModel]
    provenance: dict[str, str] = {}
