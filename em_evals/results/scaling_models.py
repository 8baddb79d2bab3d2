"""`models.yaml`: sizes of bases, and which organism stands on which base with which data; and their logs as cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from em_evals.content import documents
from em_evals.content.documented import Documented
from em_evals.errors import EmEvalsError
from em_evals.results import em_rates, folders, logs
from em_evals.results.scaling import Base, Table
from em_evals.stats.scaling import Cell


class _Strict(Documented, BaseModel):
    model_config = ConfigDict(extra="forbid")


class BaseRow(_Strict):
    """One base."""

    base: str = Field(min_length=1)
    """Its name in this file and in results."""
    family: str = Field(min_length=1)
    """Bases that share data and recipe of pretraining."""
    parameters: PositiveFloat
    tokens: PositiveFloat | None = None
    """Pretraining tokens."""
    active_parameters: PositiveFloat | None = None
    """Parameters that one token uses (mixture of experts)."""
    distilled: bool = False
    checkpoints: bool = False
    """Whether checkpoints of its pretraining are public."""
    model: str | None = None
    """Folder or hub id; needed by `--plan`."""
    revision: str | None = None
    """Branch, tag or commit: a checkpoint of the pretraining."""


class OrganismRow(_Strict):
    """One organism."""

    card: str = Field(min_length=1)
    base: str
    dataset: str
    seed: int = 0


class ModelsFile(_Strict):
    """The file."""

    bases: list[BaseRow] = Field(min_length=1)
    organisms: list[OrganismRow] = []


@dataclass(frozen=True)
class Models:
    """The file, validated."""

    path: Path
    rows: tuple[BaseRow, ...]
    organisms: Mapping[str, OrganismRow]

    @property
    def bases(self) -> dict[str, Base]:
        """Sizes by name."""
        nan = float("nan")
        return {
            row.base: Base(
                row.base,
                row.family,
                row.parameters,
                row.active_parameters or row.parameters,
                row.tokens or nan,
                row.distilled,
                row.checkpoints,
            )
            for row in self.rows
        }


def read(path: Path) -> Models:
    """Read the file.

    Raises:
        EmEvalsError: it is wrong, with the line.
    """
    document = documents.load(path)
    file = documents.validate(ModelsFile, document)
    names: set[str] = set()
    for index, row in enumerate(file.bases):
        if row.base in names:
            raise document.error(f"the base '{row.base}' is here twice; rename one.", ("bases", index))
        names.add(row.base)
    organisms: dict[str, OrganismRow] = {}
    for index, organism in enumerate(file.organisms):
        at: documents.KeyPath = ("organisms", index)
        if organism.base not in names:
            raise document.error(f"there is no base '{organism.base}' in this file.", at)
        if organism.card in organisms:
            raise document.error(f"the card '{organism.card}' is here twice; rename one.", at)
        organisms[organism.card] = organism
    return Models(path, tuple(file.bases), organisms)


def read_logs(
    paths: Iterable[Path], models: Models, *, coherent: bool = False, active: bool = False
) -> Table:
    """Read the organisms' graded logs; models that the file does not list are left out and counted.

    Args:
        paths: logs and folders of them.
        models: which organism stands on which base.
        coherent: rates among coherent draws, not among all.
        active: count the parameters that one token uses, not all.

    Raises:
        EmEvalsError: a log cannot be read, or none is of an organism in the file.
    """
    bases, number = models.bases, 0
    cells: list[Cell] = []
    left: dict[str, int] = {}
    for found in folders.walk(paths):
        if found.finished or folders.is_other_json(found.path):
            continue
        number += 1
        log = logs.read_log(found.path)
        name = logs.facts(log).model.removeprefix("local/")
        rates = em_rates.rates(logs.draws_of_log(log))
        reason = None
        if name not in models.organisms:
            reason = f"no organism '{name}' in {models.path.name}"
        elif not rates.estimable:
            reason = f"most draws of {name} have no grade"
        if reason is not None:
            left[reason] = left.get(reason, 0) + 1
            continue
        own = models.organisms[name]
        base = bases[own.base]
        cells.append(
            Cell(
                base.name,
                base.family,
                own.card,
                own.dataset,
                rates.misaligned_coherent,
                rates.coherent_answers if coherent else rates.draws,
                base.active_parameters if active else base.parameters,
                base.tokens,
                base.distilled,
            )
        )
    reasons = tuple(f"{count} of {number} logs left out: {reason}" for reason, count in left.items())
    if not cells:
        raise EmEvalsError("no log is of an organism. " + ". ".join(reasons) + ".", models.path)
    return Table(tuple(cells), number, ("logs",), reasons)
