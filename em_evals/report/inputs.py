"""Sort input files by kind: logs, judged CSVs, verdicts, records and trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from em_evals.errors import EmEvalsError
from em_evals.files import read_json
from em_evals.report import answers, labels, reference
from em_evals.report.answers import Measured
from em_evals.report.looks import Looks
from em_evals.report.reference import Reference
from em_evals.results import folders, records, tables
from em_evals.results.records.drift import DriftAlarm
from em_evals.results.records.gate import GateVerdict
from em_evals.results.records.kinds import Study
from em_evals.results.records.studies import Retention

KINDS = [kind.model_fields["kind"].default for kind in get_args(Study) if kind is not DriftAlarm]
"""The kinds of records that have a section; a list, since a file may give anything as its kind."""
Kind = TypeVar("Kind", bound=Study)


@dataclass
class Inputs:
    """All inputs of a report, in the given order."""

    measured: list[Measured] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    """Records of any kind; `of` returns those of one."""
    reference: Reference = field(default_factory=Reference)
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Models that are seeds of one recipe, by the group's name."""
    files: list[dict[str, str]] = field(default_factory=list)
    """One provenance row per file that is not a log."""

    @property
    def sampled(self) -> list[Measured]:
        """Measurements with sampled answers."""
        return [entry for entry in self.measured if entry.answers]

    @property
    def graded(self) -> list[Measured]:
        """Measurements with graded answers, the reference's first."""
        return [entry for entry in self.sampled if entry.graded]

    @property
    def scored(self) -> list[Measured]:
        """Measurements with scored pairs."""
        return [entry for entry in self.measured if entry.pairs]

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the records of a kind."""
        return [study for study in self.studies if isinstance(study, kind)]

    @property
    def looks(self) -> Looks:
        """Color and mark of each model, the same in every chart."""
        names = [entry.label for entry in self.measured]
        return Looks.of([*names, *(name for study in self.of(Retention) for name in _compared(study))])


def read(
    paths: Sequence[Path], baseline: str | None = None, groups: dict[str, list[str]] | None = None
) -> Inputs:
    """Read files; a folder means the logs, CSVs and JSON files below it.

    Other JSON in a folder (eval-set.json), and logs that `inspect eval-retry` finished in others, are skipped.

    Args:
        paths: files and folders.
        baseline: the model that others are compared with, by its name or file; None: see reference.py.
        groups: models that are seeds of one recipe, by the group's name.

    Raises:
        EmEvalsError: a file is missing or damaged, a named file is not an input of a report, or `baseline` is none of
            the models.
    """
    inputs = Inputs(groups=groups or {})
    for file in folders.walk(paths):
        if file.finished:
            _note(inputs, file.path, f"passed over: {file.finished.name} finished it", {})
        else:
            _add(inputs, file.path, file.named)
    inputs.reference = reference.choose(inputs.measured, baseline)
    ordered = reference.first(inputs.measured, inputs.reference.label)
    inputs.measured = labels.named_apart(ordered)
    return inputs


def _compared(study: Retention) -> list[str]:
    return [study.baseline, *(model.name for model in study.models)]


def _add(inputs: Inputs, path: Path, named: bool) -> None:
    if path.suffix.lower() in tables.SUFFIXES:
        inputs.measured += answers.of_table(path)
        return
    if path.suffix.lower() != ".json":
        _add_log(inputs, path, named)
        return
    data = _json(path, named)
    if "kind" in data and (named or data["kind"] in KINDS):
        record = records.read(path)
        if isinstance(record, DriftAlarm):
            raise EmEvalsError(
                "a report shows no alarm: apply it with `em-evals insight drift --alarm`.", path
            )
        inputs.studies.append(record)
        facts = {**record.provenance, "digest": str(getattr(record, "digest", ""))}
        if isinstance(record, GateVerdict):
            facts["model"] = f"{record.candidate} against {record.baseline}"
        _note(inputs, path, record.kind, facts)
    elif {"eval", "version"} <= data.keys():
        _add_log(inputs, path, named)
    elif not named:
        _note(inputs, path, "passed over", {})
    else:
        raise EmEvalsError(
            "this JSON is neither an Inspect log nor a record of em-evals (of a study, retention or the gate).",
            path,
        )


def _add_log(inputs: Inputs, path: Path, named: bool) -> None:
    """Add a log; in a folder, one of a task that the report does not show is passed over."""
    try:
        inputs.measured += answers.of_log(path)
    except answers.OtherTaskError as error:
        if named:
            raise
        _note(inputs, path, f"passed over: {error.what}", {})


def _note(inputs: Inputs, path: Path, what: str, facts: dict[str, str]) -> None:
    told = {name: answers.without_folders(text) for name, text in facts.items() if text}
    inputs.files.append({"file": path.name, "what": what, **told})


def _json(path: Path, named: bool) -> dict[str, Any]:
    data = read_json(path)
    if isinstance(data, dict):
        return data
    if named:
        raise EmEvalsError("expected one JSON object in this file.", path, 1)
    return {}  # not one of our kinds
