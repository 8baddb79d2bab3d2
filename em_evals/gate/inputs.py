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
    found: dict[str, tuple[Evidence, Path]] = {}
    more: dict[str, list[tuple[Evidence, Path]]] = {}
    seeds: dict[tuple[str, str], dict[str, Evidence]] = {}
    own_bases: dict[str, Evidence] = {}
    problems: list[str] = []
    notes: list[str] = []
    for name in paths:
        path = baseline.find(str(name))
        before = len(found), len(seeds), len(problems), sum(map(len, more.values()))
        try:
            files = folders.walk([path])
        except EmEvalsError as error:
            problems.append(str(error))
            continue
        notes += [file.note for file in files if file.finished]
        for file in files:
            if file.finished:
                continue
            try:
                for evidence in _of_file(file.path, file.named, own_bases):
                    if (own := groups.member(evidence, seed_groups or {})) is not None:
                        if own[1] in (known := seeds.setdefault((own[0], evidence.key), {})):
                            problems.append(_twice(evidence, file.path, (known[own[1]], file.path)))
                        known[own[1]] = evidence
                    elif evidence.key in found:
                        more.setdefault(evidence.key, []).append((evidence, file.path))
                    else:
                        found[evidence.key] = evidence, file.path
            except EmEvalsError as error:
                problems.append(str(error))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                # Input files are untrusted: a bad value makes the verdict "invalid"; the other files are still read.
                problems.append(_damaged(file.path, error))
        after = len(found), len(seeds), len(problems), sum(map(len, more.values()))
        if after == before and not seeds:
            problems.append(f"{path}: there are no logs, results or judged CSVs here.")
    evidence_of = {key: evidence for key, (evidence, _) in found.items()}
    listed = dict(seed_groups or {})
    alike, by_recipe, told = groups.found(
        {key: [found[key][0], *(evidence for evidence, _ in others)] for key, others in more.items()}
    )
    for key, others in more.items():
        if any(key == one for _, one in alike):
            del evidence_of[key]
        else:
            problems += [_twice(evidence, file, found[key]) for evidence, file in others]
    listed |= by_recipe
    notes += told
    for (group, key), own_seeds in (seeds | alike).items():
        try:
            if key in evidence_of:
                raise EmEvalsError(
                    f"{key} is of the group {group} and of {evidence_of[key].model} too; name one."
                )
            evidence_of[key] = groups.merged(group, listed[group], own_seeds)
        except EmEvalsError as error:
            problems.append(str(error))
    return Side(lm_eval.with_own_group(evidence_of), tuple(problems), tuple(notes), own_bases)


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
        assert isinstance(record, records.Conditional)  # noqa: S101 - by its kind
        evidence, base = cues.of_record(record, path)
        own_bases[evidence.key] = base
        return [evidence]
    if chosen:
        raise EmEvalsError(
            "this JSON is not an Inspect log, lm-eval result, baseline or record of `em-evals conditional`.",
            path,
        )
    return []
