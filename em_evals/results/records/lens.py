"""The record of `em-evals insight lens`."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Record
from em_evals.results.records.claims import Claim

Pool = Literal["first", "after the first", "all"]
"""Positions that are averaged. The first token of a text is the attention sink: its norm can be a hundred times the
others'."""
Role = Literal["organism", "control", "organism − control", "seed"]


class LensToken(Record):
    """A token and its logit through the final norm and output matrix, standardized over the vocabulary."""

    token: str
    z: float


class LensNorm(Record):
    """The size of a difference after one block."""

    layer: int
    positions: Pool
    norm: float
    """Norm of the mean difference."""
    base_norm: float
    """Mean norm of the base's activations at these positions."""
    halves: float | None
    """Cosine of the differences on two halves of the texts; 1 where the texts do not matter."""


class LensReading(Record):
    """The logit lens of a difference at one block: tokens that it promotes, and tokens that it suppresses."""

    layer: int
    positions: str
    """A pool of positions, or one position, counted from 0."""
    up: list[LensToken]
    down: list[LensToken]


class LensModel(Record):
    """What one difference says."""

    name: str
    role: Role
    digest: str = ""
    norms: list[LensNorm]
    readings: list[LensReading]
    claims: list[Claim]


class LensCosine(Record):
    """Cosines of two models' differences by block; null where one of them is zero."""

    one: str
    other: str
    positions: Pool
    by_layer: list[float | None]


class LensVocabulary(Record):
    """Two sets of tokens from the word frequencies of training data."""

    data: str
    other: str
    found: int
    """Tokens found on one half of the rows."""
    confirmed: tuple[int, int]
    """Those that the other half confirms: of `data`, of `other`. The test uses these."""
    examples: tuple[list[str], list[str]]


class LensSample(Record):
    """A text that the base wrote with a difference added to its stream."""

    arm: str
    scale: float
    question: str
    text: str
    share: float | None = None
    """Share of the vocabulary's tokens in it that belong to `data` and not to `other`; null without any."""


class Lens(Record):
    """Activation differences at the first positions of plain texts (arXiv 2510.13900)."""

    kind: Literal["lens"] = "lens"
    version: Literal[1] = 1
    card: str
    base: str
    dtype: str
    texts: int
    positions: int
    layers: list[int]
    """Blocks at which logits are read; norms and cosines are of all."""
    models: list[LensModel]
    cosines: list[LensCosine]
    vocabulary: LensVocabulary | None = None
    steered_at: int | None = None
    samples: list[LensSample] = []
    notes: list[str] = []
    provenance: dict[str, str] = {}
