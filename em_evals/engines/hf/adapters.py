"""Adapters that an engine keeps in its base's bank: loaded on first use, evicted least recently used first."""

from __future__ import annotations

from collections.abc import Sequence

from em_evals.content.intervention import Intervention
from em_evals.models.lora import Bank, written

MOST = 16
"""Adapters that stay in memory (float32, as PEFT holds them) when no row needs them."""


class Kept:
    """Names of the bank's adapters, each with its scales, in order of last use."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, int, tuple[Intervention, ...]], str] = {}

    def name(self, bank: Bank, source: str | None, interventions: Sequence[Intervention]) -> str | None:
        """Return the bank's name of an adapter with its scales, loaded on first use; None for the bare base.

        Raises:
            EmEvalsError: it does not fit the base.
        """
        if source is None:
            return None
        scales = tuple(one for one in interventions if one.op == "scale_adapter")
        key = source, written(source), scales
        if key not in self._names:
            self._names[key] = bank.load(source, scales)
        self._names[key] = self._names.pop(key)
        return self._names[key]

    def unload(self, bank: Bank, used: set[str | None]) -> None:
        """Drop the least recently used adapters above the limit; adapters in `used` stay."""
        spare = len(self._names) - MOST
        if spare > 0:
            idle = [key for key, name in self._names.items() if name not in used]
            for key in idle[:spare]:
                bank.drop(self._names.pop(key))
