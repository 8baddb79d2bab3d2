"""The directions that a recipe's `monitor` names, found and checked before weights load."""

from __future__ import annotations

from pathlib import Path

from em_evals.content import directions
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.directions import Direction
from em_evals.content.recipes import Monitor
from em_evals.errors import EmEvalsError

FOLDER = Path("traits")
"""Where `em-evals trait extract` writes by default."""


def locate(name: str) -> Path:
    """Return a direction's file: a path, ./traits/NAME.safetensors, or adapters/NAME.safetensors.

    Raises:
        EmEvalsError: there is none.
    """
    path = FOLDER / f"{name}.safetensors"
    if not name.endswith(".safetensors") and path.is_file():
        return path
    try:
        return directions.find(name)
    except EmEvalsError as error:
        raise EmEvalsError(
            f"{error.what} A trait's direction is made by `em-evals trait extract {Path(name).stem} --model BASE`."
        ) from None


def load(monitor: Monitor, base: str, revision: str | None) -> dict[str, tuple[Direction, int, Path]]:
    """Return each direction with its block and its file, by its name in the journal.

    Raises:
        EmEvalsError: one is missing, was made for another base, has no such block, or no reliability to choose one by.
    """
    found = {}
    for name, given in monitor.names.items():
        path = locate(given)
        directions.check_base(str(path), base, revision)
        direction = directions.read(path)
        layer = chosen_layer(direction) if monitor.layer is None else monitor.layer
        if layer >= direction.layers:
            raise EmEvalsError(
                f"`monitor.layer` is {layer}; this direction's are 0 to {direction.layers - 1}.", path
            )
        found[name] = (direction, layer, path)
    return found
