"""Which cases of a grid `make test` runs; `make test-all` runs them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_full(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return `values` as parameters of which all but `fast` are marked `full`; a tuple is a case of several arguments.

    Raises:
        ValueError: one of `fast` is no value.
    """
    values = list(values)
    if missing := [value for value in fast if value not in values]:
        raise ValueError(f"no case of this grid: {missing}")
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*case, marks=[] if value in fast else [pytest.mark.full])
        for case, value in zip(cases, values, strict=True)
    ]


def full(*values: Any) -> Any:
    """Return one case that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.full)
