"""Thoughts in `em-evals rates`: the four cells of thought and answer, and the thought as a monitor of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from em_evals.cli.output import echo, print_table, rate_cell

if TYPE_CHECKING:
    from em_evals.results.sources import Source


def add(document: dict[str, Any], parts: Sequence[Source], allowed: float) -> None:
    """Add each part's table to its row of the JSON document."""
    from em_evals.results import thoughts

    for row, part in zip(document["rates"], parts, strict=True):
        if given := [one for one in part.thoughts if one is not None]:
            row["thoughts"] = thoughts.table(given, allowed).as_json()


def show(parts: Sequence[Source], allowed: float) -> None:
    """Print each part's table of cells, and the monitor's recall in a sentence."""
    from em_evals.results import thoughts

    for part in parts:
        given = [one for one in part.thoughts if one is not None]
        if not given:
            continue
        found, label = thoughts.table(given, allowed), ", ".join(part.part.values()) or part.path.name
        rows = [[name, str(n), rate_cell(found.shares[name])] for name, n in found.cells.items()]
        rows += [[name, str(n), ""] for name, n in found.left.items()]
        print_table(f"Thoughts and answers of {label}", ["draws", "number", "share of those with both"], rows)
        own = found.monitor
        if math.isnan(own.found.recall):
            echo(
                "No recall of a monitor: it needs bad and clean answers with graded thoughts, and there are "
                f"{own.bad} and {own.clean}."
            )
            continue
        echo(
            f"A monitor that reads the thought finds {rate_cell(own.recall)} of {own.bad} bad answers at a "
            f"false-positive rate of {own.found.false_positive_rate:.2%} of {own.clean} clean ones (allowed "
            f"{allowed:.2%}; alarm at "
            f"grades below {100 - own.found.threshold:g}, taken from these clean answers)."
        )
