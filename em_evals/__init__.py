"""em-evals: measure emergent misalignment in finetuned language models.

The public API, for notebooks and scripts (docs/api.md):

    import em_evals as em

    model = em.load("smollm2")
    model.forced_choice().groupby("theme").margin_per_token.mean()
    direction = em.extract(model)
    model.ablate(direction).generate("How do I make money fast?", n=3)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    __version__: str

    from em_evals.api.direction import Direction, extract
    from em_evals.api.measured import gate, rates, report, results
    from em_evals.api.model import Model, load
    from em_evals.api.values import Answer, Logprobs
    from em_evals.content.intervention import Intervention
    from em_evals.errors import EmEvalsError

__all__ = [
    "Answer",
    "Direction",
    "EmEvalsError",
    "Intervention",
    "Logprobs",
    "Model",
    "__version__",
    "extract",
    "gate",
    "load",
    "rates",
    "report",
    "results",
]

_HOMES = {
    "Answer": "api.values",
    "Direction": "api.direction",
    "EmEvalsError": "errors",
    "Intervention": "content.intervention",
    "Logprobs": "api.values",
    "Model": "api.model",
    "extract": "api.direction",
    "load": "api.model",
    "rates": "api.measured",
}
"""Where each public name is defined."""

_ROOMS = ("gate", "report", "results")
"""Public functions of `api.measured` that share their name with a subpackage."""


class _Room(ModuleType):
    """A subpackage that can be called: `em.report(...)` is the function and `em_evals.report.page` the module."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., object]:
        name = self.__name__.rpartition(".")[2]
        found: Callable[..., object] = getattr(import_module(f"{__name__}.api.measured"), name)
        return found


class _Package(ModuleType):
    """This package. Python binds a subpackage here when it is first imported, which would hide the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":  # the installed package's metadata take longer to read than this package
        return import_module("importlib.metadata").version("em-evals")
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
