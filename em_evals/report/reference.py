"""The model that others are compared with: the one that was named, else the others' base, else the first file's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from em_evals.errors import EmEvalsError, nearest
from em_evals.report.answers import Measured


@dataclass(frozen=True)
class Reference:
    """The reference model and why it was chosen; empty without measurements."""

    label: str = ""
    why: str = ""

    @property
    def sentence(self) -> str:
        """The choice in words, for the page."""
        return f"Compared with {self.label}, {self.why}." if self.label else ""


def choose(measured: Sequence[Measured], name: str | None) -> Reference:
    """Choose the reference among the measured models.

    Args:
        measured: labels are models' names here, not yet made unique.
        name: a model's name, with or without its provider, or a file's name; None: decide by the cards' bases.

    Raises:
        EmEvalsError: `name` is none of the measured models or files.
    """
    if not measured:
        return Reference()
    if name is not None:
        wanted = name.removeprefix("local/")
        for entry in measured:
            if wanted in (entry.label, entry.file, entry.file.rpartition(".")[0]):
                return Reference(entry.label, "as --baseline says")
        hint = nearest(wanted, {entry.label for entry in measured})
        raise EmEvalsError(f"--baseline {name}: no file here is of this model; {hint}")
    labels = list(dict.fromkeys(entry.label for entry in measured))
    if len(labels) == 1:
        return Reference(labels[0], "the only model")
    plain = {entry.label for entry in measured if entry.base and not entry.changed}
    others = {entry.base for entry in measured if entry.label not in plain}
    bases = {entry.base for entry in measured if entry.label in plain}
    if len(plain) == 1 and bases == others:
        return Reference(plain.pop(), "the base of the others by their cards")
    return Reference(
        labels[0],
        "the first file's model: no card says which is the others' base (or name it with --baseline)",
    )


def first(measured: Sequence[Measured], label: str) -> list[Measured]:
    """Return the measurements with those of one model in front; the others keep their order."""
    return sorted(measured, key=lambda entry: entry.label != label)
