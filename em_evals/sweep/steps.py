"""A step of a sweep: one command, what it waits for, and the record that it leaves."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from em_evals import files
from em_evals.errors import EmEvalsError

FOLDER = "{folder}"
"""Stands for the sweep's folder in a step's command, so that the step is the same wherever the folder is."""
RECORD = ".step.json"
"""Hidden: the folder's walk for logs and records passes over it."""
OUTPUT = "output.txt"


@dataclass(frozen=True)
class Supply:
    """What a node without a shared folder needs before a step.

    Attributes:
        store: its URL.
        needs: the steps that the step waits for: name, measure, model and digest.
        cards: texts of the cards of the models that it names, by their names.
    """

    store: str
    needs: tuple[tuple[str, str, str, str], ...] = ()
    cards: Mapping[str, str] = field(default_factory=dict)

    def steps(self) -> list[Step]:
        """Return the steps that are needed, as far as they can be looked up."""
        return [
            Step(name, measure, (), model=model, digest=digest) for name, measure, model, digest in self.needs
        ]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: `MEASURE/MODEL…`, also its folder inside the sweep's.
        measure: the measure's name; `train` for trainings.
        command: the command's words; `FOLDER` stands for the sweep's folder.
        needs: names of the steps that must be done before.
        model: the model that is measured or trained; empty where the step is about all.
        card: the model's card.
        factors: values of the plan's axes.
        base: the base whose weights the step loads; a process that has them is preferred.
        accept: exit codes that are results.
        digest: of the command, of every content that it reads, and of the steps before it.
        supply: where there is a store: what is fetched first; where the step ran, its files go back there.
        light: whether it needs no GPU and loads no base.
        draws: the step whose answers it grades (sweep/apart.py).
    """

    name: str
    measure: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    model: str = ""
    card: str = ""
    factors: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    accept: tuple[int, ...] = (0,)
    digest: str = ""
    supply: Supply | None = None
    light: bool = False
    draws: str = ""

    def words(self, folder: Path) -> list[str]:
        """Return the command for a folder."""
        return [word.replace(FOLDER, str(folder)) for word in self.command]

    def line(self, folder: Path) -> str:
        """Return the command as one would type it."""
        return shlex.join(self.words(folder))


@dataclass(frozen=True)
class Record:
    """What a step left: its state, and what it cost."""

    name: str
    digest: str
    state: str
    """`running`, `done` or `failed`."""
    command: Sequence[str] = ()
    exit_code: int | None = None
    seconds: float = 0.0
    host: str = ""
    started: str = ""
    version: str = ""
    outputs: Sequence[str] = ()
    """Files that it wrote, relative to its folder (for trainings, to the adapter's)."""
    problem: str = ""
    """Why it failed: the last line of its output."""


_RECORDS = TypeAdapter(Record)
_STEPS = TypeAdapter(Step)


def place(folder: Path, name: str) -> Path:
    """Return a step's folder."""
    return folder / name


def adapter(folder: Path, model: str) -> Path:
    """Return the folder of a model that the sweep trains."""
    return folder / "adapters" / model


def write_card(folder: Path, name: str, text: str) -> None:
    """Write a model's card into the sweep's folder; an equal one stays untouched.

    Raises:
        EmEvalsError: the folder cannot be written to.
    """
    path = folder / "adapters" / f"{name}.yaml"
    if not path.is_file() or files.read_text(path) != text:
        with files.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def home(step: Step, folder: Path) -> Path:
    """Return the folder of a step's outputs: a training's are its adapter's files."""
    return adapter(folder, step.model) if step.measure == "train" else place(folder, step.name)


def from_json(text: str) -> Step:
    """Return a step that was written by `asdict`."""
    return _STEPS.validate_json(text)


def read_record(folder: Path, name: str) -> Record | None:
    """Return what a step left; None if it never began, or its record cannot be read."""
    path = place(folder, name) / RECORD
    try:
        if not path.is_file():
            return None
        return _RECORDS.validate_python(files.read_json(path))
    except (EmEvalsError, ValidationError):
        return None  # damaged by something else than us: the step is done again


def write_record(folder: Path, record: Record) -> None:
    """Write a step's record atomically.

    Raises:
        EmEvalsError: the folder cannot be written to.
    """
    write_record_at(place(folder, record.name) / RECORD, record)


def write_record_at(path: Path, record: Record) -> None:
    """Write a record atomically into a file.

    Raises:
        EmEvalsError: it cannot be written.
    """
    with files.atomic(path) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def put_aside(folder: Path, name: str) -> None:
    """Move a folder of the sweep, by its name inside it, to `replaced/`.

    Raises:
        EmEvalsError: it cannot be moved.
    """
    number = 1
    while (aside := folder / "replaced" / f"{name}.{number}").exists():
        number += 1
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / name, aside)
    except OSError as error:
        raise EmEvalsError(
            f"cannot move this folder ({error.strerror}); free its place.", folder / name
        ) from None


def is_done(step: Step, folder: Path) -> bool:
    """Return whether this very step is done: the same digest, and its files are there."""
    record = read_record(folder, step.name)
    if record is None or record.state != "done" or record.digest != step.digest:
        return False
    own = home(step, folder)
    return all(files.is_file(own / name) for name in record.outputs)
