"""Adapters on a base in memory, applied row by row with forward hooks. The base's weights are never changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import unwrapped
from em_evals.models.lora import folders, matching, parts, skeleton
from em_evals.models.lora.alone import Alone
from em_evals.models.lora.changes import LowRank
from em_evals.models.lora.fit import Fit
from em_evals.models.lora.parts import Parts
from em_evals.models.lora.rows import Assignment
from em_evals.models.lora.site import Site
from em_evals.models.lora.weights import swapped


class Bank:
    """A model's adapters. Without rows that name one, nothing happens.

    Args:
        model: a causal language model of transformers, with its weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = unwrapped(model)
        self._skeleton = skeleton.of(self._model)
        self._adapters: dict[str, Parts] = {}
        self._sites: dict[str, Site] = {}
        self._numbers = itertools.count()
        self._rows: Assignment | None = None
        self._alone = Alone(self._model)
        # Tokens per row in the forward pass that begins, from the shape of its ids [rows, tokens].
        self._beginning = self._model.get_input_embeddings().register_forward_pre_hook(self._begin)

    def load(self, source: str, scales: Sequence[Intervention] = ()) -> str:
        """Load an adapter and register it.

        Args:
            source: its folder or hub id.
            scales: each `scale_adapter` to apply to it.

        Returns:
            Its name, for `rows`.

        Raises:
            EmEvalsError: it does not fit this model exactly; nothing is changed.
        """
        fit = matching.match(folders.locate(source), self._skeleton)
        adapter = parts.load(fit, self._model, scales)
        name = f"adapter{next(self._numbers)}"
        self._adapters[name] = adapter
        for module in adapter.modules:
            changes, weights = adapter.changes.get(module, ()), adapter.weights.get(module, {})
            if module in adapter.held:
                weights = {}  # swapped for the whole pass (_held), not per call
            if changes or weights:
                self._site(module).add(name, changes, weights)
        return name

    def drop(self, name: str) -> None:
        """Remove an adapter."""
        self._alone.forget()
        for module in self._adapters.pop(name).modules & self._sites.keys():
            if self._sites[module].drop(name):
                del self._sites[module]

    def close(self) -> None:
        """Remove all adapters and the hooks from the model."""
        for name in list(self._adapters):
            self.drop(name)
        self._beginning.remove()

    def rest(self) -> None:
        """No draw is in work: what comes next is computed as if it came first."""
        self._alone.rest()
        for site in self._sites.values():
            site.rest()

    def mixes(self, name: str) -> bool:
        """Check whether rows of this adapter may share a batch with others. False: all rows must be its own."""
        adapter = self._adapters[name]
        if self._held(name) or any(map(self._skeleton.sees_part, adapter.modules)):
            return False
        # Modules inside one that runs once for each kind of rows would see some rows only.
        return not any(map(self._skeleton.contains, adapter.weights))

    def parts(self, name: str) -> Mapping[str, LowRank]:
        """Return an adapter's plain LoRAs on linear modules, by module name; `fit` has everything else too."""
        return self._adapters[name].low_ranks

    def fit(self, name: str) -> Fit:
        """Return what an adapter does at which module."""
        return self._adapters[name].fit

    @contextmanager
    def rows(self, names: Sequence[str | None], tokens: int = 0) -> Iterator[None]:
        """Apply adapters to the forward passes inside the context.

        Args:
            names: one per row, None for the base; a single one applies to all rows.
            tokens: that the passes compute, where the caller reads no weights: an adapter that has computed many
                alone is merged for such passes (alone.py). 0: it never is.

        Raises:
            EmEvalsError: an adapter that cannot share a batch would have to.
        """
        assignment = Assignment(names)
        for name in assignment.kinds:
            if name is not None and not assignment.uniform and not self.mixes(name):
                raise EmEvalsError(
                    f"the adapter {self._adapters[name].fit.folder} cannot share a batch: draw from it alone."
                )
        before = self._rows
        with ExitStack() as stack:
            if assignment.uniform and assignment.kinds:
                for module, weights in self._held(assignment.kinds[0]).items():
                    stack.enter_context(swapped(self._model.get_submodule(module), weights))
            try:
                self._rows = None  # a test pass before merging is the bare base's
                if tokens and self._merges(assignment, tokens):
                    stack.enter_context(self._alone.applied())
                elif assignment.kinds not in ((), (None,)):
                    self._rows = assignment
                yield
            finally:
                self._rows = before
                for site in self._sites.values():
                    site.restore()

    def _merges(self, assignment: Assignment, tokens: int) -> bool:
        """Count tokens of passes; return whether these rows' adapter is merged."""
        if not assignment.uniform:
            self._alone.forget()
            return False
        name = assignment.kinds[0] if assignment.kinds else None
        if name is None:
            return False
        merged = self._alone.ready(name, self._adapters[name])
        self._alone.saw(name, tokens)
        return merged

    def _held(self, name: str | None) -> dict[str, Any]:
        """Return weights of modules that other modules may read; they are swapped for a whole pass."""
        if name is None:
            return {}
        adapter = self._adapters[name]
        return {module: own for module, own in adapter.weights.items() if module in adapter.held}

    def _site(self, module: str) -> Site:
        if module not in self._sites:
            stacked = self._skeleton.modules[module].stacked
            self._sites[module] = Site(self._model.get_submodule(module), stacked, lambda: self._rows)
        return self._sites[module]

    def _begin(self, module: Any, arguments: tuple[Any, ...]) -> None:
        if self._rows is not None and arguments and arguments[0].dim() == 2:
            self._rows.begin(arguments[0].shape[1])
