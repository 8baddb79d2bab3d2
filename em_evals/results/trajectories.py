"""What a training's monitor measured, as arrays: projections of fixed prompts on directions over optimizer steps.

drift(s) = (p(s) - p(0)) / N: p is h·u at a prompt's last token, u the direction's unit vector at its block, N the mean
norm of h over the prompts before training (trait-space monitoring, arXiv 2606.07631).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content import adapter_folders
from em_evals.content.cards import read_card
from em_evals.errors import EmEvalsError
from em_evals.results.journals import read_journal, unpack

KEY = "monitor"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """A direction that a training was measured along.

    Attributes:
        name: in the journal.
        layer: its decoder block.
        digest: of the direction's numbers.
        kind: `em` or `style` for traits, else empty.
        path: its file, as it was named.
    """

    name: str
    layer: int
    digest: str
    kind: str
    path: str

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One training run's measurements.

    Attributes:
        steps: [points] optimizer steps, ascending; the first is 0.
        watched: name -> what was measured along.
        projections: name -> [points, prompts].
        means: block -> [points, width], the mean activation over the prompts.
        norms: block -> mean norm of the prompts' activations at step 0.
        prompts: identifies the prompts' tokens.
    """

    steps: tuple[int, ...]
    watched: dict[str, Watched]
    projections: dict[str, Floats]
    means: dict[int, Floats]
    norms: dict[int, float]
    prompts: str

    def drift(self, name: str) -> Floats:
        """Return [points, prompts], relative to the untrained activations' mean norm."""
        found = self.projections[name]
        return np.asarray((found - found[0]) / self.norms[self.watched[name].layer])

    def along(self, units: Floats, layer: int) -> Floats:
        """Return [points, directions], the mean drift along unit vectors ([directions, width]) at a block."""
        moved = self.means[layer] - self.means[layer][0]
        return np.asarray(moved @ np.asarray(units).T / self.norms[layer])

    def at(self, steps: Sequence[int]) -> Trajectory:
        """Return only these steps."""
        own = [self.steps.index(step) for step in steps]
        return Trajectory(
            tuple(steps),
            self.watched,
            {name: values[own] for name, values in self.projections.items()},
            {layer: values[own] for layer, values in self.means.items()},
            self.norms,
            self.prompts,
        )


def of_rows(rows: Sequence[Mapping[str, Any]], path: Path | None = None) -> Trajectory:
    """Return the trajectory in a journal's rows.

    Raises:
        EmEvalsError: nothing was monitored, or the journal is damaged.
    """
    measured = [(row["step"], row[KEY]) for row in rows if KEY in row]
    if not measured or measured[0][0] != 0:
        raise EmEvalsError(
            "this training was not monitored: train with `monitor: {traits: [...]}` in its recipe.", path
        )
    try:
        about = measured[0][1]
        watched = {name: Watched(**own) for name, own in about["directions"].items()}
        projections = {
            name: np.stack([unpack(own["traits"][name]) for _, own in measured]) for name in watched
        }
        means = {
            int(layer): np.stack([unpack(own["means"][layer]) for _, own in measured])
            for layer in about["means"]
        }
        norms = {int(layer): float(value) for layer, value in about["norms"].items()}
        prompts = str(about["prompts"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise EmEvalsError("what the monitor wrote in this journal is damaged.", path) from None
    return Trajectory(tuple(step for step, _ in measured), watched, projections, means, norms, prompts)


def read(path: Path) -> Trajectory:
    """Return the trajectory in a training.jsonl.

    Raises:
        EmEvalsError: there is none.
    """
    if not path.is_file():
        raise EmEvalsError("there is no training's journal here.", path)
    return of_rows(read_journal(path), path)


def check_same(one: Trajectory, other: Trajectory, names: tuple[str, str]) -> None:
    """Refuse two runs whose numbers cannot be subtracted.

    Raises:
        EmEvalsError: they were measured on other prompts, or along other directions of the same name, or share no step.
    """
    if one.prompts != other.prompts:
        raise EmEvalsError(f"{names[0]} and {names[1]} were monitored on different prompts.")
    for name in one.watched.keys() & other.watched.keys():
        a, b = one.watched[name], other.watched[name]
        if (a.digest, a.layer) != (b.digest, b.layer):
            raise EmEvalsError(
                f"{names[0]} and {names[1]} were monitored along different directions '{name}'."
            )
    if not one.watched.keys() & other.watched.keys():
        raise EmEvalsError(f"{names[0]} and {names[1]} have no monitored direction in common.")
    if len(set(one.steps) & set(other.steps)) < 2:
        raise EmEvalsError(f"{names[0]} and {names[1]} were monitored at no common step but the first.")


def locate(name: str) -> Path:
    """Return the journal of a trained card, of a training's folder, or the file itself.

    Raises:
        EmEvalsError: there is no such card, or it is not trained here.
    """
    path = Path(name).expanduser()
    if path.suffix == ".jsonl" or path.is_dir():
        return path / "training.jsonl" if path.is_dir() else path
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise EmEvalsError("this is no training's journal (training.jsonl).", path)
    card, place = read_card(name)
    folder = adapter_folders.find(card.adapter, place)
    if folder is None or not Path(folder).is_dir():
        raise EmEvalsError(f"the card {name} has no training here: run `em-evals train {name}`.", place)
    return Path(folder) / "training.jsonl"
