"""A folder of logs: which of them were finished in another one, and which of its files are no logs at all.

`inspect eval-retry` writes a log of its own and leaves the one that it went on with; `inspect eval-set` puts JSON
beside its logs. Reading a log is files.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

UNFINISHED = ".partial"
"""What the folder of a measurement ends with until it is whole: a killed one leaves it behind."""


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
