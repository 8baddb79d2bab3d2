"""Bases on several devices: accelerate's device maps, and where a module of such a base computes.

accelerate moves a module's inputs to its device, and brings weights that are offloaded to the CPU or to disk there for
each call; between calls such weights are on the meta device. What acts on a module (an adapter, an intervention) must
be where it computes, not where its weights are.
"""

from __future__ import annotations

from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError, nearest


def check(card: ModelCard) -> None:
    """Refuse options of the placement that contradict each other.

    Raises:
        EmEvalsError: `max_memory` without an automatic `device_map`, a map together with a device, or a device that
            this machine does not have.
    """
    engine = card.engine
    if engine.max_memory is not None and not isinstance(engine.device_map, str):
        raise EmEvalsError("`max_memory` is for `device_map: auto`: say both, or neither.")
    if engine.device_map is not None and engine.device != "auto":
        raise EmEvalsError("`device` and `device_map` exclude each other: leave `device` out.")
    named = engine.device_map.values() if isinstance(engine.device_map, dict) else engine.max_memory or ()
    for place in named:
        if not _here(place):
            raise EmEvalsError(
                f"`device_map` or `max_memory` names the device {place}, which this machine does not have (GPUs: "
                f"{torch.cuda.device_count()})."
            )


def check_names(card: ModelCard, maker: Any, config: Any) -> None:
    """Refuse a map with a name that no module of the base has: it would have no effect.

    Args:
        card: names the base.
        maker: transformers' class that makes the model.
        config: the base's.

    Raises:
        EmEvalsError: there is such a name.
    """
    places = card.engine.device_map
    if not isinstance(places, dict) or set(places) == {""}:
        return
    with torch.device("meta"):
        made = maker.from_config(config, trust_remote_code=card.trust_remote_code)
    known = {name for name, _ in made.named_modules()} | {name for name, _ in made.named_parameters()}
    for name in places:
        if name not in known:
            hint = nearest(name, known)
            if not hint.startswith("did you mean"):  # a list of all of them has thousands
                hint = f"it has {', '.join(sorted(one for one in known if one and one.count('.') < 2))}."
            raise EmEvalsError(f"`device_map`: {card.base} has no module '{name}'; {hint}")


def _here(place: int | str) -> bool:
    """Return whether this machine has a device."""
    kind, _, number = str(place).partition(":")
    if kind.isdecimal() or kind == "cuda":
        return int(kind if kind.isdecimal() else number or 0) < torch.cuda.device_count()
    if kind == "mps":
        return torch.backends.mps.is_available()
    if kind == "xpu":
        return int(number or 0) < torch.xpu.device_count()
    return True  # cpu, disk


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
