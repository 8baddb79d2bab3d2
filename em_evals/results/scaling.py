"""Tables of EM rates by organism and of bases' sizes: CSV files, ours or a user's, read into `stats.scaling.Cell`s."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.results.tables import csv_rows
from em_evals.stats.scaling import Cell

_PACKAGE = "em_evals.results.published"
# Our column, then the names that published tables use for it.
_NAMES = {
    "base": ("base_key", "model_id", "model"),
    "family": (),
    "run": ("train_run",),
    "dataset": (),
    "misaligned": ("n_misaligned",),
    "draws": ("n_draws",),
    "coherent": ("n_coherent",),
    "source": ("source_id",),
    "denominator": ("denominators",),
    "parameters": ("parameters_total",),
    "active_parameters": ("parameters_active",),
    "tokens": ("training_tokens",),
    "distilled": (),
    "checkpoints": (),
    "recipe": (),
    "comparable": (),
    "how": (),
}


@dataclass(frozen=True)
class Base:
    """A base's size.

    Attributes:
        family: bases that share data and recipe of pretraining.
        parameters: all of them; NaN where they are not published.
        active_parameters: those that one token uses (mixture of experts).
        tokens: pretraining tokens; NaN where they are not published.
        distilled: whether it was distilled in pretraining.
        checkpoints: whether checkpoints of its pretraining are public.
    """

    name: str
    family: str
    parameters: float
    active_parameters: float
    tokens: float
    distilled: bool
    checkpoints: bool


@dataclass(frozen=True)
class Table:
    """The cells that are compared, and one sentence for each group of rows that is left out.

    Attributes:
        rows: rows of the table before anything is left out.
        sources: distinct sources of the kept cells.
    """

    cells: tuple[Cell, ...]
    rows: int
    sources: tuple[str, ...]
    left_out: tuple[str, ...]


def published(name: str) -> Path:
    """Return the shipped table `em_rates` (published rates with sources) or `bases` (their sizes)."""
    return Path(str(resources.files(_PACKAGE).joinpath(f"{name}.csv")))


def read_bases(path: Path) -> dict[str, Base]:
    """Read sizes of bases from a CSV: base, family, parameters, tokens; optional active_parameters, distilled.

    Raises:
        EmEvalsError: the file or a column is missing, or a number cannot be read, with its line.
    """
    found = {}
    for line, raw in csv_rows(path, ()):
        row = _renamed(raw)
        _check(row, ("base", "family"), path, line)
        name, parameters = row["base"], _number(row, "parameters", path, line)
        if name in found:
            raise EmEvalsError(f"the base {name} has a second row: delete one.", path, line)
        active = _number(row, "active_parameters", path, line)
        found[name] = Base(
            name,
            row["family"],
            parameters,
            active if active > 0 else parameters,
            _number(row, "tokens", path, line),
            row.get("distilled", "").lower() == "yes",
            row.get("checkpoints", "").lower() == "yes",
        )
    return found


def read(
    path: Path,
    bases: Mapping[str, Base],
    *,
    comparable: Sequence[int] = (1,),
    recipe: str | None = None,
    source: str | None = None,
    coherent: bool = False,
    active: bool = False,
) -> Table:
    """Read organisms' rates from a CSV with a row per evaluation: base, dataset, misaligned, draws.

    Args:
        path: the table. Optional columns: run (the adapter; evaluations of one share it), denominator, recipe, source,
            comparable (1 same recipe and questions, 2 near, 0 not).
        bases: sizes by name.
        comparable: values of that column to keep, if the table has it.
        recipe: keep rows with this recipe only.
        source: keep rows whose source contains this text only.
        coherent: rates among coherent draws, not among all.
        active: count the parameters that one token uses, not all.

    Raises:
        EmEvalsError: a column is missing, a number cannot be read, or no row is left, with the reasons.
    """
    cells: list[Cell] = []
    sources: dict[str, None] = {}
    left: dict[str, int] = {}
    rows = 0
    for line, raw in csv_rows(path, ()):
        row = _renamed(raw)
        _check(row, ("dataset",), path, line)
        rows += 1
        if (reason := _unusable(row, bases, comparable, recipe, source, coherent)) is not None:
            left[reason] = left.get(reason, 0) + 1
            continue
        cells.append(_cell(row, bases[row["base"]], coherent, active, path, line))
        sources[row.get("source", "") or path.name] = None
    reasons = tuple(f"{count} of {rows} rows left out: {reason}" for reason, count in left.items())
    if not cells:
        raise EmEvalsError(" ".join(["no row can be compared.", *(f"{reason}." for reason in reasons)]), path)
    return Table(tuple(cells), rows, tuple(sources), reasons)


def _renamed(row: Mapping[str, str]) -> dict[str, str]:
    """Return the row under our column names."""
    found = {}
    for name, others in _NAMES.items():
        for candidate in (name, *others):
            if (value := (row.get(candidate) or "").strip()) or candidate in row:
                found[name] = value
                break
    return found


def _unusable(
    row: Mapping[str, str],
    bases: Mapping[str, Base],
    comparable: Sequence[int],
    recipe: str | None,
    source: str | None,
    coherent: bool,
) -> str | None:
    """Return why a row is not compared; None where it is."""
    if not row.get("base"):
        return "no single base (column `base`)"
    if (value := row.get("comparable")) and value not in {str(one) for one in comparable}:
        return "another recipe or other questions (column `comparable`)"
    if recipe is not None and row.get("recipe") != recipe:
        return f"the recipe is not {recipe}"
    if source is not None and source not in row.get("source", ""):
        return f"the source is not {source}"
    if not row.get("draws") or not row.get("misaligned"):
        return "no counts of draws"
    if (value := row.get("denominator")) and value not in ("all", "coherent"):
        return "another definition of the rate"
    if (value == "coherent") != coherent and not (coherent and row.get("coherent")):
        return f"the rate is not of {'coherent' if coherent else 'all'} draws"
    if row["base"] not in bases:
        return f"the base {row['base']} is not in the table of bases"
    if not bases[row["base"]].parameters > 0:
        return f"the size of {row['base']} is not published"
    return None


def _cell(row: Mapping[str, str], base: Base, coherent: bool, active: bool, path: Path, line: int) -> Cell:
    """Return a row's cell."""
    draws = _number(row, "coherent" if coherent and row.get("coherent") else "draws", path, line)
    misaligned = _number(row, "misaligned", path, line)
    if not (0 <= misaligned <= draws and draws > 0 and misaligned.is_integer() and draws.is_integer()):
        raise EmEvalsError(f"{misaligned:g} misaligned of {draws:g} draws are no counts.", path, line)
    return Cell(
        base.name,
        base.family,
        row.get("run") or f"{base.name} {row['dataset']} {line}",
        row["dataset"],
        int(misaligned),
        int(draws),
        base.active_parameters if active else base.parameters,
        base.tokens,
        base.distilled,
    )


def _check(row: Mapping[str, str], columns: Sequence[str], path: Path, line: int) -> None:
    """Refuse a row that lacks a column or its value."""
    for name in columns:
        if not row.get(name):
            raise EmEvalsError(f"the column {name} is missing or empty.", path, line)


def _number(row: Mapping[str, str], name: str, path: Path, line: int) -> float:
    """Return a number; NaN where the cell is empty."""
    if not (text := row.get(name, "")):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise EmEvalsError(f"{name} is {text[:40]!r}, not a number.", path, line)
    return value
