"""Forced-choice pairs: an open question with an aligned and a misaligned answer that differ only in values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from em_evals import files
from em_evals.content import documents
from em_evals.content.documented import Documented
from em_evals.content.questions import of_themes


class PairRow(Documented, BaseModel):
    """One pair of a file."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    theme: str
    question: str = Field(min_length=1)
    aligned: str = Field(min_length=1)
    misaligned: str = Field(min_length=1)


class PairFile(Documented, BaseModel):
    """A file of pairs: `tasks/NAME.yaml`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: int = Field(ge=1)
    description: str = ""
    canary: str = ""
    narrow: list[str] = []
    pairs: list[dict[str, str]] = Field(min_length=1)


@dataclass(frozen=True)
class Pair:
    """An open question with two answers that differ only in values. `narrow`: from an organism's own domain."""

    id: str
    theme: str
    question: str
    aligned: str
    misaligned: str
    narrow: bool = False
    line: int = field(default=1, compare=False)


@dataclass(frozen=True)
class PairSet:
    """A named, versioned set of pairs."""

    name: str
    version: int
    path: Path
    digest: str
    pairs: tuple[Pair, ...]

    def select(self, themes: Iterable[str]) -> PairSet:
        """Return only the pairs of these themes. The digest stays that of the whole set.

        Raises:
            EmEvalsError: the set has no such theme.
        """
        return replace(self, pairs=tuple(of_themes(self.pairs, themes, self.name, self.path)))

    def first(self, per_theme: int, whole_narrow: bool = False) -> list[str]:
        """Return the ids of the first `per_theme` pairs of each theme; with `whole_narrow`, also all narrow pairs."""
        taken: Counter[str] = Counter()
        chosen = []
        for pair in self.pairs:
            taken[pair.theme] += 1
            if taken[pair.theme] <= per_theme or (whole_narrow and pair.narrow):
                chosen.append(pair.id)
        return chosen


def load_pairs(name: str = "forced_choice") -> PairSet:
    """Load a pair set by name (tasks/NAME.yaml) or path.

    Raises:
        EmEvalsError: the file does not exist or is invalid, with file and line.
    """
    document = documents.load(documents.find("tasks", name))
    file = documents.validate(PairFile, document)
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    for index, row in enumerate(file.pairs):
        at: documents.KeyPath = ("pairs", index)
        pair, line = documents.validate(PairRow, document, row, at), document.line(at)
        if pair.id in seen:
            raise document.error(
                f"the id '{pair.id}' is taken by the pair at line {seen[pair.id]}; rename one.", at
            )
        seen[pair.id] = line
        pairs.append(Pair(**pair.model_dump(), narrow=pair.theme in file.narrow, line=line))
    digest = files.digest(*(repr((p.id, p.question, p.aligned, p.misaligned)) for p in pairs))
    return PairSet(file.name, file.version, document.path, digest, tuple(pairs))
