"""The record of `em-evals insight diff`."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Measured, Record


class DiffToken(Record):
    """A token whose probability moved, summed over all positions."""

    token: str
    gain: float
    """Mean of p (log p − log p_base) for tokens that rose, of p_base (log p − log p_base) for those that fell; nats."""
    probability: float
    """Mean probability in the organism."""
    base_probability: float
    control_gain: float | None = None
    p: float | None = None
    """That the gain differs from the control's: sign flips over folds of texts, for all tokens together (max-T)."""


class DiffContext(Record):
    """A position with a large shift."""

    before: str
    next: str
    """The text's own next token."""
    kl: float
    """KL(organism ‖ base) of the next token, nats."""
    control_kl: float | None
    realized: float
    """Change of the log-probability of the text's own next token."""
    tokens: list[str]
    """Those that rose most."""


class DiffCluster(Record):
    """Contexts that move the same tokens."""

    tokens: list[str]
    contexts: list[str]
    weight: float
    """Its share of the kept contexts' shift."""


class Diff(Record):
    """Next-token distributions of an organism and its base over texts."""

    kind: Literal["diff"] = "diff"
    version: Literal[1] = 1
    card: str
    control: str | None
    base: str
    dtype: str
    texts: int
    positions: int
    kl: Measured
    """Mean KL(organism ‖ base) per position, nats; interval over texts."""
    control_kl: Measured | None
    realized: Measured
    """Mean change of the log-probability of the texts' own tokens."""
    up: list[DiffToken]
    down: list[DiffToken]
    contexts: list[DiffContext]
    clusters: list[DiffCluster]
    notes: list[str] = []
    provenance: dict[str, str] = {}
