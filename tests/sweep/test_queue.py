"""Which ready step a worker gets, and how often the folder is asked whether a step is done."""

import random
from pathlib import Path

import pytest

from em_evals.content.documents import Document
from em_evals.content.sweep_plans import SweepPlan
from em_evals.sweep import run as sweep_run
from em_evals.sweep import steps
from em_evals.sweep.graph import Graph
from em_evals.sweep.queue import Queue
from em_evals.sweep.steps import Step
from em_evals.sweep.workers import Here

PLAN = SweepPlan("chain", (), {}, (), Document(Path("chain.yaml"), {}, {}))


def queue_of(*bases: str) -> Queue:
    queue = Queue()
    for number, base in enumerate(bases):
        queue.add(Step(str(number), "m", (), base=base))
    return queue


@pytest.mark.parametrize(
    ("held", "order"),
    [("", "01234"), ("a", "02314"), ("b", "12403"), ("c", "20134")],
    ids=["no base: the plan's order", "a", "b", "a base that no step has"],
)
def test_steps_on_the_base_that_a_worker_holds_come_first(held: str, order: str) -> None:
    queue = queue_of("a", "b", "", "a", "b")
    assert "".join(queue.take(held).name for _ in range(5)) == order
    with pytest.raises(LookupError, match="no step waits"):
        queue.take(held)


def test_nothing_is_lost_or_given_twice_in_whatever_order_workers_ask() -> None:
    chance = random.Random(0)
    queue, given = Queue(), []
    for number in range(500):
        queue.add(Step(str(number), "m", (), base=chance.choice(["", "a", "b", "c"])))
        if chance.random() < 0.6:
            given.append(queue.take(chance.choice(["", "a", "b"])).name)
    rest = [step.name for step in queue.clear()]
    assert rest == sorted(rest, key=int)
    assert sorted([*given, *rest], key=int) == [str(number) for number in range(500)]
    assert len(queue) == 0


def test_a_waiting_step_is_looked_up_once_however_many_others_end_before_it(tmp_path, monkeypatch) -> None:
    looked: list[str] = []

    def is_done(step: Step, folder: object) -> bool:
        looked.append(step.name)
        return int(step.name) < 2000

    monkeypatch.setattr(steps, "is_done", is_done)
    # A chain of done steps as long as no recursion is, then a handful that one worker runs one by one.
    chain = [
        Step(str(n), "m", ("em-evals", "schema", "card"), (str(n - 1),) if 0 < n < 2000 else (), digest="d")
        for n in range(2003)
    ]
    outcome = sweep_run.run(Graph(PLAN, (), tuple(chain)), tmp_path, [Here()])
    assert sorted(looked, key=int) == [str(n) for n in range(2003)]
    assert (len(outcome.found), len(outcome.records)) == (2000, 3)
