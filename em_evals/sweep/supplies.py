"""What a sweep's steps take from a store, and what the store has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from em_evals.sweep import steps
from em_evals.sweep.graph import Graph
from em_evals.sweep.steps import Step, Supply
from em_evals.sweep.store import Store


class Supplies:
    """The steps of one run.

    Args:
        graph: the steps.
        store: the store.
        cards: texts of the models' cards by their names.
    """

    def __init__(self, graph: Graph, store: Store, cards: Mapping[str, str]) -> None:
        self._steps = {step.name: step for step in graph.steps}
        self._store = store
        self._cards = cards
        self._there = store.done()

    def of(self, step: Step) -> Step:
        """Return the step with what its node fetches first: its needs, and the cards of the models that it names."""
        needs = [self._steps[name] for name in step.needs]
        named = {word.removeprefix("local/") for word in step.command} | {step.model}
        named |= {one.model for one in needs}
        supply = Supply(
            self._store.url,
            tuple((one.name, one.measure, one.model, one.digest) for one in needs),
            {name: self._cards[name] for name in sorted(named & self._cards.keys())},
        )
        return replace(step, supply=supply)

    def has(self, step: Step, folder: Path) -> bool:
        """Return whether a step is done and in the store; one that is done here only is sent."""
        if (step.name, step.digest) in self._there:
            return True
        record = steps.read_record(folder, step.name)
        if record is None or not steps.is_done(step, folder):
            return False
        self._store.send(step, folder, record)
        return True

    def collect(self, done: Sequence[str], folder: Path) -> None:
        """Fetch results that are not here; of a training what the table shows, and not its weights; no bare draws."""
        drawn = {step.draws for step in self._steps.values()}
        for step in (self._steps[name] for name in done if name not in drawn):
            self._store.fetch(step, folder, ("training.json",) if step.measure == "train" else None)
