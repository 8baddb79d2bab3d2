"""The kinds of contrast that `em-evals direction extract --contrast` takes: a table of decorated functions.

The functions are contrast.py's; docs/contributing.md says how to add one. torch-free, so that the table can be read
without a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from em_evals.errors import EmEvalsError, nearest

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.interp.extraction.contrast import Contrast


@dataclass(frozen=True)
class Kind:
    """A function that makes a contrast of a card, and the command's options that its parameters take."""

    make: Callable[..., Contrast]
    parameters: dict[str, str]
    """Option (`--base-log`) -> parameter; a parameter without a default is required."""


KINDS: dict[str, Kind] = {}
_Make = TypeVar("_Make", bound="Callable[..., Contrast]")


def contrast(name: str, **parameters: str) -> Callable[[_Make], _Make]:
    """Register a function `(card, ...) -> Contrast` as `--contrast NAME`.

    Args:
        name: of the kind.
        parameters: which parameter takes which option of the command: `base_log="logs"` hands `--base-log` to `logs`.
    """

    def register(make: _Make) -> _Make:
        KINDS[name] = Kind(make, {f"--{key.replace('_', '-')}": own for key, own in parameters.items()})
        return make

    return register


def check(name: str, given: Collection[str], called: str = "") -> None:
    """Refuse options that a kind does not read.

    Args:
        name: the kind.
        given: the options that were given.
        called: the kind in the words of the sentence, where they are others.

    Raises:
        EmEvalsError: there is no such kind, or it does not read one of the options.
    """
    if name not in KINDS:
        raise EmEvalsError(f"there is no contrast '{name}'; {nearest(name, [*KINDS, 'models'])}")
    for option in given:
        if option not in KINDS[name].parameters:
            others = ", ".join(other for other, kind in KINDS.items() if option in kind.parameters)
            raise EmEvalsError(
                f"{option} is not read by --contrast {called or name}; it is for {others}: leave it out, or choose "
                "another --contrast."
            )


def make(name: str, card: ResolvedCard, given: Mapping[str, Any]) -> Contrast:
    """Make a contrast of a card from the options that were given.

    Raises:
        EmEvalsError: a required option is missing, or what the kind itself refuses.
    """
    kind = KINDS[name]
    signature = inspect.signature(kind.make).parameters
    values = {}
    for option, parameter in kind.parameters.items():
        if option in given:
            values[parameter] = given[option]
        elif signature[parameter].default is inspect.Parameter.empty:
            raise EmEvalsError(f"this contrast needs {option}; see `em-evals direction extract --help`.")
    return kind.make(card, **values)
