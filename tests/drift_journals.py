"""Journals of monitored trainings with planted trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from em_evals.results.journals import pack


def rows(
    steps: list[int], along: dict[str, Any], means: Any, layer: int = 1, kinds: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Rows of a journal.

    Args:
        steps: measured ones, from 0.
        along: name -> [points, prompts], projections.
        means: [points, width], mean activations at the layer.
        layer: of everything.
        kinds: name -> em or style.
    """
    watched = {
        name: {
            "name": name,
            "layer": layer,
            "digest": f"of {name}",
            "kind": (kinds or {}).get(name, "em"),
            "path": f"traits/{name}.safetensors",
        }
        for name in along
    }
    found = []
    for place, step in enumerate(steps):
        entry: dict[str, Any] = {
            "traits": {name: pack(np.asarray(values)[place]) for name, values in along.items()},
            "means": {str(layer): pack(np.asarray(means)[place])},
            "norms": {str(layer): 1.0},
        }
        if step == 0:
            entry |= {"directions": watched, "prompts": "the prompts"}
        found.append({"step": step, **({"loss": 1.0} if step else {}), "monitor": entry})
    return found


def write(path: Path, *arguments: Any, **options: Any) -> str:
    """Write such a journal; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*arguments, **options)))
    return str(path)
