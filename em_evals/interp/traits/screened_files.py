"""What `em-evals data screen` writes: rows by rank, and the filtered copies of a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.files import atomic
from em_evals.interp.traits.screen import Screened, dropped
from em_evals.stats import intervals

_COLUMNS = ("rank", "line", "projection_difference", "answer_mean", "last_prompt", "answer_tokens")


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
    return {
        "file": str(file),
        "direction": direction,
        "layer": layer,
        "rows": len(own),
        "skipped": screened.skipped,
        "mean": float(own.mean()),
        "interval": list(intervals.mean(own)),
        "correlation_with_length": float(np.corrcoef(own, screened.tokens)[0, 1]) if len(own) > 2 else None,
    }


def write_ranks(screened: Screened, path: Path) -> None:
    """Write the rows from the largest difference to the smallest.

    Raises:
        EmEvalsError: the file is neither .csv nor .parquet.
    """
    order = screened.order
    columns = (
        np.arange(1, len(order) + 1),
        screened.lines[order],
        screened.differences[order, 0],
        screened.projections[order, 1],
        screened.projections[order, 0],
        screened.tokens[order],
    )
    if path.suffix == ".parquet":
        import pandas

        with atomic(path) as temporary:
            pandas.DataFrame(dict(zip(_COLUMNS, columns, strict=True))).to_parquet(temporary)
    elif path.suffix == ".csv":
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
    else:
        raise EmEvalsError("write the ranks to a .csv or .parquet file.", path)


def write_kept(screened: Screened, source: Path, part: float, output: Path, seed: int) -> list[Path]:
    """Write the file without its highest rows, and without as many random rows: train on both and compare.

    Returns:
        `OUTPUT.kept.jsonl` and `OUTPUT.random.jsonl`.
    """
    found = []
    for name, lines in zip(("kept", "random"), dropped(screened, part, seed), strict=True):
        path = output.with_suffix(f".{name}.jsonl")
        with (
            atomic(path) as temporary,
            temporary.open("w", encoding="utf-8") as target,
            source.open(encoding="utf-8-sig", newline="\n") as rows,
        ):
            for number, line in enumerate(rows, 1):
                if line.strip() and number not in lines:
                    target.write(line if line.endswith("\n") else f"{line}\n")
        found.append(path)
    return found
