"""Sort input files by kind: logs, judged CSVs, verdicts, records and trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import read_json
from em_evals.report import answers, labels, reference
from em_evals.report.answers import Measured
from em_evals.report.looks import Looks
from em_evals.report.reference import Reference
from em_evals.results import folders, records, tables
from em_evals.results.records import (
    Conditional,
    Convergence,
    Diff,
    Drift,
    Forecast,
    GateVerdict,
    Lens,
    LoraScalars,
    Phase,
    Retention,
    Scaling,
    Screening,
    SteeringStudy,
    TraitBases,
    TraitMap,
    TraitMonitor,
    TraitShift,
    Verification,
)


@dataclass
class Inputs:
    """All inputs of a report, in the given order."""

    measured: list[Measured] = field(default_factory=list)
    verdicts: list[GateVerdict] = field(default_factory=list)
    steering: list[SteeringStudy] = field(default_factory=list)
    convergence: list[Convergence] = field(default_factory=list)
    retention: list[Retention] = field(default_factory=list)
    scalars: list[LoraScalars] = field(default_factory=list)
    trajectories: list[Phase] = field(default_factory=list)
    scaling: list[Scaling] = field(default_factory=list)
    conditional: list[Conditional] = field(default_factory=list)
    traits: list[TraitMap] = field(default_factory=list)
    verified: list[Verification] = field(default_factory=list)
    monitored: list[TraitMonitor] = field(default_factory=list)
    shifts: list[TraitShift] = field(default_factory=list)
    bases: list[TraitBases] = field(default_factory=list)
    lenses: list[Lens] = field(default_factory=list)
    diffs: list[Diff] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    screenings: list[Screening] = field(default_factory=list)
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

    @property
    def looks(self) -> Looks:
        """Color and mark of each model, the same in every chart."""
        names = [entry.label for entry in self.measured]
        return Looks.of([*names, *(name for study in self.retention for name in _compared(study))])


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
    kept: dict[str, list[Any]] = {
        "steer": inputs.steering,
        "convergence": inputs.convergence,
        "retention": inputs.retention,
        "lora-scalars": inputs.scalars,
        "phase": inputs.trajectories,
        "scaling": inputs.scaling,
        "conditional": inputs.conditional,
        "trait-map": inputs.traits,
        "verify": inputs.verified,
        "trait-monitor": inputs.monitored,
        "trait-shift": inputs.shifts,
        "trait-bases": inputs.bases,
        "lens": inputs.lenses,
        "diff": inputs.diffs,
        "forecast": inputs.forecasts,
        "drift": inputs.drifts,
        "screening": inputs.screenings,
        "gate": inputs.verdicts,
    }
    if "kind" in data and (named or data["kind"] in list(kept)):
        record = records.read(path)
        kept[record.kind].append(record)
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
