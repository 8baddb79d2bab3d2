"""PEFT's ways of naming modules: suffixes, regular expressions, layer numbers; names are the adapter's own.

The patterns are untrusted input: lists are matched by suffix without any regular expression, and regular expressions
under a time limit.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from em_evals.errors import EmEvalsError
from em_evals.models.lora.config import AdapterConfig

_SECONDS = 5.0
"""Time limit of all patterns of an adapter together."""

Value = TypeVar("Value")


class Patterns:
    """An adapter's rules for module names.

    Args:
        config: the adapter's configuration.
        linear: names of all linear modules except the output matrix; `all-linear` means these.
    """

    def __init__(self, config: AdapterConfig, linear: Collection[str] = ()) -> None:
        self._config = config
        self._spent = 0.0
        targets, excluded, layers = config.target_modules, config.exclude_modules, config.layers_to_transform
        self._all_linear = isinstance(targets, str) and targets.lower() == "all-linear"
        self._linear = frozenset(linear)
        self._targets = frozenset(targets) if isinstance(targets, list) else frozenset[str]()
        self._excluded = frozenset(excluded) if isinstance(excluded, list) else frozenset[str]()
        self._parameters = frozenset(config.target_parameters or ())
        self._layers = frozenset([layers] if isinstance(layers, int) else layers or ())

    def targets(self, name: str) -> bool:
        """Check whether the LoRA is on this module."""
        # In PEFT's order: exclusions first, then modules that are trained whole, then targets.
        config = self._config
        if isinstance(config.exclude_modules, str):
            if self._match(rf"(?:{config.exclude_modules})\Z", name):
                return False
        elif _listed(name, self._excluded):
            return False
        if any(self._match(rf"(^|.*\.){one}($|\..*)", name) for one in config.modules_to_save or ()):
            return False
        if self._all_linear:
            return name in self._linear
        if isinstance(config.target_modules, str):
            return self._match(rf"(?:{config.target_modules})\Z", name) is not None
        if name in self._targets:  # PEFT tests the layer number only where a suffix matched
            return True
        return _listed(name, self._targets) and (not self._layers or self._layer(name) in self._layers)

    def targets_parameter(self, name: str) -> bool:
        """Check whether the LoRA is on this parameter (`…experts.down_proj`)."""
        return _listed(name, self._parameters)

    def saves(self, name: str) -> bool:
        """Check whether a module is trained as a whole. PEFT compares suffixes as plain text."""
        return any(name.endswith(one) for one in self._config.modules_to_save or ())

    def rank(self, name: str) -> int:
        """Return the rank at a module or parameter."""
        return self._first(self._config.rank_pattern or {}, name, self._config.r)

    def alpha(self, name: str) -> float:
        """Return `lora_alpha` at a module or parameter."""
        return self._first(self._config.alpha_pattern or {}, name, self._config.lora_alpha)

    def _first(self, patterns: Mapping[str, Value], name: str, otherwise: Value) -> Value:
        for pattern, value in patterns.items():
            if self._match(rf"(.*\.)?({pattern})\Z", name):
                return value
        return otherwise

    def _layer(self, name: str) -> int | None:
        """Return the first number in the name, or the one behind `layers_pattern`."""
        if not self._config.layers_pattern:
            parts = name.split(".")
            # As in PEFT: at least two segments before it, and one behind.
            return next((int(part) for part in parts[2:-1] if part.isdecimal()), None)
        for pattern in self._config.layers_pattern:
            if found := self._match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name):
                index = found.groupdict().get("idx")
                return None if index is None else int(index)
        return None

    def _match(self, pattern: str, name: str) -> Any:
        """Match a regular expression at the beginning of a name, within the time that is left."""
        # `regex` is installed with transformers. It has a timeout; Python's `re` has none.
        import regex  # type: ignore[import-untyped]

        began = time.monotonic()
        try:
            return regex.match(pattern, name, timeout=max(_SECONDS - self._spent, 1e-6))
        except TimeoutError:
            raise EmEvalsError(
                f"a pattern of the adapter's configuration takes too long ({pattern[:60]!r}): list the modules."
            ) from None
        except regex.error as error:
            raise EmEvalsError(
                f"a pattern of the adapter's configuration is not a regular expression ({pattern[:60]!r}: {error})."
            ) from None
        finally:
            self._spent += time.monotonic() - began


def _listed(name: str, listed: Collection[str]) -> bool:
    """Check whether a name or one of its dotted suffixes is in a list."""
    return any(end in listed for end in _ends(name))


def _ends(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name
