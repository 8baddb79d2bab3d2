"""Which file is what: logs, judged CSVs, verdicts, records and trajectories, out of paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from em_evals.errors import EmEvalsError
from em_evals.files import read_text
from em_evals.report import answers, labels
from em_evals.report.answers import Measured
from em_evals.report.documents import Trajectory, Verdict
from em_evals.results import folders, records
from em_evals.results.records import Convergence, LoraScalars, Retention, SteeringStudy

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass
class Inputs:
    """Everything that a report is made of, in the order in which it was given."""

    measured: list[Measured] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    steering: list[SteeringStudy] = field(default_factory=list)
    convergence: list[Convergence] = field(default_factory=list)
    retention: list[Retention] = field(default_factory=list)
    scalars: list[LoraScalars] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)
    files: list[dict[str, str]] = field(default_factory=list)
    """One row of the provenance table for each file that is no log."""

    @property
    def sampled(self) -> list[Measured]:
        """What holds sampled answers."""
        return [entry for entry in self.measured if entry.answers]

    @property
    def graded(self) -> list[Measured]:
        """What holds graded answers; the first is the one that others are compared with."""
        return [entry for entry in self.sampled if entry.graded]

    @property
    def weighed(self) -> list[Measured]:
        """What holds weighed pairs."""
        return [entry for entry in self.measured if entry.pairs]


def read(paths: Sequence[Path]) -> Inputs:
    """Read files; a folder stands for the logs, CSVs and JSON files below it.

    What is other JSON there (eval-set.json), and logs that `inspect eval-retry` finished in others, are passed over.

    Raises:
        EmEvalsError: a file is missing, damaged, or was named and is nothing that a report shows.
    """
    inputs = Inputs()
    for file in folders.walk(paths):
        if file.finished:
            _note(inputs, file.path, f"passed over: {file.finished.name} finished it", {})
        else:
            _add(inputs, file.path, file.named)
    inputs.measured = labels.named_apart(inputs.measured)
    return inputs


def _add(inputs: Inputs, path: Path, named: bool) -> None:
    if path.suffix.lower() == ".csv":
        inputs.measured.append(answers.of_csv(path))
        return
    if path.suffix.lower() != ".json":
        inputs.measured.append(answers.of_log(path))
        return
    data = _json(path, named)
    kept: dict[str, list[Any]] = {
        "steer": inputs.steering,
        "convergence": inputs.convergence,
        "retention": inputs.retention,
        "lora-scalars": inputs.scalars,
    }
    if "kind" in data and (named or data["kind"] in list(kept)):
        record = records.read(path)
        kept[record.kind].append(record)
        _note(inputs, path, record.kind, {**record.provenance, "digest": str(getattr(record, "digest", ""))})
    elif {"verdict", "metrics"} <= data.keys():
        verdict = _fitted(Verdict, data, path)
        inputs.verdicts.append(verdict)
        _note(inputs, path, "gate", {"model": f"{verdict.candidate} against {verdict.baseline}"})
    elif {"card", "journal", "shifts"} <= data.keys():
        trajectory = _fitted(Trajectory, data, path)
        inputs.trajectories.append(trajectory)
        _note(inputs, path, "phase", {"model": trajectory.card})
    elif {"eval", "version"} <= data.keys():
        inputs.measured.append(answers.of_log(path))
    elif not named:
        _note(inputs, path, "passed over", {})
    else:
        raise EmEvalsError(
            "this JSON is neither an Inspect log, a record of a study, nor what `em-evals gate --json` or "
            "`em-evals insight phase --json` prints.",
            path,
        )


def _note(inputs: Inputs, path: Path, what: str, facts: dict[str, str]) -> None:
    told = {name: answers.without_folders(text) for name, text in facts.items() if text}
    inputs.files.append({"file": path.name, "what": what, **told})


def _json(path: Path, named: bool) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise EmEvalsError(f"this is not JSON ({error.msg}).", path, error.lineno) from None
    if isinstance(data, dict):
        return data
    if named:
        raise EmEvalsError("expected one JSON object in this file.", path, 1)
    return {}  # nothing that we know


def _fitted(model: type[_Model], data: dict[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EmEvalsError(f"'{where}': {first['msg']}.", path) from None
