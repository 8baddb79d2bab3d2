"""A missing package becomes one sentence that says which extra of em-evals brings it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from em_evals.errors import missing_package

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def explained(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function raise an EmEvalsError where an optional package is missing."""

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            if (sentence := missing_package(error)) is None:
                raise
            raise sentence from None

    return called
