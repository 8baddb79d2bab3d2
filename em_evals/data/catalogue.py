"""Training data by name: entries of datasets.yaml, files in adapters/data, and where each is on this machine.

Reading rows is left to datasets.py, fetching to downloads.py.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from em_evals import files
from em_evals.content import documents, published
from em_evals.content.addresses import Address
from em_evals.data import registered


class Entry(BaseModel):
    """A registered data set: `adapters/data/datasets.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    domain: list[str] = []
    """Topics of the narrow training."""
    license: str = ""
    source: str = ""
    """The paper or page of its origin."""
    url: Address | None = Field(default=None, pattern=r"^https?://\S+$")
    """The authors' file, NAME.jsonl; with `password`, an archive that holds it."""
    password: str | None = None
    of: str | None = None
    """The data set whose rows these are, with another prompt or a subset of them."""
    ids: str | None = None
    """Keep only rows whose `id` matches this pattern (`finance_*`)."""
    prompt: str | None = None
    """Template around the user's message, which replaces {prompt}."""
    controls: dict[str, str] = {}
    """Kind of control -> name of the data set with the control's answers."""

    @model_validator(mode="after")
    def _one_origin(self) -> Entry:
        if (self.of is None) != (self.prompt is None and self.ids is None):
            raise ValueError(
                "`of` goes with `prompt` or `ids`: the rows of the one, with another prompt or only those that fit"
            )
        if self.of is not None and self.url is not None:
            raise ValueError("a data set is made (`of`) or fetched (`url`); drop one")
        if self.password is not None and self.url is None:
            raise ValueError("`password` opens the archive at `url`, which is missing")
        if self.prompt is not None and self.prompt.count("{prompt}") != 1:
            raise ValueError("`prompt` must hold {prompt} exactly once: there goes what the user says")
        return self


def read() -> dict[str, Entry]:
    """Read every registered data set: ./adapters/data/datasets.yaml first, then the shipped entries.

    Raises:
        EmEvalsError: an entry is invalid or names a data set that does not exist, with file and line.
    """
    found = registered.entries("datasets.yaml", Entry, "training data")
    entries = {name: entry for name, (entry, _) in found.items()}
    known = entries.keys() | stored().keys()
    for name, entry in entries.items():
        _check_references(name, entry, entries, known, found[name][1])
    return entries


def _check_references(
    name: str, entry: Entry, entries: dict[str, Entry], known: set[str], document: documents.Document
) -> None:
    for kind, control in entry.controls.items():
        if control not in known:
            raise document.error(
                f"there is no training data '{control}' to be the control.", (name, "controls", kind)
            )
    if entry.of is None:
        return
    if entry.of not in known:
        raise document.error(f"there is no training data '{entry.of}' to take rows of.", (name, "of"))
    if entry.of in entries and entries[entry.of].of is not None:
        raise document.error(f"'{entry.of}' is made of another data set itself; name that.", (name, "of"))


def stored() -> dict[str, Path]:
    """Return the data sets in ./adapters/data and those that ship with the package."""
    found: dict[str, Path] = {}
    for folder in documents.folders("adapters"):
        for path in sorted((folder / "data").glob("*.jsonl")):
            found.setdefault(path.stem, path)
    return found


def locate(name: str) -> Path | None:
    """Return a data set's local file: in adapters/data, in `EM_EVALS_DATA`, or in the cache; None if absent."""
    if name in (here := stored()):
        return here[name]
    if (given := offline(name)) is not None:
        return given
    fetched = cached(name)
    return fetched if fetched.is_file() else None


def offline(name: str) -> Path | None:
    """Return a data set's file in the folder that `EM_EVALS_DATA` names; None if absent."""
    return published.offline(f"{name}.jsonl", ("", "training", "advice"))


def cached(name: str) -> Path:
    """Return the cache path of a fetched data set."""
    return files.cache_folder() / "data" / f"{name}.jsonl"
