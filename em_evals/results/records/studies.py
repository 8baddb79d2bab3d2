"""The records of steering, convergence, rank-1 scalars and retention."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Interval, Measured, Record
from em_evals.results.records.claims import Claim


class SteeredArm(Record):
    """One condition of a steering study, on the half of the questions that was not used to choose layer or scale."""

    arm: Literal["direction", "random", "control"]
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
    """The conclusion, in words; its family-wise error over all conditions is 5%."""
    p: tuple[float | None, float | None] = (None, None)
    """p-values of no shift, in-domain and out-of-domain, adjusted over all conditions of the study (max-T)."""


class SteeringPoint(SteeredArm):
    """A direction added at one layer."""

    layer: int
    scale: float


class AblationPoint(SteeredArm):
    """A direction ablated at every layer (each layer's own vector)."""

    how: str
    """Description of the reference value and of the exempt parts."""


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
    claim: Claim | None = None
    """The direction's slope beside null distributions, if they were drawn."""
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
    corrected: list[float | None] = []
    """The cosine corrected for noise; None where either direction is lost in it. Empty for files without folds."""


class SharedDirection(Record):
    """How far two organisms' directions agree beyond what their controls' do, over all layers at once.

    Cosines are corrected for noise (stats/noisy_vectors.py), intervals are bootstrapped over folds of questions, the
    same folds for all four directions.
    """

    one: str
    other: str
    organisms: Measured
    controls: Measured | None = None
    """None without each organism's own control."""
    difference: Measured | None = None
    claim: Claim | None = None
    """The largest cosine over layers, as measured (not corrected), beside null distributions."""

    def sentence(self) -> str:
        """Return the finding as a sentence."""
        if self.organisms.value is None:
            return (
                f"{self.one} and {self.other}: not estimable; their directions are lost in noise, or their files have "
                "no folds (extract them again)."
            )
        told = f"{self.one} and {self.other}: corrected cosine {_cosine(self.organisms)}"
        if self.difference is None or self.difference.value is None or self.controls is None:
            return f"{told}; without the cosine of their own controls, how much of it is style is unknown."
        low, high = self.difference.interval
        word = (
            "more than"
            if low is not None and low > 0
            else "less than"
            if high is not None and high < 0
            else None
        )
        end = (
            f"they share {word} their controls"
            if word
            else "not distinguishable from what their controls share"
        )
        return (
            f"{told}, their controls {_cosine(self.controls)}, difference {_cosine(self.difference)}: {end}."
        )


def _cosine(value: Measured) -> str:
    return estimate(value, "+.2f")


def estimate(value: Measured, form: str) -> str:
    """Return a mean and its interval as text."""
    low, high = value.interval
    ends = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return "–" if value.value is None else f"{value.value:{form}}{ends}"


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


class SeedEffect(Record):
    """What the models of one recipe show as one: a mean over items and training seeds."""

    group: str
    what: str
    """The number, in words."""
    value: Measured
    """95% over items and seeds; `n` counts items."""
    unit: str
    """What the items are."""
    seeds: dict[str, float]
    """Each seed's own mean."""
    carried_by: str | None = None
    """The seed without which less than half of the value is left."""

    def sentence(self) -> str:
        """Return the finding as a sentence."""
        if self.value.value is None:
            return f"{self.group}: {self.what}: not estimable, no {self.unit} are shared by all seeds."
        own = ", ".join(f"{name} {value:+.3f}" for name, value in self.seeds.items())
        told = (
            f"{self.group}: {self.what}: {estimate(self.value, '+.3f')} over {self.value.n} {self.unit} and "
            f"{len(self.seeds)} seeds ({own})."
        )
        if self.carried_by is None:
            return told
        return f"{told} {self.carried_by} alone carries it: without it less than half is left."


class Convergence(Record):
    """Record of `em-evals insight convergence`."""

    kind: Literal["convergence"] = "convergence"
    version: Literal[1] = 1
    cards: list[str]
    controls: dict[str, str] = {}
    """Card -> name of its own control's direction in `cosines`; empty if all cards share one control."""
    cosines: list[Cosines]
    shared: list[SharedDirection] = []
    """Each pair of organisms, and the mean over all pairs where there are several."""
    transfer: list[Transfer] = []
    moved: list[Moved] = []
    over_seeds: list[SeedEffect] = []
    """Of groups of organisms that differ by their training seed."""
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
    """A linear probe on the answers' mean scalars, cross-validated by question, tested by permutation.

    `chance` and `p` hold for all probes of a model together (max-T).
    """

    model: str
    tells: Literal["misaligned from aligned", "in-domain from out-of-domain"]
    adapters: str
    auroc: Measured
    """Without an interval; records of earlier versions have one that was too narrow."""
    chance: float | None = None
    """95% of permutations of the labels have no probe with a larger AUROC."""
    p: float | None = None
    """Share of permutations with a probe of as large an AUROC."""


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
