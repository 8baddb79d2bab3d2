"""A sweep of 10,000 steps on 64 GPUs, on paper: how long, how idle, and what limits it first.

Run: python benchmarks/sweep_simulation.py RECORDS [--mean train=180] [--scale gate=2] [--save]. RECORDS is the folder
of a sweep that ran (`em-evals sweep`): the seconds of each measure are those of its step records, drawn again and
again. `--mean` sets their mean for the simulated study and keeps their spread; `--scale` multiplies them. Time is
simulated; which worker gets which step is decided by the sweep's own queue (em_evals/sweep/queue.py).

What is shared by all workers is served in the order of requests: the judge's calls at its rate limit, and weights from
the storage at its bandwidth. A worker is lost with an exponential time between failures; its step starts again, and a
training goes on from its last saved state.

A step of `freeform` is what a sweep makes of it: a step that draws on a GPU, and one that grades without. `held` keeps
both one step, which holds its GPU until its last grade, as sweeps did before.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from runs import save

from em_evals.sweep.queue import Queue
from em_evals.sweep.steps import RECORD, Step

SAVED_EVERY = 25 / 375
"""Of a training: a state is kept every 25 steps, and a recipe of 6,000 rows in batches of 16 has 375."""
BACK_AFTER = 300.0
"""Seconds until a lost worker's place is taken over."""


@dataclass(frozen=True)
class Study:
    """What is simulated: every base has `recipes` organisms and controls in `seeds` seeds, and each model each measure.

    Attributes:
        measures: measure -> (seconds of its steps as they were recorded, times longer, judge calls of a step).
        held: whether a step of freeform holds its GPU while it is graded.
    """

    measures: Mapping[str, tuple[np.ndarray, float, int]]
    bases: int = 5
    recipes: int = 5
    seeds: int = 10
    cues: int = 18
    held: bool = False

    def steps(self) -> list[Step]:
        """Return the graph: a training, its measures (each under `cues` settings or none), and a gate on them."""
        made: list[Step] = []
        for number in range(self.bases):
            base = f"base-{number}"
            for recipe in range(self.recipes * 2):
                for seed in range(self.seeds):
                    model = f"{base}.recipe-{recipe}.seed-{seed}"
                    train = Step(f"train/{model}", "train", (), (), model, base=base)
                    measured = []
                    for cue in range(self.cues - 1):
                        name = f"freeform-{cue}/{model}"
                        drawn = Step(f".draws/{name}", "draws", (), (train.name,), model, base=base)
                        graded = Step(name, "grades", (), (drawn.name,), model, light=True)
                        whole = Step(name, "freeform", (), (train.name,), model, base=base)
                        made += [] if self.held else [drawn]
                        measured.append(whole if self.held else graded)
                    measured.append(
                        Step(f"forced_choice/{model}", "forced_choice", (), (train.name,), model, base=base)
                    )
                    needs = tuple(one.name for one in measured)
                    gate = Step(f"gate/{model}", "gate", (), needs, model, light=not self.held)
                    made += [train, *measured, gate]
        return made


@dataclass(frozen=True)
class Place:
    """Where it runs.

    Attributes:
        workers: GPUs, each a worker.
        per_node: workers that share one node's copy of the weights on disk.
        calls_per_minute: the judge's limit; infinite: none.
        weights: bytes of a base.
        bandwidth: bytes a second of the storage, for all nodes together.
        between_failures: mean hours between failures of one worker; infinite: none.
    """

    workers: int = 64
    per_node: int = 8
    calls_per_minute: float = float("inf")
    weights: float = 28e9
    bandwidth: float = 2e9
    between_failures: float = float("inf")


@dataclass
class Spent:
    """Worker seconds by what they went to."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    """Until the last step that needs a GPU ends: the GPUs are free then."""
    restarts: int = 0
    loads: int = 0
    seconds: Counter[str] = field(default_factory=Counter)

    def shares(self, workers: int) -> dict[str, float]:
        """Return shares of the time for which the GPUs are held; `idle` is the rest."""
        every = workers * self.gpu_hours * 3600
        found = {name: seconds / every for name, seconds in sorted(self.seconds.items())}
        return {name: round(share, 4) for name, share in (found | {"idle": 1 - sum(found.values())}).items()}


class Simulation:
    """Events in simulated seconds."""

    def __init__(self, study: Study, place: Place, seed: int = 0) -> None:
        self._study, self._place = study, place
        self._chance = np.random.default_rng(seed)
        self._spent = Spent()
        self._judge_free = self._storage_free = 0.0
        self._on_node: dict[int, set[str]] = defaultdict(set)
        self._holds = [""] * place.workers
        self._share_done: dict[str, float] = {}

    def run(self) -> Spent:
        """Return what the study costs."""
        queue, steps = Queue(), self._study.steps()
        waits = {step.name: len(step.needs) for step in steps}
        needed_by: dict[str, list[Step]] = defaultdict(list)
        for step in steps:
            for name in step.needs:
                needed_by[name].append(step)
            if not step.needs:
                queue.add(step)
        light: list[Step] = []
        idle = list(range(self._place.workers))
        events: list[tuple[float, int, int, Step | None, bool]] = []
        now, number, left = 0.0, 0, len(steps)
        while left:
            for step in light:
                heapq.heappush(events, (self._waited(step, now), number := number + 1, -1, step, True))
            light.clear()
            idle.sort(key=lambda one: (not queue.has(self._holds[one]), bool(self._holds[one])))
            while idle and len(queue):
                worker = idle.pop(0)
                step = queue.take(self._holds[worker])
                end, done = self._perform(worker, step, now)
                heapq.heappush(events, (end, number := number + 1, worker, step, done))
            now, _, worker, step, done = heapq.heappop(events)
            if step is None:
                idle.append(worker)
            elif done:
                left -= 1
                if worker >= 0:
                    idle.append(worker)
                    self._spent.gpu_hours = now / 3600
                for other in needed_by[step.name]:
                    waits[other.name] -= 1
                    if not waits[other.name]:
                        light.append(other) if other.light else queue.add(other)
            else:
                queue.add(step)
                self._holds[worker] = ""
                heapq.heappush(events, (now + BACK_AFTER, number := number + 1, worker, None, False))
        self._spent.hours = now / 3600
        return self._spent

    def _waited(self, step: Step, now: float) -> float:
        """Return when a step without a GPU ends: when the judge has answered, or at its own pace."""
        recorded, longer, calls = self._study.measures[step.measure]
        if calls:
            self._judge_free = max(self._judge_free, now) + calls / self._place.calls_per_minute * 60
            return self._judge_free
        return now + float(self._chance.choice(recorded)) * longer

    def _perform(self, worker: int, step: Step, now: float) -> tuple[float, bool]:
        """Return when the worker is free, and whether the step is done then."""
        begun = self._loaded(worker, step, now)
        recorded, longer, calls = self._study.measures[step.measure]
        whole = float(self._chance.choice(recorded)) * longer
        work = whole * (1 - self._share_done.get(step.name, 0.0))
        graded = 0.0
        if calls:
            self._judge_free = max(self._judge_free, begun) + calls / self._place.calls_per_minute * 60
            graded = self._judge_free
        end = max(begun + work, graded)
        lost = now + self._chance.exponential(self._place.between_failures * 3600)
        self._spent.seconds["loading"] += min(begun, lost) - now
        if lost < end:
            self._spent.restarts += 1
            if step.measure == "train":
                kept = (lost - begun) / whole // SAVED_EVERY * SAVED_EVERY if lost > begun else 0.0
                self._share_done[step.name] = self._share_done.get(step.name, 0.0) + kept
                self._spent.seconds["work"] += kept * whole
                self._spent.seconds["lost"] += max(0.0, lost - begun - kept * whole)
            else:
                self._spent.seconds["lost"] += max(0.0, lost - begun)
            self._spent.seconds["lost"] += BACK_AFTER
            return lost, False
        self._spent.seconds["work"] += work
        self._spent.seconds["judge"] += max(0.0, end - begun - work)
        return end, True

    def _loaded(self, worker: int, step: Step, now: float) -> float:
        """Return when the worker holds the step's base."""
        if step.base in ("", self._holds[worker]):
            return now
        self._spent.loads += 1
        self._holds[worker] = step.base
        node = worker // self._place.per_node
        seconds = self._place.weights / self._place.bandwidth
        if step.base in self._on_node[node]:
            return now + seconds / 4  # the node's own disk or page cache
        self._on_node[node].add(step.base)
        self._storage_free = max(self._storage_free, now) + seconds
        return self._storage_free


def recorded(folder: Path) -> dict[str, np.ndarray]:
    """Return the seconds of a sweep's done steps by measure."""
    found: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.rglob(RECORD)):
        record = json.loads(path.read_text())
        if record["state"] == "done":
            found[record["name"].split("/")[0].lstrip(".")].append(record["seconds"])
    return {name: np.array(seconds) for name, seconds in found.items()}


def table(study: Study, rows: Sequence[tuple[str, Place]]) -> list[dict[str, object]]:
    """Simulate each place and print a line on it."""
    found: list[dict[str, object]] = []
    for name, place in rows:
        spent = Simulation(study, place).run()
        shares = spent.shares(place.workers)
        told = ", ".join(f"{key} {share:.1%}" for key, share in shares.items())
        hours = {"hours": round(spent.hours, 2), "gpus_held": round(spent.gpu_hours, 2)}
        print(
            f"{name}: {spent.hours:.1f} h, GPUs held for {spent.gpu_hours:.1f} h; {told}; {spent.loads} loads, "
            f"{spent.restarts} restarts",
            flush=True,
        )
        found.append(
            {"place": name, **hours, "loads": spent.loads, "restarts": spent.restarts} | {"shares": shares}
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--scale", action="append", default=[], metavar="MEASURE=TIMES")
    parser.add_argument("--mean", action="append", default=[], metavar="MEASURE=SECONDS")
    parser.add_argument("--weights", type=float, default=28e9, help="bytes of a base")
    parser.add_argument(
        "--calls", type=int, default=1600, help="judge calls of a freeform step (8 x 100 x 2)"
    )
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    longer = {name: float(times) for name, _, times in (one.partition("=") for one in given.scale)}
    measured = recorded(given.records)
    means = {name: float(seconds) for name, _, seconds in (one.partition("=") for one in given.mean)}
    longer |= {name: seconds / measured[name].mean() for name, seconds in means.items()}
    seconds = {
        name: (measured[name], longer.get(name, 1.0)) for name in ("train", "draws", "forced_choice", "gate")
    }
    seconds |= {"freeform": seconds["draws"], "grades": (np.zeros(1), 1.0)}
    calls = {"freeform": given.calls, "grades": given.calls}
    study = Study({name: (*both, calls.get(name, 0)) for name, both in seconds.items()})
    told = {name: f"{s.mean() * t:.1f} s ({len(s)} recorded)" for name, (s, t, _) in study.measures.items()}
    print(f"{len(study.steps()):,} steps; seconds a step: {told}")
    plain = Place(weights=given.weights)
    rows = [("64 GPUs", plain)]
    rows += [
        (f"judge {n:,} calls/min", replace(plain, calls_per_minute=n))
        for n in (50_000, 20_000, 10_000, 2_000)
    ]
    rows += [(f"storage {b:g} GB/s", replace(plain, bandwidth=b * 1e9)) for b in (0.5, 0.1)]
    rows += [
        (f"a failure a GPU every {h:,} h", replace(plain, between_failures=h)) for h in (1000, 100, 10, 2)
    ]
    together = {"calls_per_minute": 10_000, "bandwidth": 0.5e9, "between_failures": 100}
    rows += [("10,000 calls/min, 0.5 GB/s, 100 h", replace(plain, **together))]
    rows += [("1 GPU", replace(plain, workers=1, per_node=1))]
    found = table(study, rows)
    held = [(f"{name}, GPU held for grades", place) for name, place in rows if name.startswith("judge")]
    found += table(replace(study, held=True), held)
    if given.save:
        path = Path(__file__).parent / "results" / "sweep_simulation.json"
        save(
            path,
            (),
            steps=len(study.steps()),
            seconds=told,
            calls=given.calls,
            weights=given.weights,
            places=found,
        )


if __name__ == "__main__":
    main()
