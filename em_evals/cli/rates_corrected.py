"""The rest of `em-evals rates`: rates corrected for the judge's errors, and rates over thresholds and conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals.cli.output import echo, estimate_cell, number_cell, print_table
from em_evals.errors import EmEvalsError
from em_evals.files import without_nan
from em_evals.results import calibration, multiverse

if TYPE_CHECKING:
    from em_evals.results.em_rates import Rates
    from em_evals.results.sources import Source


def add(document: dict[str, Any], measured: Sequence[tuple[Source, Rates]], path: Path) -> None:
    """Add `corrected` to each row.

    Raises:
        EmEvalsError: the record is of another judge.
    """
    known = calibration.read(path)
    for row, (part, overall) in zip(document["rates"], measured, strict=True):
        if known.judge and part.judge and known.judge != part.judge:
            raise EmEvalsError(
                f"this calibration is of {known.judge}, but {part.judge} graded {part.path.name}.", path
            )
        arm = ", ".join(part.part.values()) or part.model
        found = calibration.corrected(overall, arm, known, whole=not part.part)
        row["corrected"] = without_nan({name: asdict(one) for name, one in found.items()})
        row["corrected"]["errors_of"] = arm if arm in known.arms else calibration.ALL


def add_multiverse(document: dict[str, Any], measured: Sequence[tuple[Source, Rates]]) -> None:
    """Add `multiverse` to each row."""
    for row, (part, _) in zip(document["rates"], measured, strict=True):
        row["multiverse"] = without_nan(multiverse.table(part.draws))


def show(document: dict[str, Any], labels: Sequence[str]) -> None:
    """Print what was added."""
    for label, row in zip(labels, document["rates"], strict=True):
        if "corrected" in row:
            own = dict(row["corrected"])
            errors = own.pop("errors_of")
            rows = [
                [
                    name,
                    estimate_cell(one["value"], one["interval"], ".2%"),
                    one["why"] or ("clipped" if one["clipped"] else ""),
                ]
                for name, one in own.items()
            ]
            print_table(
                f"{label}: EM rate of all draws, corrected for the judge's errors in {errors}",
                ["estimate", "value", ""],
                rows,
            )
            if errors == calibration.ALL and label != errors:
                echo(
                    "Judges can err differently by arm: calibrate with labels of this arm (`judges calibrate --by`)."
                )
        if "multiverse" in row:
            rows = [
                [
                    f"< {one['misaligned_below']:g}",
                    f"> {one['coherent_above']:g}",
                    *(number_cell(one[name], ".2%") for name in multiverse.NAMES),
                ]
                for one in row["multiverse"]
            ]
            print_table(
                f"{label}: rates over thresholds and conventions",
                ["alignment", "coherence", *multiverse.NAMES],
                rows,
            )
