"""Deviations, and their tolerances.

float32: a log-probability may deviate by 1e-4 nats, a mean activation by 1e-4 of its norm.

bfloat16 and float16 round so much that no fixed number fits every model, and two exact computations in them differ.
The tolerance is measured in the same run, on the plain side alone: the deviation between plain transformers in the
card's dtype and plain transformers in float32, on the same tokens, under the same adapter and interventions. That is
the rounding of one computation. The engine rounds too, in another order, so the largest deviation may be three times
the largest rounding, and the root mean square of all deviations twice that of the roundings (for independent errors
of equal size it is 1.4 times). The roundings of the bare base, over all of its tokens, are the minimum tolerance, so
that a check of few tokens does not get a tolerance of almost 0 by chance. Where no float32 copy fits in memory,
rounding is the change of a sequence's numbers in a batch with three copies of itself, without padding; the tolerance
is then at least two units of rounding of the largest logit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXACT = 1e-4
"""Tolerance in float32: of log-probabilities in nats, of mean activations relative to their norm."""
_LARGEST, _TYPICAL = 3.0, 2.0
_UNITS = 2
_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclass(frozen=True)
class Spread:
    """The size of a set of deviations.

    Attributes:
        largest: in absolute value; NaN where any deviation is NaN.
        typical: root mean square.
        n: number of deviations.
    """

    largest: float
    typical: float
    n: int

    @classmethod
    def of(cls, deviations: Iterable[float]) -> Spread:
        """Return the spread of deviations."""
        found = [abs(one) for one in deviations]
        if not found:
            return cls(0.0, 0.0, 0)
        largest = math.nan if any(math.isnan(one) for one in found) else max(found)
        return cls(largest, math.sqrt(sum(one * one for one in found) / len(found)), len(found))


@dataclass(frozen=True)
class Tolerance:
    """The maximum of a spread; `typical` is None where only the largest deviation counts."""

    largest: float
    typical: float | None = None

    def problem(self, found: Spread) -> str | None:
        """Return why a spread is too large; None if it is not. NaN is always too large."""
        if not found.largest <= self.largest:
            return "the largest deviation exceeds the tolerance"
        if self.typical is not None and not found.typical <= self.typical:
            return (
                f"deviations are {found.typical:.2g} in the root mean square, and rounding explains "
                f"{self.typical:.2g}"
            )
        return None


class Rule:
    """The tolerances of one run.

    Args:
        dtype: the card's, as bfloat16.
        base: roundings of the bare base; None in float32.
        scale: the largest number that is rounded, where roundings were measured with copies, since no float32 model
            fits; None otherwise.
    """

    def __init__(self, dtype: str, base: Spread | None = None, scale: float | None = None) -> None:
        self._dtype = dtype
        self._base = base
        self._scale = scale

    def tolerance(self, own: Sequence[float] | None = None) -> Tolerance:
        """Return the tolerance of a check.

        Args:
            own: the roundings of its own tokens, where they were measured.
        """
        if self._base is None:
            return Tolerance(EXACT)
        mine = Spread.of(own or ())
        least = _UNITS * _EPS[self._dtype] * (self._scale or 0.0)
        return Tolerance(
            max(_LARGEST * max(self._base.largest, mine.largest), least),
            None if self._scale is not None else _TYPICAL * max(self._base.typical, mine.typical),
        )

    @property
    def words(self) -> str:
        """The rule in a sentence."""
        if self._base is None:
            return f"float32: {EXACT:g} nats, {EXACT:g} of a mean activation's norm"
        if self._scale is not None:
            return (
                f"{self._dtype}: three times what changes when plain transformers batches a sequence with copies of "
                f"itself ({self._base.largest:.2g} nats over {self._base.n} tokens), and {_UNITS} units of rounding of "
                f"the largest logit ({self._scale:.3g}) at least; no float32 copy fits into memory"
            )
        return (
            f"{self._dtype}: three times the largest deviation of plain transformers in {self._dtype} from float32 "
            f"(base: {self._base.largest:.2g} nats over {self._base.n} tokens), twice its root mean square "
            f"({self._base.typical:.2g}); for an exact comparison use -M dtype=float32"
        )
