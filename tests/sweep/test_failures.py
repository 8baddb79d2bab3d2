"""What breaks under a sweep costs the step that it hits, or ends it with a sentence that says what is kept."""

import resource
import sys
from concurrent.futures import Future

import pytest

from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import graph, run, steps, table, workers
from em_evals.sweep.workers import Here, LocalWorker, Worker
from tests.judge_server import API_KEY, JudgeServer, Reply, number
from tests.small_tokenizer import small_tokenizer
from tests.sweep.conftest import plan_of, write_lab

PLAN = """
name: small
models: [{card: plain}]
measures:
  - {name: long, run: em-evals schema card}
  - {name: after, run: "em-evals report {steps.long} -o {out}/report.html"}
  - {name: short, run: em-evals --version}
"""


def built(lab):
    return graph.build(sweep_plans.load(plan_of(lab, PLAN)))


def small_files(settings: dict[str, str]) -> None:
    """Begin a worker that fails to write more than 2,000 bytes into a file, as on a full disk."""
    _begin(settings)
    sys.dont_write_bytecode = True  # a module's cut bytecode would stay beside it
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


_begin = workers._begin


@pytest.mark.full
@pytest.mark.process
def test_a_disk_that_is_full_costs_the_step_that_writes_and_the_next_run_goes_on(lab, monkeypatch):
    made, folder = built(lab), lab / "runs/small"
    with monkeypatch.context() as patched:
        patched.setattr(workers, "_begin", small_files)
        outcome = run.run(made, folder, [LocalWorker(None, 1)])
    assert [one.name for one in outcome.failed] == ["long/all"]
    assert "File too large" in outcome.records["long/all"].problem
    assert outcome.skipped == {"after/all": "long/all"}
    assert outcome.done == ["short/all"]
    record = steps.read_record(folder, "long/all")
    assert record is not None and record.state == "failed" and "File too large" in record.problem
    again = run.run(made.only(["long", "short"]), folder, [Here()])
    assert again.found == ["short/all"] and sorted(again.done) == ["long/all", "short/all"]


def test_a_record_that_cannot_be_written_fails_its_step_and_not_the_sweep(lab, monkeypatch):
    made, folder = built(lab), lab / "runs/small"
    write = steps.write_record

    def full(place, record):
        if record.name == "long/all":
            raise EmEvalsError("cannot write here (No space left on device).", place)
        write(place, record)

    monkeypatch.setattr(steps, "write_record", full)
    outcome = run.run(made, folder, [Here()])
    assert "No space left on device" in outcome.records["long/all"].problem
    assert outcome.done == ["short/all"]
    assert steps.read_record(folder, "long/all") is None, "nothing says that it is done"


class Nowhere(Worker):
    """A worker for which there is never a place."""

    base, died = "", ()

    def is_ready(self) -> bool:
        return False

    def start(self, step, folder, home) -> Future[str]:
        raise AssertionError

    def stop(self) -> None:
        pass


class Headless(Here):
    """Workers whose cluster ends after the first step."""

    ended = False

    def check(self) -> None:
        if self.ended:
            raise EmEvalsError("the head is gone.")

    def start(self, step, folder, home) -> Future[str]:
        future = super().start(step, folder, home)
        self.ended = True
        return future


def test_a_sweep_that_gets_no_worker_ends_with_a_sentence(lab, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 0.0)
    with pytest.raises(EmEvalsError, match=r"no node has room .* 0 of 3 steps are done and kept"):
        run.run(built(lab), lab / "runs/small", [Nowhere()])


def test_a_sweep_whose_cluster_is_gone_says_what_is_kept_and_goes_on_later(lab):
    made, folder = built(lab), lab / "runs/small"
    with pytest.raises(EmEvalsError, match=r"the head is gone\. 1 of 3 steps are done .* the same command"):
        run.run(made, folder, [Headless()])
    assert run.run(made.only(["long", "short"]), folder, [Here()]).found == ["long/all"]


JUDGED = """
name: judged
models: [{card: plain}]
measures:
  - task: em_evals/freeform
    options: {epochs: 2, limit: 2, max-tokens: 4, model-role: grader=openai-api/judge/test-judge}
"""


@pytest.mark.full
def test_a_judge_that_limits_its_rate_is_waited_for_in_a_sweep(workdir, monkeypatch):
    from tests.tiny_models import tiny

    write_lab(workdir, tiny("llama", workdir / "tiny", small_tokenizer()))
    made = graph.build(sweep_plans.load(plan_of(workdir, JUDGED)))
    left = iter(range(3))

    def limited(prompt: str) -> Reply:
        full = next(left, None) is not None
        return (
            Reply("Rate limit reached", status=429, code="rate_limit_exceeded", after=1)
            if full
            else number(90)
        )

    with JudgeServer(limited) as server:
        monkeypatch.setenv("JUDGE_BASE_URL", server.url)
        monkeypatch.setenv("JUDGE_API_KEY", API_KEY)
        outcome = run.run(made, workdir / "runs/judged", [Here()])
    assert outcome.failed == []
    assert next(left, None) is None, "the limit was met"
    frame = table.table(list(made.steps), workdir / "runs/judged")
    graded = frame[frame.metric.str.contains("ungraded")]
    assert len(graded) and set(graded.value) == {0.0}, "every draw has its grade"
    kept = "".join(
        path.read_text(errors="replace") for path in (workdir / "runs").rglob("*") if path.is_file()
    )
    assert API_KEY not in kept
