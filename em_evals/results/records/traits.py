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
    samples: int
    notes: list[str] = []
    provenance: dict[str, str] = {}
