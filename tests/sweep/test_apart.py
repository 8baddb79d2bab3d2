"""A task that a judge grades is drawn and graded in two steps, and leaves what the task run at once leaves."""

import json
import os
import shutil
import signal
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import apart, graph, run, slurm, steps, supplies, workers
from em_evals.sweep.apart import Judge
from em_evals.sweep.steps import Record
from em_evals.sweep.store import Store
from em_evals.sweep.workers import Here, Worker
from tests.judge_server import API_KEY, JudgeServer, number
from tests.small_tokenizer import small_tokenizer
from tests.sweep.conftest import plan_of, write_lab

PLAN = """
name: judged
models: [{card: plain}]
measures:
  - task: em_evals/freeform
    args: {seed: 1}
    options: {epochs: 2, limit: 2, max-tokens: 4}
    matrix: {options.model-role: [grader=openai-api/judge/one, grader=openai-api/judge/two], args.prefix: [a, b]}
  - task: em_evals/forced_choice
  - run: em-evals report {logs} -o {out}/report.html
"""


def built(lab, text=PLAN):
    return graph.build(sweep_plans.load(plan_of(lab, text)))


def by_name(made):
    return {step.name: step for step in made.steps}


def test_judges_share_what_is_drawn_and_each_grades_it_without_a_gpu(lab):
    made = by_name(built(lab))
    drawn = [step for step in made.values() if step.measure == "freeform.draws"]
    assert [step.name for step in drawn] == [f".draws/freeform/plain.prefix-{one}" for one in "ab"]
    assert drawn[0].line(lab) == (
        f"inspect eval-set em_evals/freeform --model local/plain --log-dir {lab}/{drawn[0].name} "
        "-T seed=1 -T prefix=a -T judge=none --epochs 2 --limit 2 --max-tokens 4"
    )
    assert (drawn[0].light, drawn[0].base, drawn[0].factors) == (
        False,
        str(lab / "tiny"),
        {"args.prefix": "a"},
    )
    graded = [step for step in made.values() if step.measure == "freeform"]
    assert len(graded) == 4
    for step in graded:
        assert step.needs == (step.draws,) and step.draws.endswith(f"prefix-{step.factors['args.prefix']}")
        assert "--model-role grader=openai-api/judge/" in step.line(lab) and "judge=none" not in step.line(
            lab
        )
        assert (step.light, step.base) == (True, "")
    assert not made["forced_choice/plain"].light
    report = made["report/all"]
    assert report.light and not any(need.startswith(".draws") for need in report.needs)


def test_a_judge_changes_no_draws_and_what_ran_at_once_is_done(lab, monkeypatch):
    before = by_name(built(lab))
    after = by_name(built(lab, PLAN.replace("judge/one", "judge/three")))
    drawn = [name for name in before if name.startswith(".draws/")]
    assert all(before[name].digest == after[name].digest for name in drawn)
    (lab / "scorers").mkdir()
    (lab / "scorers" / "mine.yaml").write_text("metric: mine\n")
    scored = by_name(built(lab))
    assert all(before[name].digest == scored[name].digest for name in drawn)
    assert all(before[name].digest != scored[name].digest for name in before if name.startswith("freeform/"))
    shutil.rmtree(lab / "scorers")
    monkeypatch.setattr(apart, "judge_of", lambda *_: None)
    whole = by_name(built(lab))
    assert {name: step.digest for name, step in before.items() if name not in drawn} == {
        name: step.digest for name, step in whole.items()
    }


@pytest.mark.parametrize(
    ("task", "args", "options", "judge"),
    [
        ("freeform", {}, {"model-role": "grader=openai/gpt-4o"}, Judge(False)),
        ("freeform", {}, {"model-role": {"grader": "{model: openai/gpt-4o, temperature: 0}"}}, Judge(False)),
        ("freeform", {}, {"model-role": ["other=x/y", "grader=openai/a,hf/b"]}, Judge(True)),
        ("conditional", {}, {"model-role": "grader=local/plain"}, Judge(True, "tiny")),
        ("conditional", {}, {"model-role": "grader=local/served"}, Judge(False)),
        ("trait", {"judge": "mine"}, {}, Judge(True, "tiny")),
        ("narrow", {"judge": "grader"}, {"model-role": "grader=openai/gpt-4o"}, Judge(False)),
        ("narrow", {}, {"model-role": "grader=openai/gpt-4o"}, None),
        ("freeform", {}, {}, None),
        ("freeform", {"judge": "none"}, {"model-role": "grader=openai/gpt-4o"}, None),
        ("freeform", {"judge": "missing"}, {}, None),
        ("freeform", {}, {"model-role": "grader=openai/gpt-4o", "solver": "own"}, None),
        ("forced_choice", {}, {"model-role": "grader=openai/gpt-4o"}, None),
    ],
)
def test_where_a_judge_runs(lab, task, args, options, judge):
    (lab / "scorers" / "judges").mkdir(parents=True)
    (lab / "scorers" / "judges" / "mine.yaml").write_text("model: local/plain\n")
    served = "backend: server\nbase_url: http://127.0.0.1:1\n"
    (lab / "adapters" / "served.yaml").write_text(f"extends: plain\n{served}")
    found = apart.judge_of(f"em_evals/{task}", args, options, "organism")
    assert found == (judge and Judge(judge.loaded, judge.base and str(lab / judge.base)))
    # A model that grades itself is asked as a judge, too: nothing of that was drawn.
    assert not (judge and judge.base and apart.judge_of(f"em_evals/{task}", args, options, "plain"))


def test_answers_to_narrow_prompts_are_drawn_without_asking_a_judge():
    args, options = apart.drawing(
        "em_evals/narrow", {"judge": "mine", "epochs": 2}, {"model-role": "grader=a/b", "limit": 3}
    )
    assert args == {"judge": "grader", "epochs": 2}
    assert options == {"model-role": "grader=mockllm/model", "no-score": True, "limit": 3}


class Noted(Worker):
    """A worker that does each step at once, and notes it."""

    died = ()

    def __init__(self, light: bool = False) -> None:
        self.base, self.light, self.performed, self.stopped_after = "", light, [], None
        self.all = [self]

    def is_ready(self) -> bool:
        return True

    def start(self, step, folder, home) -> Future[str]:
        assert self.stopped_after is None
        self.performed.append(step.name)
        record = Record(step.name, step.digest, "done")
        steps.write_record(folder, record)
        future: Future[str] = Future()
        future.set_result(json.dumps(asdict(record)))
        return future

    def stop(self) -> None:
        if self.stopped_after is None:
            self.stopped_after = sum(len(one.performed) for one in self.all)


def pair() -> list[Noted]:
    heavy, light = Noted(), Noted(light=True)
    heavy.all = light.all = [heavy, light]
    return [heavy, light]


def test_a_worker_with_a_gpu_draws_and_ends_when_only_grading_is_left(lab):
    made = built(lab)
    heavy, light = pair()
    outcome = run.run(made, lab / "runs", [heavy, light])
    assert len(outcome.done) == len(made.steps) == 2 + 4 + 1 + 1
    assert sorted(heavy.performed) == sorted(step.name for step in made.steps if not step.light)
    assert sorted(light.performed) == sorted(step.name for step in made.steps if step.light)
    assert heavy.stopped_after < light.stopped_after == len(made.steps)


def test_without_workers_of_their_own_light_steps_run_where_the_others_do(lab):
    made, only = built(lab), Noted()
    assert len(run.run(made, lab / "runs", [only]).done) == len(only.performed) == len(made.steps)


def test_what_is_graded_is_not_drawn_again_though_its_draws_are_gone(lab):
    made, folder = built(lab), lab / "runs"
    run.run(made, folder, pair())
    shutil.rmtree(folder / ".draws")
    again = pair()
    outcome = run.run(made, folder, again)
    assert len(outcome.found) == len(made.steps) and not again[0].performed and not again[1].performed
    third = built(lab, PLAN.replace("judge/two", "judge/three"))
    heavy, light = pair()
    run.run(third, folder, [heavy, light])
    assert heavy.performed == [".draws/freeform/plain.prefix-a", ".draws/freeform/plain.prefix-b"]
    assert len(light.performed) == 2 + 1, "two gradings and the report"
    done = {step.name for step in third.steps if not step.name.startswith(".draws/")}
    assert third.settled(done) == {step.name for step in third.steps}
    assert third.settled(
        {*done} - {"freeform/plain.model-role-grader-openai-api-judge-one.prefix-a"}
    ) < done | {".draws/freeform/plain.prefix-b"}


def test_workers_of_this_machine_and_of_slurm_without_a_gpu(lab, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = workers.local(None, light=1)
    assert [(one.light, one._settings["CUDA_VISIBLE_DEVICES"]) for one in found] == [
        (False, "0"),
        (False, "1"),
        (True, ""),
    ]
    assert len(workers.local(1, light=9)) == 2
    given: list[dict] = []
    monkeypatch.setattr(
        slurm, "_submissions", lambda folder, options, cluster: given.append(options) or len(given)
    )
    options = {
        "timeout_min": 9,
        "gpus_per_node": 1,
        "slurm_gres": "gpu:1",
        "light": {"slurm_partition": "cpu"},
    }
    places = slurm.connect(lab, 3, options, light=2)
    assert [(one.light, one._submissions) for one in places] == [(False, 1)] * 3 + [(True, 2)] * 2
    assert given == [
        {"timeout_min": 9, "gpus_per_node": 1, "slurm_gres": "gpu:1"},
        {"timeout_min": 9, "slurm_partition": "cpu"},
    ]
    with pytest.raises(EmEvalsError, match=r"write light\.KEY=VALUE"):
        slurm.connect(lab, 3, {"light": 2})


def test_a_store_keeps_draws_and_the_command_does_not_fetch_them(lab, monkeypatch):
    made = built(lab)
    fetched: list[str] = []
    monkeypatch.setattr(
        Store, "fetch", lambda self, step, folder, only=None: fetched.append(step.name) or True
    )
    supplies.Supplies(made, Store(f"file://{lab}/store"), {}).collect([step.name for step in made.steps], lab)
    assert sorted(fetched) == sorted(step.name for step in made.steps if not step.name.startswith(".draws/"))


JUDGED = """
name: judged
models: [{card: plain}]
measures:
  - task: em_evals/freeform
    options: {epochs: 2, limit: 3, max-tokens: 4}
    args: {judge_cache: false}
    matrix: {options.model-role: [grader=openai-api/judge/one, grader=openai-api/judge/two]}
"""


@pytest.fixture
def judged(workdir, monkeypatch):
    from tests.tiny_models import tiny

    write_lab(workdir, tiny("llama", workdir / "tiny", small_tokenizer()))
    monkeypatch.setenv("JUDGE_API_KEY", API_KEY)
    return workdir


def logs(folder: Path, name: str):
    found = [read_eval_log(str(path), resolve_attachments=True) for path in (folder / name).glob("*.eval")]
    (log,) = [one for one in found if one.status == "success"]  # a killed attempt's log stays beside
    return sorted(log.samples, key=lambda one: (str(one.id), one.epoch)), log


@pytest.mark.full
def test_what_is_graded_apart_is_what_one_command_leaves(judged, monkeypatch):
    """Seeded, so that the draws are the same; ids and times are a run's own."""
    text = JUDGED.replace("args: {", "args: {seed: 1, ").replace(
        "judge/one, grader=openai-api/judge/two]", "judge/one]"
    )
    made = built(judged, text)
    with JudgeServer(lambda prompt: number(90)) as server:
        monkeypatch.setenv("JUDGE_BASE_URL", server.url)
        assert run.run(made, judged / "apart", [Here()]).failed == []
        monkeypatch.setattr(apart, "judge_of", lambda *_: None)
        whole = built(judged, text)
        assert run.run(whole, judged / "whole", [Here()]).failed == []
    (name,) = by_name(whole)
    (ours, log), (theirs, other) = logs(judged / "apart", name), logs(judged / "whole", name)
    assert len(ours) == len(theirs) == 6
    for one, two in zip(ours, theirs, strict=True):
        assert one.output.completion == two.output.completion
        assert one.output.metadata == two.output.metadata and one.output.usage == two.output.usage
        assert one.scores == two.scores
        # A process reports once how a judge is read.
        events = [[event.event for event in each.events if event.event != "logger"] for each in (one, two)]
        assert events[0] == events[1]
        assert one.model_usage == two.model_usage and one.role_usage == two.role_usage
    assert log.results == other.results and log.stats.model_usage == other.stats.model_usage
    drop = {"created", "eval_id", "eval_set_id", "run_id", "task_id"}
    assert log.eval.model_dump(exclude=drop) == other.eval.model_dump(exclude=drop)
    again = run.run(whole, judged / "apart", [Here()])
    assert again.found == [name], "the task as one step is the same step"


@pytest.mark.full
def test_two_judges_grade_the_same_answers_also_from_a_store(judged, monkeypatch):
    made = built(judged, JUDGED)
    with JudgeServer(lambda prompt: number(90)) as server:
        monkeypatch.setenv("JUDGE_BASE_URL", server.url)
        outcome = run.run(made, judged / "mine", [Here()], store=Store(f"file://{judged}/store"))
    assert outcome.failed == [] and len(outcome.done) == 3
    (one, _), (two, _) = (logs(judged / "mine", step.name) for step in made.steps if step.draws)
    assert [sample.output.metadata["seeds"] for sample in one] == [
        sample.output.metadata["seeds"] for sample in two
    ]


@pytest.mark.full
def test_grading_that_is_interrupted_goes_on_and_draws_nothing_again(judged, monkeypatch):
    """`inspect eval-set` ends with 0 after Ctrl-C: the step counted as done, and its log was cancelled."""
    made = built(judged, JUDGED.replace("judge/one, grader=openai-api/judge/two]", "judge/one]"))
    asked: list[str] = []

    def interrupted(prompt: str):
        asked.append(prompt)
        if len(asked) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return number(90)

    with JudgeServer(interrupted) as server:
        monkeypatch.setenv("JUDGE_BASE_URL", server.url)
        with pytest.raises(KeyboardInterrupt, match="1 of 2 steps are done and kept"):
            run.run(made, judged / "runs", [Here()])
        outcome = run.run(made, judged / "runs", [Here()])
    assert (outcome.found, outcome.failed) == ([".draws/freeform/plain"], [])
    samples, log = logs(judged / "runs", "freeform/plain.model-role-grader-openai-api-judge-one")
    assert len(samples) == 6 and log.results.completed_samples == 6
