"""A claim about a direction, beside what chance gives: the null distributions that it has to exceed."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Record

Specificity = Literal["specific", "not specific", "not estimable"]
"""specific: beyond every null (p at most 0.05); not specific: within one of them; not estimable: too little to tell."""


class Null(Record):
    """A null distribution: the same measure for directions that carry nothing of the claim.

    Each draw takes its own maximum over layers, as the claim does.
    """

    name: str
    draws: int
    high: float | None
    """95% of the draws are below this; the largest draw if there are fewer than 20."""
    p: float | None
    """(1 + draws at least as large as the claim's value) / (1 + draws)."""


class Claim(Record):
    """A measure of a direction, at the layer where it is largest, and its null distributions."""

    measure: str
    value: float | None
    layer: int | None = None
    nulls: list[Null] = []
    verdict: Specificity

    def sentence(self) -> str:
        """Return the claim as a sentence."""
        if self.value is None:
            return f"{self.measure}: not estimable."
        where = "" if self.layer is None else f" at layer {self.layer}"
        told = "; ".join(
            f"{null.name} up to {null.high:.3g} (p = {null.p:.3g}, {null.draws} draws)"
            for null in self.nulls
            if null.high is not None and null.p is not None
        )
        how = "null" if self.layer is None else "each null by its own maximum over layers"
        beside = f"; {how}: {told}" if told else "; no null was drawn"
        return f"{self.verdict}: {self.measure} {self.value:.3g}{where}{beside}."
