"""Records of traits: the geometry of their directions, and projections of a log's samples."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Measured, Record
from em_evals.results.records.claims import Claim, Null, Specificity


class TraitCosine(Record):
    """The cosine of two traits' directions at the map's layer."""

    one: str
    other: str
    cosine: float
    corrected: Measured
    """Corrected for noise, with a bootstrap interval over folds of questions."""


class Dimensions(Record):
    """How many dimensions a set of directions fills: participation ratio of their unit vectors."""

    value: float
    """(sum of eigenvalues)² / sum of squares, 1 to the number of directions."""
    shares: list[float]
    """Shares of the principal components, largest first."""
    halves: tuple[float | None, float | None]
    """The same of directions from even and from odd folds of questions: how far noise moves it."""
    nulls: list[Null]
    """p is the share of random sets with as *few* dimensions."""


class Separation(Record):
    """How far apart two kinds of concepts lie in a base: 1 - mean |corrected cosine| between them."""

    one: str
    other: str
    index: Measured
    """0: the same directions; 1: orthogonal ones. The interval is a bootstrap over folds of questions; n are folds."""
    within: Measured
    """1 - mean |corrected cosine| between directions of the second kind: what the index is read against."""


class TraitMap(Record):
    """Record of `em-evals trait map`."""

    kind: Literal["trait-map"] = "trait-map"
    version: Literal[1] = 1
    base: str
    layer: int
    names: list[str]
    """In the order of the clustering: neighbors are alike."""
    kinds: dict[str, str]
    reliability: dict[str, float | None]
    cosines: list[TraitCosine]
    merges: list[tuple[int, int, float]] = []
    """Average linkage on 1 - cosine: two clusters and their distance; clusters from len(names) on are merges."""
    dimensions: Dimensions
    separation: Claim | None = None
    """Mean |cosine| within the kinds of traits minus that between them, against permuted kinds."""
    separations: list[Separation] = []
    """Of every other kind from `em`: of style traits, and of narrow concepts (`--narrow`)."""
    specific: dict[str, Specificity] = {}
    """Trait -> whether its held-out cosine exceeds every null and its cosine with every other trait."""
    notes: list[str] = []
    provenance: dict[str, str] = {}


class Correlation(Record):
    """Correlation of a projection with judged scores."""

    condition: str
    """`overall`, or `within conditions` (the mean over them, weighted by their questions)."""
    r: float | None
    n: int
    """Questions, counted under each condition."""
    claim: Claim | None = None


class TraitMonitor(Record):
    """Record of `em-evals trait monitor`."""

    kind: Literal["trait-monitor"] = "trait-monitor"
    version: Literal[1] = 1
    card: str
    direction: str
    position: Literal["last_prompt", "answer_mean"]
    score: str | None
    layer: int
    correlations: list[Correlation] = []
    means: dict[str, Measured] = {}
    """Condition -> mean projection over its samples at `layer`."""
    turns: list[Measured] = []
    """Mean projection at each assistant turn, in order; empty where samples have one turn."""
    samples: int
    notes: list[str] = []
    provenance: dict[str, str] = {}


class CardShift(Record):
    """A model's shift from its base along a trait, at the trait's layer, on the trait's test prompts."""

    card: str
    control: str | None = None
    shift: Measured
    """Mean of (h - h of the base)·u over prompts, with Student's interval over them."""
    minus_control: Measured | None = None
    """The same minus the control's, prompt by prompt."""
    score: float | None = None
    """How much of the trait it shows after training."""


class TraitShiftOf(Record):
    """Shifts along one trait, and their correlation with what the models show."""

    trait: str
    layer: int
    """Of the shifts; the correlation is read at its largest layer, as those of the nulls are."""
    cards: list[CardShift]
    r: float | None
    n: int
    """Units of the correlation."""
    claim: Claim
    q: float | None
    """The claim's largest p over its nulls, after Benjamini and Hochberg's correction over traits."""
    verdict: Specificity


class TraitShift(Record):
    """Record of `em-evals trait shift`."""

    kind: Literal["trait-shift"] = "trait-shift"
    version: Literal[1] = 1
    base: str
    position: Literal["last_prompt", "answer_mean"]
    units: dict[str, list[str]]
    """Unit of the correlation -> its models; seeds of one recipe are one unit."""
    traits: list[TraitShiftOf]
    notes: list[str] = []
    provenance: dict[str, str] = {}


class BaseSeparation(Record):
    """A base: how separated its concepts are, and what it does."""

    base: str
    layer: int
    index: Measured
    rate: float


class TraitBases(Record):
    """Record of `em-evals trait bases`: separation of concepts against rates, over bases."""

    kind: Literal["trait-bases"] = "trait-bases"
    version: Literal[1] = 1
    concepts: str
    """The kind of concepts that are separated from the harmful ones."""
    bases: list[BaseSeparation]
    r: float | None
    """Spearman's rank correlation."""
    claim: Claim
    provenance: dict[str, str] = {}
