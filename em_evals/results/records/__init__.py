"""Records of studies and the gate, which reports read: JSON files with a `kind`, a version and their provenance.

Data only. Rates and shifts have 95% intervals; nats are per token.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from em_evals import files
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.results.records.base import Interval, Measured, Record
    from em_evals.results.records.claims import Claim, Null, Specificity
    from em_evals.results.records.conditional import Cells, Conditional, ConditionalMetric, CueEffect
    from em_evals.results.records.diff import Diff, DiffCluster, DiffContext, DiffToken
    from em_evals.results.records.drift import (
        AlarmScores,
        AlarmVerdict,
        Drift,
        DriftAlarm,
        DriftPoint,
        TraitDrift,
        WatchedTrait,
    )
    from em_evals.results.records.forecast import Forecast, ForecastScore, RankedQuestion
    from em_evals.results.records.gate import GateMetric, GateVerdict, Look, Verdict, WorstQuestion
    from em_evals.results.records.kinds import Study
    from em_evals.results.records.lens import (
        Lens,
        LensCosine,
        LensModel,
        LensNorm,
        LensReading,
        LensSample,
        LensToken,
        LensVocabulary,
    )
    from em_evals.results.records.phase import Phase, Point, Rotation, Transition
    from em_evals.results.records.scaling import Scaling, ScalingBase, ScalingPredictor, ScalingSlope
    from em_evals.results.records.screening import ScreenedRow, Screening
    from em_evals.results.records.studies import (
        ACCURACIES,
        AblationPoint,
        AdapterScalars,
        Convergence,
        Cosines,
        Knockout,
        LoraScalars,
        Moved,
        Probe,
        RetainedModel,
        Retention,
        ScalarGroup,
        SeedEffect,
        SharedDirection,
        SteeringContrast,
        SteeringPoint,
        SteeringStudy,
        TaskDifference,
        Transfer,
    )
    from em_evals.results.records.traits import TraitBases, TraitMap, TraitMonitor, TraitShift
    from em_evals.results.records.verify import Check, Verification

__all__ = [
    "ACCURACIES",
    "AblationPoint",
    "AdapterScalars",
    "AlarmScores",
    "AlarmVerdict",
    "Cells",
    "Check",
    "Claim",
    "Conditional",
    "ConditionalMetric",
    "Convergence",
    "Cosines",
    "CueEffect",
    "Diff",
    "DiffCluster",
    "DiffContext",
    "DiffToken",
    "Drift",
    "DriftAlarm",
    "DriftPoint",
    "Forecast",
    "ForecastScore",
    "GateMetric",
    "GateVerdict",
    "Interval",
    "Knockout",
    "Lens",
    "LensCosine",
    "LensModel",
    "LensNorm",
    "LensReading",
    "LensSample",
    "LensToken",
    "LensVocabulary",
    "Look",
    "LoraScalars",
    "Measured",
    "Moved",
    "Null",
    "Phase",
    "Point",
    "Probe",
    "RankedQuestion",
    "Record",
    "RetainedModel",
    "Retention",
    "Rotation",
    "ScalarGroup",
    "Scaling",
    "ScalingBase",
    "ScalingPredictor",
    "ScalingSlope",
    "ScreenedRow",
    "Screening",
    "SeedEffect",
    "SharedDirection",
    "Specificity",
    "SteeringContrast",
    "SteeringPoint",
    "SteeringStudy",
    "Study",
    "TaskDifference",
    "TraitBases",
    "TraitDrift",
    "TraitMap",
    "TraitMonitor",
    "TraitShift",
    "Transfer",
    "Transition",
    "Verdict",
    "Verification",
    "WatchedTrait",
    "WorstQuestion",
    "read",
    "write",
]

_HOMES = {
    "base": "Interval Measured Record",
    "claims": "Claim Null Specificity",
    "conditional": "Cells Conditional ConditionalMetric CueEffect",
    "diff": "Diff DiffCluster DiffContext DiffToken",
    "drift": "AlarmScores AlarmVerdict Drift DriftAlarm DriftPoint TraitDrift WatchedTrait",
    "forecast": "Forecast ForecastScore RankedQuestion",
    "gate": "GateMetric GateVerdict Look Verdict WorstQuestion",
    "kinds": "Study",
    "lens": "Lens LensCosine LensModel LensNorm LensReading LensSample LensToken LensVocabulary",
    "phase": "Phase Point Rotation Transition",
    "scaling": "Scaling ScalingBase ScalingPredictor ScalingSlope",
    "screening": "ScreenedRow Screening",
    "studies": (
        "ACCURACIES AblationPoint AdapterScalars Convergence Cosines Knockout LoraScalars Moved Probe "
        "RetainedModel Retention ScalarGroup SeedEffect SharedDirection SteeringContrast SteeringPoint "
        "SteeringStudy TaskDifference Transfer"
    ),
    "traits": "TraitBases TraitMap TraitMonitor TraitShift",
    "verify": "Check Verification",
}
"""The names that each module defines. It is imported with its first name: building all models takes 0.1 s."""


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found
    return found


def write(record: Record, path: Path) -> None:
    """Write a record atomically."""
    with files.atomic(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Study:
    """Read a record of any kind.

    Raises:
        EmEvalsError: the file is not a record, or its values do not fit its kind.
    """
    from em_evals.results.records.kinds import reader

    try:
        return reader().validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EmEvalsError(f"this is not a record of em-evals ({where}: {first['msg']}).", path) from None
