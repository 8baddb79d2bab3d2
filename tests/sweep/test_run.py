"""Steps run once, a failed one stops only what needs it, and a lost process costs nothing that was finished."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import sweep_plans
from em_evals.sweep import graph, run, steps
from em_evals.sweep.workers import Here, LocalWorker
from tests.sweep.conftest import plan_of

PLAN = """
name: small
models: [{card: plain}]
measures:
  - name: told
    run: em-evals schema {kind}
    matrix: {kind: [card, wrong, rubric]}
  - name: after
    run: em-evals report {steps.told} -o {out}/report.html
  - name: alone
    run: em-evals --version
"""


def sweep(*words):
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "--on", "here", "--json", *words])
    assert done.exit_code in (0, 1), done.output
    return json.loads(done.stdout)


def test_a_failed_step_stops_only_what_needs_it_and_is_tried_again(lab):
    plan_of(lab, PLAN)
    told = sweep()
    assert (told["done"], told["steps"]) == (3, 5)
    assert list(told["failed"]) == ["told/kind-wrong"]
    assert "wrong" in told["failed"]["told/kind-wrong"], "the command's own sentence"
    assert told["skipped"] == {"after/all": "told/kind-wrong"}
    again = sweep()
    assert again["found"] == 3, "what is done is not repeated"
    assert list(again["failed"]) == ["told/kind-wrong"]


def test_after_max_failures_no_further_step_starts(lab):
    plan_of(lab, PLAN.replace("[card, wrong, rubric]", "[wrong, card, rubric]"))
    told = sweep("--max-failures", "1")
    assert told["done"] == 0
    assert "alone/all" in told["left"]


def test_a_step_is_done_again_if_its_record_is_damaged_or_a_file_is_gone(lab):
    plan_of(lab, PLAN)
    sweep()
    (lab / "runs/small/alone/all/.step.json").write_text("{")
    assert sweep()["found"] == 2


def test_an_older_plans_folder_is_put_aside_and_not_mixed_with_the_new_one(lab):
    plan_of(lab, PLAN)
    sweep("--only", "alone")
    mine = lab / "runs/small/alone/all"
    (mine / "kept.txt").write_text("of the first plan")
    plan_of(lab, PLAN.replace("em-evals --version", "em-evals schema card"))
    sweep("--only", "alone")
    assert not (mine / "kept.txt").exists()
    assert (lab / "runs/small/replaced/alone/all.1/kept.txt").read_text() == "of the first plan"


def test_a_training_that_ended_before_its_record_was_written_is_not_repeated(lab):
    text = "name: small\nmodels: [{card: organism}]\n"
    made = graph.build(sweep_plans.load(plan_of(lab, text)))
    (step,) = made.steps
    folder = lab / "runs/small"
    steps.write_record(folder, steps.Record(step.name, step.digest, "running"))
    adapter = steps.adapter(folder, step.model)
    adapter.mkdir(parents=True)
    (adapter / "training.json").write_text("{}")
    outcome = run.run(made, folder, [Here()])
    assert outcome.done == [step.name]
    assert (adapter / "training.json").read_text() == "{}", "nothing was trained"


class Mortal(LocalWorker):
    """A worker whose process is killed when it has begun its first step."""

    def __init__(self, lives: int) -> None:
        super().__init__(None, 1)
        self.lives = lives

    def start(self, step, folder, home):
        future = super().start(step, folder, home)
        if self.lives:
            self.lives -= 1
            for process in list(self._pool._processes.values()):
                os.kill(process.pid, signal.SIGKILL)
        return future


@pytest.mark.process
@pytest.mark.parametrize(("deaths", "state"), [(1, "done"), (3, "failed")])
def test_a_step_whose_process_is_killed_starts_again_but_not_for_ever(lab, deaths, state):
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN))).only(["alone"])
    lines: list[str] = []
    outcome = run.run(made, lab / "runs/small", [Mortal(deaths)], say=lines.append)
    record = outcome.records["alone/all"]
    assert record.state == state
    assert sum("it starts again" in line for line in lines) == min(deaths, 2)
    kept = steps.read_record(lab / "runs/small", "alone/all")
    assert kept is not None
    assert kept.state == state


SLEEPER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from em_evals.sweep.workers import _begin

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=({},))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60).result()
"""


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and ") Z " not in stat.read_text()


@pytest.mark.full
@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_a_worker_ends_when_the_sweep_is_killed_in_the_middle_of_its_step(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "sleeper.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment
    ) as sweep:
        worker = int(sweep.stdout.readline())
        assert is_running(worker)
        sweep.kill()
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.2)
    assert not is_running(worker)


STOPPED = """import sys, time
from pathlib import Path
from em_evals.sweep import workers
from em_evals.sweep.steps import Step


def bar(step, folder, home):
    from tqdm import tqdm

    with tqdm(total=2):
        (Path(folder) / "started").touch()
        time.sleep(600)


if __name__ == "__main__":
    folder, worker = Path(sys.argv[1]), workers.LocalWorker(None, 1)
    workers.perform_json = bar
    worker.start(Step("a", "a", ("a",)), folder, folder)
    while not (folder / "started").exists():
        time.sleep(0.05)
    worker.stop()
"""


@pytest.mark.process
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its default start method names semaphores")
def test_a_stopped_worker_leaves_no_semaphore(tmp_path):
    """tqdm makes one for its lock; Python's resource tracker warned of it after Ctrl-C."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "stopped.py", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "resource_tracker" not in done.stderr


def test_a_handler_that_python_did_not_install_is_left_alone(lab, monkeypatch):
    """`signal.signal` raises TypeError for the None that stands for it."""
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN))).only(["alone"])
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run.signal, "getsignal", lambda number: None)
    given = []
    monkeypatch.setattr(run.signal, "signal", lambda *both: given.append(both))
    assert run.run(made, lab / "runs/small", [Here()]).done == ["alone/all"] and not given
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_ends_a_sweep_as_an_interrupt_does(lab):
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN))).only(["alone"])

    def say(line):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="1 of 1 steps are done and kept"):
        run.run(made, lab / "runs/small", [Here()], say=say)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dry_run_prints_commands_and_costs_and_starts_nothing(lab):
    text = (
        "name: small\nmodels: [{card: plain}]\nmeasures:\n"
        "  - {task: em_evals/freeform, options: {epochs: 10, limit: 3}}\n"
        "  - {task: em_evals/forced_choice}\n"
    )
    plan_of(lab, text)
    told = sweep("--dry-run")
    assert [one["command"].split()[:3] for one in told["steps"]] == [
        ["inspect", "eval-set", "em_evals/freeform"],
        ["inspect", "eval-set", "em_evals/forced_choice"],
    ]
    costs = {one["measure"]: one["judge_calls"] for one in told["costs"]}
    assert costs == {"freeform": 3 * 10 * 2, "forced_choice": 0}
    assert not Path("runs").exists()


def test_a_wrong_place_or_a_wrong_backend_is_refused_in_one_sentence(lab):
    plan_of(lab, PLAN)
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "--resume"])
    assert "there is no sweep to go on with" in str(done.exception)
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "--on", "moon"])
    assert "--on moon: choose" in str(done.exception)
