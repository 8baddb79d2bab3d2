"""What `em-evals data screen` writes: rows by rank, and the filtered copies of a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from em_evals.data import formats, row_files
from em_evals.errors import EmEvalsError
from em_evals.files import atomic
from em_evals.interp.traits import monitor
from em_evals.interp.traits.screen import OWN_ANSWER, Compared, Screened, dropped
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT
from em_evals.results.records.base import Measured
from em_evals.results.records.screening import ScreenedRow, Screening
from em_evals.stats import intervals, ranks

_COLUMNS = (
    "rank",
    "line",
    "projection_difference",
    "generation_free",
    "answer_mean",
    "last_prompt",
    "own_answer_mean",
    "answer_tokens",
    "language",
)
_SHOWN = 12
"""Rows whose text the record shows."""
_EXCERPT = 240
_BINS = 40


def share(text: str) -> float:
    """Parse `5%` or `0.05`.

    Raises:
        EmEvalsError: it is no share between 0 and 1.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise EmEvalsError(f"--drop-top {text}: give a share of the rows, as 5%.")
    return value


def summary(screened: Screened, file: Path, direction: str, layer: int) -> dict[str, Any]:
    """Return the numbers of a file as a whole: the mean difference with Student's interval over rows."""
    own = screened.differences[:, 0].astype(float)
    told: dict[str, Any] = {
        "file": str(file),
        "direction": direction,
        "layer": layer,
        "difference": "exact" if screened.exact else "generation-free",
        "rows": len(own),
        "skipped": screened.skipped,
        "mean": float(own.mean()),
        "interval": list(intervals.mean(own)),
        "correlation_with_length": _known(monitor.correlation(own, screened.tokens.astype(float))),
    }
    if screened.exact:
        told["rank_correlation_with_generation_free"] = _known(
            ranks.correlation(own, screened.generation_free.astype(float))
        )
    return told


def _known(value: Any) -> float | None:
    """Return a correlation; None where it does not exist, as where all answers are equally long."""
    return None if np.isnan(value) else float(value)


def record(
    screened: Screened,
    file: Path,
    direction: str,
    layer: int,
    reference: Screened | None,
    compared: Compared | None,
    provenance: dict[str, str],
) -> Screening:
    """Return the record of a screen: a histogram of the differences, and the rows that are highest."""
    own = screened.differences[:, 0].astype(float)
    other = None if reference is None else reference.differences[:, 0].astype(float)
    edges = np.histogram_bin_edges(own if other is None else np.concatenate([own, other]), _BINS)
    numbers = summary(screened, file, direction, layer)
    low, high = numbers["interval"]
    return Screening(
        file=file.name,
        direction=direction,
        layer=layer,
        exact=screened.exact,
        rows=len(own),
        skipped=screened.skipped,
        mean=Measured(value=numbers["mean"], interval=(low, high), n=len(own)),
        correlation_with_length=numbers["correlation_with_length"],
        reference_rows=0 if other is None else len(other),
        against_reference=None
        if compared is None
        else Measured(value=compared.difference, interval=compared.interval, n=len(own)),
        claim=None if compared is None else compared.claim,
        alone={} if compared is None else compared.alone,
        edges=edges.tolist(),
        counts=np.histogram(own, edges)[0].tolist(),
        reference_counts=[] if other is None else np.histogram(other, edges)[0].tolist(),
        top=_top(screened, file),
        provenance=provenance,
    )


def _top(screened: Screened, file: Path) -> list[ScreenedRow]:
    """Return the highest rows with the beginnings of their texts."""
    order = screened.order[:_SHOWN]
    wanted = {int(screened.lines[i]): (rank, i) for rank, i in enumerate(order, 1)}
    found = []
    for number, row in row_files.read(file):
        if number in wanted:
            rank, i = wanted[number]
            chat = formats.chat(row)
            found.append(
                ScreenedRow(
                    rank=rank,
                    line=number,
                    difference=float(screened.differences[i, 0]),
                    prompt=chat[-2]["content"][:_EXCERPT],
                    answer=chat[-1]["content"][:_EXCERPT],
                )
            )
    return sorted(found, key=lambda one: one.rank)


def check_output(path: Path) -> None:
    """Refuse a file that is neither .csv nor .parquet, before rows are read.

    Raises:
        EmEvalsError: it has another ending.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise EmEvalsError("write the ranks to a .csv or .parquet file.", path)


def write_ranks(screened: Screened, path: Path) -> None:
    """Write the rows from the largest difference to the smallest.

    Raises:
        EmEvalsError: the file is neither .csv nor .parquet.
    """
    check_output(path)
    order = screened.order
    columns = (
        np.arange(1, len(order) + 1),
        screened.lines[order],
        screened.differences[order, 0],
        screened.generation_free[order],
        screened.projections[order, ANSWER_MEAN],
        screened.projections[order, LAST_PROMPT],
        screened.projections[order, OWN_ANSWER],
        screened.tokens[order],
        np.array(screened.separators.languages)[order],
    )
    if path.suffix == ".parquet":
        import pandas

        with atomic(path) as temporary:
            pandas.DataFrame(dict(zip(_COLUMNS, columns, strict=True))).to_parquet(temporary)
    else:
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            writer.writerows([["" if value != value else value for value in row] for row in rows])


def write_kept(screened: Screened, source: Path, part: float, output: Path, seed: int) -> list[Path]:
    """Write the file without its highest rows, and without as many random rows: train on both and compare.

    Returns:
        `OUTPUT.kept.jsonl` and `OUTPUT.random.jsonl`.
    """
    found = []
    for name, lines in zip(("kept", "random"), dropped(screened, part, seed), strict=True):
        path = output.with_suffix(f".{name}.jsonl")
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as target:
            row_files.write_without(source, lines, target)
        found.append(path)
    return found
