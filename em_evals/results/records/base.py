"""Base classes of all records."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from em_evals import files

Interval = tuple[float | None, float | None]
"""(low, high); null with too few values."""


class Record(BaseModel):
    """A record, or a part of one: immutable, unknown keys are errors, NaN becomes null."""

    # Commands use a few of the records: each is built when it is first used.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _null(cls, values: Any) -> Any:
        return files.without_nan(values)


class Measured(Record):
    """A mean with its 95% interval and its number of values."""

    value: float | None
    interval: Interval
    n: int
