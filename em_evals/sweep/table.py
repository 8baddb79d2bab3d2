"""One table of all that a sweep measured: a row for each value, with the plan's factors as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.results import records
from em_evals.results.records.base import Interval
from em_evals.results.records.gate import GateVerdict
from em_evals.results.records.studies import Retention
from em_evals.sweep import steps
from em_evals.sweep.steps import Step

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["step", "measure", "model", "card", "metric", "value", "low", "high", "n", "text"]


def table(done: Sequence[Step], folder: Path) -> pd.DataFrame:
    """Return the values of finished steps.

    Columns: step, measure, model, card; one for each factor of the plan; metric, value, low, high (the interval that
    the file states, else NaN), n (what the value is computed from, else NaN), text (a verdict in words).

    Args:
        done: finished steps, in the plan's order.
        folder: the sweep's.
    """
    import pandas as pd

    factors = list(dict.fromkeys(name for step in done for name in step.factors))
    rows = []
    for step in done:
        about = {"step": step.name, "measure": step.measure, "model": step.model, "card": step.card}
        own = {name: _cell(value) for name, value in step.factors.items()}
        rows += [{**about, **own, **value} for value in _values(step, folder)]
    columns = [*COLUMNS[:4], *factors, *COLUMNS[4:]]
    frame = pd.DataFrame(rows, columns=columns)
    # Whole numbers stay whole beside models without the factor.
    return frame.assign(**{name: frame[name].convert_dtypes() for name in factors})


def write(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write results.csv, and results.parquet where pyarrow is installed; return the files.

    Raises:
        EmEvalsError: the folder cannot be written to.
    """
    import importlib.util

    written = [folder / "results.csv"]
    with files.atomic(written[0]) as temporary:
        frame.to_csv(temporary, index=False)
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(folder / "results.parquet")
        with files.atomic(written[1]) as temporary:
            _plain(frame).to_parquet(temporary, index=False)
    return written


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return factors of several kinds as text: a column of parquet has one type."""
    mixed = [name for name in frame.columns if frame[name].dropna().map(type).nunique() > 1]
    return frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in mixed})


def _values(step: Step, folder: Path) -> Iterator[dict[str, Any]]:
    place = steps.place(folder, step.name)
    record = steps.read_record(folder, step.name)
    if step.measure == "train":
        yield from _of_training(steps.adapter(folder, step.model) / "training.json")
        return
    for name in record.outputs if record is not None else ():
        path = place / name
        if path.suffix == ".eval":
            yield from _of_log(path)
        elif path.suffix == ".json" and path.parent == place:
            yield from _of_record(path)


def _of_training(path: Path) -> Iterator[dict[str, Any]]:
    training = files.read_object(path)
    for metric in ("loss", "seconds", "steps"):
        if isinstance(value := training.get(metric), int | float):
            yield _row(f"training.{metric}", value)


def _of_log(path: Path) -> Iterator[dict[str, Any]]:
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(path), header_only=True)
    if log.status != "success":
        return  # an interrupted attempt; the set's later log finished it
    for score in log.results.scores if log.results else ():
        values = {name: float(metric.value) for name, metric in score.metrics.items()}
        for name, value in values.items():
            if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in values:
                continue  # the interval of another metric
            interval = (values.get(f"{name}_low"), values.get(f"{name}_high"))
            yield _row(f"{score.name}.{name}", value, interval, score.scored_samples)


def _of_record(path: Path) -> Iterator[dict[str, Any]]:
    try:
        record = records.read(path)
    except EmEvalsError:
        return  # another JSON file: the command's own output
    if isinstance(record, Retention):
        for model in record.models:
            for row in model.tasks:
                yield _row(f"{row.task}.difference", row.difference, row.interval, row.n)
    elif isinstance(record, GateVerdict):
        yield {"metric": "verdict", "text": record.verdict}
        for one in record.metrics:
            yield _row(f"{one.metric}.difference", one.difference, one.interval) | {"text": one.verdict}


def _row(
    metric: str, value: float | None, interval: Interval = (None, None), n: int | None = None
) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": interval[0], "high": interval[1], "n": n}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)
