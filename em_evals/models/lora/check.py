"""Whether an adapter fits a base, before any of its weights is loaded or fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from em_evals.models.lora import folders, matching, skeleton
from em_evals.models.lora.fit import Fit


def check(adapter: str | Path, config: Any) -> Fit:
    """Match an adapter with the model that a base's configuration describes.

    Args:
        adapter: its folder or hub id.
        config: the base's configuration, of transformers.

    Returns:
        What the adapter does where.

    Raises:
        EmEvalsError: it does not fit exactly; names the first option or tensor.
    """
    return matching.match(folders.locate(str(adapter)), skeleton.of_config(config))
