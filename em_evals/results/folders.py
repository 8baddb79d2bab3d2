"""Find the files behind a command's paths, in the same way for gate, report, rates and studies.

A folder means all logs, JSON files and CSVs below it. `inspect eval-retry` writes a new log and keeps the one that it
resumed; `inspect eval-set` puts JSON next to its logs. Reading a log is left to logs.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals import files
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

UNFINISHED = ".partial"
"""Suffix of a measurement's folder until it is complete; an interrupted run leaves it behind."""

_SUFFIXES = (".eval", ".json", ".csv")


@dataclass(frozen=True)
class Found:
    """One file to read.

    Attributes:
        path: the file.
        named: whether the user named the file itself, so that it must be readable; False if it was found in a folder.
            finished: the log in which `inspect eval-retry` finished this one, which is then skipped; else None.
    """

    path: Path
    named: bool
    finished: Path | None = None

    @property
    def note(self) -> str:
        """Why the file was skipped; empty if it was not."""
        return f"{self.path.name} was passed over: {self.finished.name} finished it." if self.finished else ""


def walk(paths: Iterable[Path]) -> list[Found]:
    """List files, and the files below folders, each once and in the given order.

    Raises:
        EmEvalsError: a path is missing, not a regular file, or a folder without logs, JSON files and CSVs.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            below = inside(path)
            if not below:
                # Samples and training data have these endings too, so that a folder does not stand for them.
                tables = sorted([*path.rglob("*.jsonl"), *path.rglob("*.parquet")])
                hint = f" Give judged draws of other kinds by name: {tables[0]}." if tables else ""
                raise EmEvalsError(f"there are no logs, CSVs or JSON files in this folder.{hint}", path)
            found |= {file: found.get(file, False) for file in below}
        elif path.is_file():
            found[path] = True
        elif path.exists():
            raise EmEvalsError("this is not a regular file.", path)
        else:
            raise EmEvalsError(f"there is no file or folder '{path}'.")
    finished = retried(found) if not all(found.values()) else {}
    return [Found(path, named, None if named else finished.get(path)) for path, named in found.items()]


def inside(folder: Path) -> list[Path]:
    """List logs, JSON files and CSVs below a folder, sorted by path.

    Hidden names and irregular files are skipped: reading a pipe would block forever.
    """
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and not file.name.startswith(".")
        and not any(map(_hidden, file.relative_to(folder).parts[:-1]))
        and file.is_file()
    )


def _hidden(folder: str) -> bool:
    """Return whether a folder is hidden: an interrupted measurement's, or a dot folder.

    Results of ./models/tiny are in `.__models__tiny`, which does not count as hidden.
    """
    return folder.endswith(UNFINISHED) or (folder.startswith(".") and not folder.lstrip(".").startswith("_"))


def output(path: Path, inputs: Iterable[Path]) -> Path:
    """Return a command's output file after checking that it overwrites nothing that the command reads.

    Args:
        path: the output.
        inputs: files and folders; in a folder only logs and CSVs count, since earlier outputs may be there too.

    Raises:
        EmEvalsError: it is an input, a device, a pipe, or a link that leads out of its folder.
    """
    read: list[Path] = []
    for one in inputs:
        if one.is_dir() and path.exists():
            read += [file for file in inside(one) if file.samefile(path) and not is_other_json(file)]
        else:
            read.append(one)
    return files.writable(path, read)


def retried(paths: Iterable[Path]) -> dict[Path, Path]:
    """Map each unfinished log among these files to the log in which `inspect eval-retry` finished it.

    A retry keeps the task id and copies every existing draw, so the unfinished log holds nothing more. Damaged files
    are not in the result; reading them raises an error later.
    """
    headers = {path: header for path in paths if (header := _header(path)) is not None}
    finished = {header.eval.task_id: path for path, header in headers.items() if _finished(header)}
    return {
        path: finished[header.eval.task_id]
        for path, header in headers.items()
        if header.eval.task_id in finished and not _finished(header)
    }


def is_other_json(path: Path) -> bool:
    """Return whether the file is valid JSON but not an Inspect log (`eval-set.json`, a record, a verdict)."""
    if path.suffix.lower() != ".json":
        return False
    try:
        data = files.read_json(path)
    except EmEvalsError:
        return False
    return not (isinstance(data, dict) and {"eval", "status"} <= data.keys())


def _header(path: Path) -> EvalLog | None:
    """Read a log without its samples; None if it is not a log or predates task ids."""
    from inspect_ai.log import read_eval_log

    if path.suffix.lower() not in (".eval", ".json") or is_other_json(path):
        return None
    try:
        header = read_eval_log(str(path), header_only=True)
    except Exception:  # Inspect raises any type for a damaged zip or JSON
        return None
    return header if header.eval.task_id else None


def _finished(header: EvalLog) -> bool:
    """Return whether the run succeeded without failed draws, which Inspect does not count as completed."""
    results = header.results
    return (
        header.status == "success"
        and results is not None
        and results.completed_samples >= results.total_samples
    )
