"""What every record is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from em_evals import files

Interval = tuple[float | None, float | None]
"""Both ends; null where there are too few values for one."""


class Record(BaseModel):
    """A record, or a part of one: unknown keys are errors, values are fixed, NaN becomes null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null(cls, values: Any) -> Any:
        return files.without_nan(values)


class Measured(Record):
    """A mean with its 95% interval and the number of values behind it."""

    value: float | None
    interval: Interval
    n: int
