"""What a card may say of devices: `device_map` and `max_memory`, refused before anything loads. No torch."""

from __future__ import annotations

import re
from typing import Any

_STRATEGIES = ("auto", "balanced", "sequential")
_DEVICE = re.compile(r"cpu|disk|mps|(cuda|xpu)(:\d+)?")
_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]I?B)", re.IGNORECASE)


def device_map(value: Any) -> Any:
    """Return a map of devices, with whole numbers as numbers.

    Raises:
        ValueError: it is none.
    """
    if value is None or value in _STRATEGIES:
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "say auto, balanced, sequential, or a device for each module's name, as {'': 0}; one device for all of "
            "it is `device: cuda`"
        )
    return {str(name): _device(place, f"the device of '{name}'") for name, place in value.items()}


def max_memory(value: Any) -> Any:
    """Return the memory of each device, with whole numbers as numbers.

    Raises:
        ValueError: a device or a size is none.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError("say it for each device, as {0: 20GiB, cpu: 60GiB}")
    found = {}
    for name, size in value.items():
        place = _number(name)
        if place not in ("cpu", "disk", "mps") and not (isinstance(place, int) and place >= 0):
            raise ValueError(f"'{name}' is no device here: say a GPU's number, cpu, disk or mps")
        amount = _number(size)
        text = isinstance(amount, str) and _SIZE.fullmatch(amount)
        if not text and not (isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0):
            raise ValueError(f"{size!r} is no size for {name}: say it as 20GiB, or in bytes")
        found[place] = amount.replace(" ", "") if isinstance(amount, str) else amount
    return found


def _device(place: Any, what: str) -> Any:
    place = _number(place)
    number = isinstance(place, int) and not isinstance(place, bool) and place >= 0
    if not number and not (isinstance(place, str) and _DEVICE.fullmatch(place)):
        raise ValueError(f"{what} is {place!r}: say a GPU's number, cuda:N, cpu or disk")
    return place


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value
