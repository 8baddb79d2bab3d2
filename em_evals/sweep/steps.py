"""A step of a sweep: one command, what it waits for, and the record that it leaves."""

from __future__ import annotations

import json
import shlex
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


def place(folder: Path, name: str) -> Path:
    """Return a step's folder."""
    return folder / name


def adapter(folder: Path, model: str) -> Path:
    """Return the folder of a model that the sweep trains."""
    return folder / "adapters" / model


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
    with files.atomic(place(folder, record.name) / RECORD) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def is_done(step: Step, folder: Path) -> bool:
    """Return whether this very step is done: the same digest, and its files are there."""
    record = read_record(folder, step.name)
    if record is None or record.state != "done" or record.digest != step.digest:
        return False
    home = adapter(folder, step.model) if step.measure == "train" else place(folder, step.name)
    return all(files.is_file(home / name) for name in record.outputs)
