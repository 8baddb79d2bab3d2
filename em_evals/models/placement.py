"""Bases on several devices: accelerate's device maps, and where a module of such a base computes.

accelerate moves a module's inputs to its device, and brings weights that are offloaded to the CPU or to disk there for
each call; between calls such weights are on the meta device. What acts on a module (an adapter, an intervention) must
be where it computes, not where its weights are.
"""

from __future__ import annotations

from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError


def check(card: ModelCard) -> None:
    """Refuse options of the placement that contradict each other.

    Raises:
        EmEvalsError: `max_memory` without `device_map`, or a map together with a device.
    """
    engine = card.engine
    if engine.max_memory is not None and engine.device_map in (None,):
        raise EmEvalsError("`max_memory` is for `device_map: auto`: say both, or neither.")
    if engine.device_map is not None and engine.device != "auto":
        raise EmEvalsError("`device` and `device_map` exclude each other: leave `device` out.")


def load_options(card: ModelCard, device: torch.device, quantized: bool) -> dict[str, Any]:
    """Return the options of `from_pretrained` that place a base; empty where it is loaded and moved whole.

    Args:
        card: names the base.
        device: where it goes without a map.
        quantized: whether weights are quantized while they load, which must happen on their own device.
    """
    engine = card.engine
    if engine.device_map is not None:
        limits = {"max_memory": dict(engine.max_memory)} if engine.max_memory is not None else {}
        return {"device_map": engine.device_map, **limits}
    return {"device_map": {"": device}} if quantized else {}


def device_of(module: torch.nn.Module) -> torch.device:
    """Return the device on which a module computes."""
    for one in module.modules():
        hook = getattr(one, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            if (place := getattr(part, "execution_device", None)) is not None:
                return torch.device(place)
    found = next(module.parameters(), None)
    return found.device if found is not None else torch.device("cpu")
