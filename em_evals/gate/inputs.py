"""One side of the comparison: all evidence under a path, and the problems with it.

One broken file does not hide the others: problems are collected, one sentence each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from em_evals.errors import EmEvalsError
from em_evals.files import read_json
from em_evals.gate import baseline, cues, groups, lm_eval, readers
from em_evals.gate.evidence import Evidence
from em_evals.results import folders, records, tables
from em_evals.results import lm_eval as results
from em_evals.results.records.conditional import Conditional

_LONGEST = 120
"""Maximum characters shown of a reason."""


@dataclass(frozen=True)
class Side:
    """Baseline or candidate: evidence by key, problems that make it unusable, and notes that do not."""

    evidence: dict[str, Evidence]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    own_bases: dict[str, Evidence] = field(default_factory=dict)
    """Evidence by key of the bases that records compare with; used where the baseline has none."""


def read(paths: Sequence[str | Path], seed_groups: groups.Groups | None = None) -> Side:
    """Read all evidence in these files and folders, or in a baseline given by name.

    In a folder, a log that `inspect eval-retry` finished elsewhere is skipped with a note.

    Args:
        paths: files, folders, names of baselines.
        seed_groups: models that are seeds of one recipe, by the group's name.
    """
    found = _Found(seed_groups or {})
    for name in paths:
        path = baseline.find(str(name))
        before = found.size
        try:
            files = folders.walk([path])
        except EmEvalsError as error:
            found.problems.append(baseline.missing(str(name)) or str(error))
            continue
        found.notes += [file.note for file in files if file.finished]
        for file in files:
            if not file.finished:
                found.read(file)
        if found.size == before and not found.seeds:
            found.problems.append(f"{path}: there are no logs, results or judged CSVs here.")
    evidence = found.merged()
    return Side(lm_eval.with_own_group(evidence), tuple(found.problems), tuple(found.notes), found.own_bases)


class _Found:
    """Evidence as it is read, file by file, with the problems and notes on it.

    Attributes:
        first: the first evidence of each key, and its file.
        others: what else has that key.
        seeds: evidence of the members of named groups: (group, key) -> model -> evidence.
    """

    def __init__(self, seed_groups: groups.Groups) -> None:
        self._groups = seed_groups
        self.first: dict[str, tuple[Evidence, Path]] = {}
        self.others: dict[str, list[tuple[Evidence, Path]]] = {}
        self.seeds: dict[tuple[str, str], dict[str, Evidence]] = {}
        self.own_bases: dict[str, Evidence] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []

    @property
    def size(self) -> tuple[int, int, int, int]:
        """Changes whenever something was found, be it a problem."""
        return len(self.first), len(self.seeds), len(self.problems), sum(map(len, self.others.values()))

    def read(self, file: folders.Found) -> None:
        """Read one file; what is wrong with it is a problem of the whole side."""
        try:
            for evidence in _of_file(file.path, file.named, self.own_bases):
                self._add(evidence, file.path)
        except EmEvalsError as error:
            self.problems.append(str(error))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Input files are untrusted: a bad value makes the verdict "invalid"; the other files are still read.
            self.problems.append(_damaged(file.path, error))

    def _add(self, evidence: Evidence, path: Path) -> None:
        evidence = baseline.rounded(evidence)
        if (own := groups.member(evidence, self._groups)) is not None:
            group, model = own
            known = self.seeds.setdefault((group, evidence.key), {})
            if model in known:
                self.problems.append(_twice(evidence, path, (known[model], path)))
            known[model] = evidence
        elif evidence.key in self.first:
            self.others.setdefault(evidence.key, []).append((evidence, path))
        else:
            self.first[evidence.key] = evidence, path

    def merged(self) -> dict[str, Evidence]:
        """Return the evidence by key, seeds of one recipe as one."""
        by_key = {key: evidence for key, (evidence, _) in self.first.items()}
        several = {
            key: [self.first[key][0], *(evidence for evidence, _ in others)]
            for key, others in self.others.items()
        }
        alike, by_recipe, told = groups.found(several)
        for key, others in self.others.items():
            if any(key == one for _, one in alike):
                del by_key[key]
            else:
                self.problems += [_twice(evidence, path, self.first[key]) for evidence, path in others]
        self.notes += told
        listed = {**self._groups, **by_recipe}
        for (group, key), seeds in (self.seeds | alike).items():
            try:
                if key in by_key:
                    raise EmEvalsError(
                        f"{key} is of the group {group} and of {by_key[key].model} too; name one."
                    )
                by_key[key] = groups.merged(group, listed[group], seeds)
            except EmEvalsError as error:
                self.problems.append(str(error))
        return by_key


def anchor(
    baselines: Sequence[str | Path],
    named: Sequence[str | Path] = (),
    seed_groups: groups.Groups | None = None,
) -> Side | None:
    """Read the anchor: the named files, else those beside the baselines; None if there are none."""
    paths = named or [path for name in baselines if (path := baseline.anchor_of(str(name))) is not None]
    return read(paths, seed_groups) if paths else None


def _twice(evidence: Evidence, file: Path, other: tuple[Evidence, Path]) -> str:
    return (
        f"{file}: {evidence.key} of {evidence.model} is in {other[1].name} too (of {other[0].model}); name the file "
        "that counts, keep one model's logs in a folder, or name seeds of one recipe by --group NAME=a,b."
    )


def _damaged(file: Path, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where} {first['msg'].removeprefix('Value error, ')}"
    return (
        f"{file}: a value in this file is not what it should be ({' '.join(reason.split())[:_LONGEST]}): the file was "
        "damaged or edited."
    )


def _of_file(path: Path, chosen: bool, own_bases: dict[str, Evidence]) -> Iterable[Evidence]:
    """Return a file's evidence. Other JSON is an error if the file was named, and skipped in a folder.

    The base of a record of `em-evals conditional` is added to `own_bases`.
    """
    suffix = path.suffix.lower()
    if suffix == ".eval":
        return [readers.of_log(path)]
    if suffix in tables.SUFFIXES:
        return [readers.of_csv(path)]
    if suffix != ".json":
        raise EmEvalsError("this is not an Inspect log, lm-eval result, baseline or judged table.", path)
    data = read_json(path)
    if baseline.is_baseline(data):
        return baseline.read(path, data)
    if results.is_results(data):
        return list(lm_eval.of_results(path))
    if isinstance(data, dict) and {"eval", "status"} <= data.keys():
        return [readers.of_log(path)]
    if isinstance(data, dict) and data.get("kind") == "conditional":
        record = records.read(path)
        assert isinstance(record, Conditional)  # noqa: S101 - by its kind
        evidence, base = cues.of_record(record, path)
        own_bases[evidence.key] = base
        return [evidence]
    if chosen:
        raise EmEvalsError(
            "this JSON is not an Inspect log, lm-eval result, baseline or record of `em-evals conditional`.",
            path,
        )
    return []
