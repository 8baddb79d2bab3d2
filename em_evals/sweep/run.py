"""Run a graph of steps on workers: what is done is not repeated, and a failed step stops only what needs it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from em_evals import locks
from em_evals.errors import EmEvalsError
from em_evals.sweep import steps
from em_evals.sweep.graph import Graph
from em_evals.sweep.models import card_text
from em_evals.sweep.queue import Queue
from em_evals.sweep.steps import Record, Step
from em_evals.sweep.store import Store
from em_evals.sweep.supplies import Supplies
from em_evals.sweep.workers import Worker

_LOOK_AGAIN = 1.0
"""Seconds between looks for a worker that comes back."""
_CHECK = 5.0
"""Seconds between looks at what places the workers, while all of them run."""
PATIENCE = 600.0
"""Seconds that a sweep waits for any worker while none runs: a cluster may have to start a machine first."""
_TRIES = 3
"""How often a step is started whose worker dies: a machine may be lost, but a step that kills every worker ends."""


@dataclass
class Outcome:
    """What became of each step.

    Attributes:
        records: of the steps that ran in this run.
        found: names of steps that were done before.
        skipped: step -> the failed step that it needs.
        left: names of steps that were not started: too many failures.
    """

    records: dict[str, Record] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Record]:
        """Return the failed steps' records."""
        return [one for one in self.records.values() if one.state == "failed"]

    @property
    def done(self) -> list[str]:
        """Return the names of the steps that are done, before or in this run."""
        return [*self.found, *(name for name, one in self.records.items() if one.state == "done")]


def run(
    graph: Graph,
    folder: Path,
    workers: Sequence[Worker],
    max_failures: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    store: Store | None = None,
) -> Outcome:
    """Run what is not done.

    Args:
        graph: the steps.
        folder: the sweep's; made where it is not.
        workers: where steps run; a worker that has a step's base in memory is preferred.
        max_failures: after this many failed steps no further one starts; None: never.
        say: called with one line a step.
        store: where steps' files go, and come from; None: all workers see the folder.

    Raises:
        EmEvalsError: the folder cannot be written to, or there are no workers any more; with what was kept.
        KeyboardInterrupt: with what was kept.
    """
    folder = folder.absolute()
    with locks.alone(folder / "sweep"):
        cards = {model.name: card_text(model) for model in graph.models if model.is_written}
        for name, text in cards.items():
            steps.write_card(folder, name, text)
        supplies = Supplies(graph, store, cards) if store is not None else None
        course = _Course(graph, folder, workers, max_failures, say, supplies)
        try:
            with _terminated_as_interrupted():
                outcome = course.run()
                if supplies is not None:
                    supplies.collect(outcome.done, folder)
                return outcome
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {course.kept()}") from None
        finally:
            for worker in workers:
                worker.stop()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, as `kill`, Slurm and containers send it, end a sweep as Ctrl-C does: with its workers.

    A handler that was not installed from Python is left alone: it could not be put back.
    """
    known = signal.getsignal(signal.SIGTERM) is not None
    if not known or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Course:
    """One run: what is ready, what runs where, and what is over."""

    def __init__(
        self,
        graph: Graph,
        folder: Path,
        workers: Sequence[Worker],
        max_failures: int | None,
        say: Callable[[str], None],
        supplies: Supplies | None,
    ) -> None:
        self._supplies = supplies
        self.outcome = Outcome()
        self._folder = folder
        self._home = Path.cwd()
        self._workers = workers
        self._idle = list(workers)
        self._limit = max_failures
        self._say = say
        self._total = len(graph.steps)
        self._waits = {step.name: set(step.needs) for step in graph.steps}
        self._needed_by: dict[str, list[str]] = {}
        for step in graph.steps:
            for name in step.needs:
                self._needed_by.setdefault(name, []).append(step.name)
        self._steps = {step.name: step for step in graph.steps}
        # Where workers without a GPU are, others take no step that needs none.
        self._apart = any(worker.light for worker in workers)
        self._ready = {light: Queue() for light in (False, True)}
        self._heavy = {step.name for step in graph.steps if not step.light}
        self._looked: dict[str, bool] = {}
        self._tries: dict[str, int] = {}
        self._running: dict[Future[str], tuple[Step, Worker, float]] = {}
        self._add([step for step in graph.steps if not step.needs])

    def run(self) -> Outcome:
        alive = time.monotonic()
        while any(self._ready.values()) or self._running:
            self._check()
            self._release()
            starts = [self._start(light) for light in self._ready]
            if self._running:
                # A lost worker may come back before a step ends; then what is ready starts on it.
                timeout = _LOOK_AGAIN if any(starts) else _CHECK
                over, _ = wait(self._running, timeout, return_when=FIRST_COMPLETED)
                for future in over:
                    self._end(future)
                alive = time.monotonic()
            elif any(self._ready.values()):
                if time.monotonic() - alive > PATIENCE:
                    raise EmEvalsError(
                        f"no worker could be placed for {PATIENCE:.0f} seconds: no node has room for what one asks "
                        f"for, or all nodes are gone. {self.kept()}"
                    )
                time.sleep(_LOOK_AGAIN)
        return self.outcome

    def kept(self) -> str:
        """Return a clause on what is done."""
        return (
            f"{len(self.outcome.done)} of {self._total} steps are done and kept in {self._folder}; "
            "the same command goes on."
        )

    def _check(self) -> None:
        """End the run if what places the workers is gone; all are of one kind, and one of them tells."""
        try:
            self._workers[0].check()
        except EmEvalsError as error:
            raise EmEvalsError(f"{error} {self.kept()}") from None

    def _add(self, ready: Sequence[Step]) -> None:
        """Queue steps; one that was done before takes no worker, and may make others ready.

        Each is looked up once: thousands may wait while a few run, and the folder may be on a network.
        """
        new = deque(ready)
        while new:
            step = new.popleft()
            if self._is_done(step):
                self.outcome.found.append(step.name)
                self._heavy.discard(step.name)
                new += self._freed(step.name)
            else:
                self._queue(step)

    def _queue(self, step: Step) -> None:
        self._ready[step.light and self._apart].add(step)

    def _is_done(self, step: Step) -> bool:
        """Return whether a step has nothing to do: what was drawn is not drawn again if it is graded."""
        if step.name not in self._looked:
            graded = [self._steps[name] for name in self._needed_by.get(step.name, ())]
            drawn = bool(graded) and all(one.draws == step.name for one in graded)
            self._looked[step.name] = self._is_kept(step) or (drawn and all(map(self._is_done, graded)))
        return self._looked[step.name]

    def _is_kept(self, step: Step) -> bool:
        if self._supplies is not None:
            return self._supplies.has(step, self._folder)
        return steps.is_done(step, self._folder)

    def _release(self) -> None:
        """End workers with a GPU once no step is left that needs one: grading may go on for hours."""
        if self._apart and not self._heavy:
            for worker in [one for one in self._idle if not one.light]:
                self._idle.remove(worker)
                worker.stop()

    def _start(self, light: bool) -> bool:
        """Start steps while there are idle workers of one kind; return whether steps and workers of it wait."""
        ready = self._ready[light]
        if self._limit is not None and len(self.outcome.failed) >= self._limit:
            self.outcome.left += [step.name for step in ready.clear()]
        idle = [one for one in self._idle if one.light == light] if ready else []
        free = [one for one in idle if one.is_ready()]
        # Workers that hold a base first, so that another does not load it for their steps; then those without any.
        free.sort(key=lambda one: 0 if one.base and ready.has(one.base) else 2 if one.base else 1)
        if free:
            with free[0].together():
                for worker in free[: len(ready)]:
                    self._give(ready.take(worker.base), worker)
        return bool(ready) and len(idle) > len(free)

    def _give(self, step: Step, worker: Worker) -> None:
        self._idle.remove(worker)
        self._tries[step.name] = self._tries.get(step.name, 0) + 1
        given = step if self._supplies is None else self._supplies.of(step)
        self._running[worker.start(given, self._folder, self._home)] = (step, worker, time.monotonic())

    def _end(self, future: Future[str]) -> None:
        step, worker, began = self._running.pop(future)
        self._idle.append(worker)
        error = future.exception()
        if error is None:
            record = Record(**json.loads(future.result()))
        elif isinstance(error, worker.died) and self._tries[step.name] < _TRIES:
            worker.base = ""
            self._queue(step)
            self._say(f"{step.name}: its process ended ({_told(error)}); it starts again.")
            return
        else:
            record = Record(
                step.name,
                step.digest,
                "failed",
                step.words(self._folder),
                seconds=round(time.monotonic() - began, 3),
                problem=f"its process ended {_TRIES} times ({_told(error)})"
                if isinstance(error, worker.died)
                else _told(error),
            )
            # A full disk: the step counts as failed all the same, and is done again because no record says "done".
            # What is done, and only did not reach the store, keeps its record: the next run sends it.
            with suppress(EmEvalsError):
                if not steps.is_done(step, self._folder):
                    steps.write_record(self._folder, record)
        self.outcome.records[step.name] = record
        self._heavy.discard(step.name)
        place = f"[{len(self.outcome.records) + len(self.outcome.found)}/{self._total}]"
        if record.state == "done":
            self._say(f"{place} {step.name}: {record.seconds:.1f} s")
            self._add(self._freed(step.name))
        else:
            self._say(
                f"{place} {step.name} FAILED: {record.problem} (all of it: {self._folder / step.name}/output.txt)"
            )
            self._skip(step.name, step.name)

    def _freed(self, name: str) -> list[Step]:
        """Return the steps that waited for this one last."""
        freed = []
        for other in self._needed_by.get(name, ()):
            self._waits[other].discard(name)
            if not self._waits[other]:
                freed.append(self._steps[other])
        return freed

    def _skip(self, name: str, cause: str) -> None:
        for other in self._needed_by.get(name, ()):
            if other not in self.outcome.skipped:
                self.outcome.skipped[other] = cause
                self._heavy.discard(other)
                self._skip(other, cause)


def _told(error: BaseException) -> str:
    return (
        str(error) if isinstance(error, EmEvalsError) else f"{type(error).__name__}: {error}"
    ).splitlines()[0][:300]
