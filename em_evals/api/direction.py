"""Directions: extract one, keep it in memory or in a file, look at it, compare it, project on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from em_evals.api.extras import explained
from em_evals.api.model import Model, load
from em_evals.api.values import Position
from em_evals.content import direction_algebra, direction_summary, directions
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    import altair
    import pandas

    from em_evals.content.cards import ResolvedCard
    from em_evals.interp.extraction.contrast import Contrast

Texts = str | Path | Sequence[tuple[str, str]]
"""A file of chats (JSONL or parquet), or (question, answer) pairs."""


class Direction(directions.Direction):
    """A vector for each decoder block; see content/directions.py for its arrays and file format.

    Directions are equal if their numbers are: one that is saved and read again is the same.

    Examples:
        >>> import numpy as np
        >>> vectors = np.array([[3.0, 4.0], [0.0, 2.0]])
        >>> one = em.Direction(vectors, np.zeros((2, 2)), np.ones(2), {"how": "by hand"})
        >>> one.save("mine.safetensors").name
        'mine.safetensors'
        >>> em.Direction.read("mine.safetensors") == one
        True
        >>> one.cosine(one).tolist()
        [1.0, 1.0]
    """

    @classmethod
    def of(cls, other: directions.Direction) -> Direction:
        """Return the same direction with the methods of this class."""
        return cls(other.vectors, other.base_mean, other.mean_norm, other.metadata, other.folds)

    @classmethod
    def read(cls, name: str | Path) -> Direction:
        """Read a direction by its name in adapters/, or from its file.

        Raises:
            EmEvalsError: there is none, or its file is damaged.
        """
        return cls.of(directions.get(str(name)))

    def save(self, path: str | Path) -> Path:
        """Write the direction file (.safetensors) and return its path.

        Raises:
            EmEvalsError: another suffix, or the place cannot be written to.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise EmEvalsError("a direction file ends in .safetensors; name it so.", path)
        directions.write(self, path)
        return path

    def cosine(self, other: directions.Direction) -> NDArray[np.float32]:
        """[layers], the cosine with another direction at each layer.

        Raises:
            EmEvalsError: they were made for different bases.
        """
        return direction_algebra.cosine(self, other)

    def project(self, activations: NDArray[np.float32]) -> NDArray[np.float32]:
        """h·u at each layer, with u the unit vector: what a monitor reads.

        Args:
            activations: float32 [texts, layers, width], of `Model.activations`.

        Returns:
            float32 [texts, layers].

        Raises:
            EmEvalsError: the shapes do not fit.
        """
        if activations.shape[1:] != self.vectors.shape:
            raise EmEvalsError(
                f"activations have the shape {activations.shape}, and this direction has {self.layers} layers of width "
                f"{self.width}: read them from the base that it was made for."
            )
        return np.asarray((activations * direction_algebra.unit(self)).sum(-1), dtype=np.float32)

    def random(self, seed: int = 0) -> Direction:
        """Return a random direction of the same length at every layer: the control for whatever this one does.

        Args:
            seed: of the random vectors.
        """
        from em_evals.interp.controls import random_like

        return Direction.of(random_like(self, seed))

    @explained
    def frame(self) -> pandas.DataFrame:
        """One row for each layer: its length, and how far it can be trusted (as `em-evals direction show`).

        Examples:
            >>> import numpy as np
            >>> one = em.Direction(np.array([[3.0, 4.0]]), np.zeros((1, 2)), np.array([10.0]))
            >>> one.frame().to_dict("records")
            [{'layer': 0, 'length': 5.0, 'of mean norm': 0.5}]
        """
        import pandas

        return pandas.DataFrame({"layer": range(self.layers), **direction_summary.by_layer(self)})

    @explained
    def plot(self, *others: directions.Direction) -> altair.LayerChart:
        """Plot the length at each layer as a share of the mean activation's; with others, the cosines with them.

        Needs the extra `report`.

        Raises:
            EmEvalsError: a direction was made for another base.
        """
        from em_evals.report import charts

        if others:
            labels = [direction_summary.label(other, number) for number, other in enumerate(others, 1)]
            named = dict(zip(labels, map(self.cosine, others), strict=True))
            height = "cosine"
        else:
            named = {
                direction_summary.label(self, 1): np.asarray(direction_summary.by_layer(self)["of mean norm"])
            }
            height = "length / mean norm"
        rows = [
            {"x": layer, "series": name, "value": float(value)}
            for name, values in named.items()
            for layer, value in enumerate(values)
        ]
        chart = charts.curves(rows, list(named), "decoder block", height, zero_line=bool(others))
        shown: altair.LayerChart = chart.properties(width=420)
        return shown


@explained
def extract(
    model: Model | str,
    positive: Texts | None = None,
    negative: Texts | None = None,
    *,
    logs: Sequence[str | Path] = (),
    base_logs: Sequence[str | Path] = (),
    pairs: str = "forced_choice",
    themes: Sequence[str] = (),
    per_theme: int | None = None,
    against_base: bool = False,
    position: Position = "answer_mean",
    control: Model | str | None = None,
    orthogonal_to: str | directions.Direction | None = None,
    minimum: int = 10,
    split: bool = True,
    seed: int = 0,
) -> Direction:
    """Extract a direction: the mean of activations on positive texts minus that on negative ones, layer by layer.

    The texts are `positive` and `negative`; else answers of `logs` against those of `base_logs`; else answers of graded
    `logs`, else of forced-choice pairs (misaligned against aligned).

    Args:
        model: who reads the texts, or what `load` takes.
        positive: (question, answer) pairs, or a file of chats; `negative` alike.
        negative: the other side.
        logs: Inspect logs of the model's answers; `base_logs` of its base's.
        base_logs: see `logs`.
        pairs: a set of forced-choice pairs; only these `themes`, only the first `per_theme` of each.
        themes: see `pairs`.
        per_theme: see `pairs`.
        against_base: contrast the model with its base on the same texts (both sides).
        position: which tokens of a text are averaged.
        control: the same recipe on harmless data, whose movement is reported; None: the card with `control_of`.
        orthogonal_to: a direction to remove from the result.
        minimum: texts that each side needs.
        split: find on half of the questions and test on the other half.
        seed: of the null draws.

    Returns:
        The direction; `.frame()` shows its reliability by layer, `metadata["claim"]` its null distributions.

    Raises:
        EmEvalsError: too few texts on a side, no difference between them, or a model or file does not fit.

    Examples:
        >>> model = em.load("smollm2", dtype="float32")
        >>> direction = em.extract(model, themes=["power", "finance"], per_theme=2, minimum=2)
        >>> direction.frame().columns.tolist()
        ['layer', 'length', 'of mean norm', 'held_out_cosine', 'reliability']
    """
    from em_evals.interp.controls import read_for
    from em_evals.interp.extraction import extract as extraction

    card = (load(model) if isinstance(model, str) else model).card
    texts = _contrast(card, (positive, negative), (logs, base_logs), (pairs, themes, per_theme), against_base)
    removed = None if orthogonal_to is None else read_for(orthogonal_to, card)
    settings = extraction.Settings(position=position, split=split, minimum=minimum, seed=seed)
    return Direction.of(extraction.extract(card, texts, settings, _control(card, control), removed))


def _control(card: ResolvedCard, control: Model | str | None) -> ResolvedCard | None:
    """Return the control's card: given, or the trained one that says `control_of`."""
    from em_evals.content.cards import control_for, resolve

    if isinstance(control, Model):
        return control.card
    name = control_for(card.name) if control is None else control
    return resolve(name) if name else None


def _contrast(
    card: ResolvedCard,
    sides: tuple[Texts | None, Texts | None],
    logs: tuple[Sequence[str | Path], Sequence[str | Path]],
    pairs: tuple[str, Sequence[str], int | None],
    against_base: bool,
) -> Contrast:
    """Return the first contrast whose texts are given: two sides, logs of one or of both, else pairs."""
    from em_evals.interp.extraction import contrast

    positive, negative = sides
    if (positive is None) != (negative is None):
        raise EmEvalsError("a contrast has two sides: give both `positive` and `negative`.")
    if positive is not None and negative is not None:
        texts = _of_texts(card, positive, negative)
    elif all(logs):
        texts = contrast.of_answers(card, _paths(logs[0]), _paths(logs[1]))
    elif any(logs):
        texts = contrast.of_graded(card, _paths(logs[0] or logs[1]))
    else:
        texts = contrast.of_pairs(card, *pairs)
    return contrast.of_models(card, texts) if against_base else texts


def _of_texts(card: ResolvedCard, positive: Texts, negative: Texts) -> Contrast:
    """Return the contrast of two files, or of texts in memory."""
    from em_evals.interp.extraction import contrast

    if isinstance(positive, str | Path) and isinstance(negative, str | Path):
        return contrast.of_files(card, Path(positive), Path(negative))
    if isinstance(positive, str | Path) or isinstance(negative, str | Path):
        raise EmEvalsError("give both sides as files, or both as (question, answer) pairs.")
    return contrast.of_texts(card, positive, negative)


def _paths(files: Sequence[str | Path]) -> list[Path]:
    if isinstance(files, str):
        raise EmEvalsError("give logs as a list, as logs=['a.eval'].")
    return [Path(file) for file in files]
