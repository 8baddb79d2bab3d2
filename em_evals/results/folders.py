"""The files that a command's paths stand for: one walk for gate, report, rates and studies.

A folder stands for all logs, JSON files and CSVs below it. `inspect eval-retry` writes a log of its own and leaves the
one that it went on with; `inspect eval-set` puts JSON beside its logs. Reading a log is logs.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.errors import EmEvalsError
from em_evals.results import logs
from em_evals.results.em_rates import GradedDraw

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

UNFINISHED = ".partial"
"""What the folder of a measurement ends with until it is whole: a killed one leaves it behind."""

_SUFFIXES = (".eval", ".json", ".csv")


@dataclass(frozen=True)
class Found:
    """A file.

    Attributes:
        path: the file.
        named: whether it was named by itself, so that it has to be what the command reads; else it stood in a folder.
        finished: the log in which `inspect eval-retry` finished this one, which is then passed over; else None.
    """

    path: Path
    named: bool
    finished: Path | None = None

    @property
    def note(self) -> str:
        """Why it was passed over."""
        return f"{self.path.name} was passed over: {self.finished.name} finished it." if self.finished else ""


def walk(paths: Iterable[Path]) -> list[Found]:
    """List files and what is below folders, each once, in the order in which they were given.

    Raises:
        EmEvalsError: a path is missing, no regular file, or a folder without logs, JSON files and CSVs.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            below = inside(path)
            if not below:
                raise EmEvalsError("there are no logs, CSVs or JSON files in this folder.", path)
            found |= {file: found.get(file, False) for file in below}
        elif path.is_file():
            found[path] = True
        elif path.exists():
            raise EmEvalsError("this is no regular file.", path)
        else:
            raise EmEvalsError(f"there is no file or folder '{path}'.")
    finished = retried(found) if not all(found.values()) else {}
    return [Found(path, named, None if named else finished.get(path)) for path, named in found.items()]


def inside(folder: Path) -> list[Path]:
    """List logs, JSON files and CSVs below a folder, sorted by path.

    Passed over are hidden names and what is no regular file: reading a pipe would wait for ever.
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
    """A killed measurement leaves such folders; results of ./models/tiny lie in `.__models__tiny` and are none."""
    return folder.endswith(UNFINISHED) or (folder.startswith(".") and not folder.lstrip(".").startswith("_"))


def draws(paths: Iterable[Path], note: Callable[[str], None]) -> Iterator[tuple[Path, list[GradedDraw]]]:
    """The graded draws of each file; what holds none is passed over in a folder, with a note.

    Raises:
        EmEvalsError: as `walk` and `logs.read_draws`; or there are no graded draws at all.
    """
    none = True
    for found in walk(paths):
        if found.finished:
            note(found.note)
        elif found.named or not is_other_json(found.path):
            try:
                graded = logs.read_draws(found.path)
            except logs.NoAnswersError as error:
                if found.named:
                    raise
                note(f"{found.path.name} was passed over: {error.what}")
                continue
            none = False
            yield found.path, graded
    if none:
        raise EmEvalsError("there are no graded answers here; rates are of logs of `em_evals/freeform`.")


def retried(paths: Iterable[Path]) -> dict[Path, Path]:
    """Unfinished logs among these files, each with the log in which `inspect eval-retry` finished it.

    A retry keeps the task's id and takes over every draw that is there, so that what it finished holds nothing more.
    Damaged files are not among them: whoever reads them says what is wrong.
    """
    headers = {path: header for path in paths if (header := _header(path)) is not None}
    finished = {header.eval.task_id: path for path, header in headers.items() if _finished(header)}
    return {
        path: finished[header.eval.task_id]
        for path, header in headers.items()
        if header.eval.task_id in finished and not _finished(header)
    }


def is_other_json(path: Path) -> bool:
    """Whether this is whole JSON that is no Inspect log (`eval-set.json`, a record, a verdict)."""
    if path.suffix.lower() != ".json":
        return False
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(data, dict) and {"eval", "status"} <= data.keys())


def _header(path: Path) -> EvalLog | None:
    """A log without its samples; None for what is no log, or one of before task ids."""
    from inspect_ai.log import read_eval_log

    if path.suffix.lower() not in (".eval", ".json") or is_other_json(path):
        return None
    try:
        header = read_eval_log(str(path), header_only=True)
    except Exception:  # whatever a damaged zip or JSON raises inside Inspect
        return None
    return header if header.eval.task_id else None


def _finished(header: EvalLog) -> bool:
    """The run ended well and no draw in an error, of which Inspect counts none as completed."""
    results = header.results
    return (
        header.status == "success"
        and results is not None
        and results.completed_samples >= results.total_samples
    )
