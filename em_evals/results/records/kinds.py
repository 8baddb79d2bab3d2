"""Every kind of record that a file may hold, and their reader. It imports all records, so import it only to read."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field, TypeAdapter

from em_evals.results.records.conditional import Conditional
from em_evals.results.records.diff import Diff
from em_evals.results.records.drift import Drift, DriftAlarm
from em_evals.results.records.forecast import Forecast
from em_evals.results.records.gate import GateVerdict
from em_evals.results.records.lens import Lens
from em_evals.results.records.phase import Phase
from em_evals.results.records.scaling import Scaling
from em_evals.results.records.screening import Screening
from em_evals.results.records.studies import Convergence, LoraScalars, Retention, SteeringStudy
from em_evals.results.records.traits import TraitBases, TraitMap, TraitMonitor, TraitShift
from em_evals.results.records.verify import Verification

Study = (
    SteeringStudy
    | Convergence
    | LoraScalars
    | Retention
    | Phase
    | Scaling
    | Conditional
    | TraitMap
    | Verification
    | TraitBases
    | TraitMonitor
    | TraitShift
    | Lens
    | Diff
    | Forecast
    | Drift
    | DriftAlarm
    | Screening
    | GateVerdict
)


@cache
def reader() -> TypeAdapter[Study]:
    """Return the validator, which tells kinds by `kind`."""
    return TypeAdapter(Annotated[Study, Field(discriminator="kind")])
