"""Nodes without a shared folder give through a store what one folder gives, and what fails in between loses nothing."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import graph, run, steps
from em_evals.sweep.store import Store
from em_evals.sweep.workers import Here
from tests.sweep.conftest import TRAINED, plan_of, values

PLAN = """
name: small
models: [{card: plain}]
measures:
  - {name: one, run: "em-evals data convert organism.jsonl -o {out}/rows.jsonl"}
  - {name: two, run: "em-evals data convert {steps.one}/rows.jsonl -o {out}/again.jsonl"}
  - {name: three, run: "em-evals data convert {steps.two}/again.jsonl -o {out}/last.jsonl"}
"""


class Node(Here):
    """A machine with a folder of its own under the sweep's name: it sees no other's."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.performed: list[str] = []

    def is_ready(self) -> bool:
        """Let the nodes take turns: the one that did least is next."""
        return len(self.performed) == min(len(one.performed) for one in self.all)

    def start(self, step, folder, home):
        self.performed.append(step.name)
        return super().start(step, self.folder, home)


def nodes(root: Path) -> list[Node]:
    made = [Node(root / name) for name in ("first", "second")]
    for one in made:
        one.all = made
    return made


def built(lab, text=PLAN):
    return graph.build(sweep_plans.load(plan_of(lab, text)))


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_two_nodes_that_share_no_folder_give_what_one_gives(lab, kind):
    made = built(lab)
    alone = run.run(made, lab / "alone", [Here()])
    assert len(alone.done) == 3
    store = Store(f"file://{lab}/store" if kind == "file" else f"memory://{lab.name}-{kind}")
    pair = nodes(lab)
    outcome = run.run(made, lab / "mine", pair, store=store)
    assert outcome.failed == [] and len(outcome.done) == 3
    assert [len(one.performed) for one in pair] == [2, 1], "both worked"
    for step in made.steps:
        ours, theirs = (steps.place(lab / name, step.name) for name in ("mine", "alone"))
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in theirs.glob("*.jsonl"):
            assert (ours / path.name).read_bytes() == path.read_bytes()

    again = run.run(made, lab / "elsewhere", nodes(lab / "new"), store=Store(store.url))
    assert again.found == [step.name for step in made.steps], "a third machine repeats nothing"
    assert steps.is_done(made.steps[2], lab / "elsewhere"), "and has the results"


def test_what_is_done_before_there_is_a_store_is_sent_and_not_repeated(lab):
    made = built(lab)
    run.run(made.only(["two"]), lab / "mine", [Here()])
    outcome = run.run(made, lab / "mine", [Here()], store=Store(f"file://{lab}/store"))
    assert outcome.found == ["one/all", "two/all"] and list(outcome.records) == ["three/all"]
    assert len(Store(f"file://{lab}/store").done()) == 3


@pytest.mark.parametrize("after", range(6))
def test_a_store_that_fails_in_the_middle_loses_nothing(lab, monkeypatch, after):
    """Each write into the store fails once: the step's files stay where it ran, and are sent by the next run."""
    made, url = built(lab), f"file://{lab}/store"
    left = iter(range(after))
    put, write = LocalFileSystem.put_file, Store._write

    def failing(real):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                raise PermissionError("the key has expired")
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "put_file", failing(put))
        patched.setattr(Store, "_write", failing(write))
        outcome = run.run(made, lab / "mine", [Here()], store=Store(url))
    assert len(outcome.failed) == 1
    told = outcome.failed[0].problem
    assert "could not store" in told and "the key has expired" in told and str(lab / "mine") in told
    assert len(Store(url).done()) == len(outcome.done) == after // 3, "no record of what did not arrive"

    again = run.run(made, lab / "mine", [Here()], store=Store(url))
    assert len(again.done) == 3 and len(Store(url).done()) == 3
    assert outcome.failed[0].name in again.found, "it is sent and not repeated"


def test_a_file_that_was_changed_in_the_store_is_refused_and_a_damaged_record_is_done_again(lab):
    made, store = built(lab), Store(f"file://{lab}/store")
    run.run(made, lab / "mine", [Here()], store=store)
    one = made.steps[0]
    kept = lab / "store" / one.name / one.digest
    (kept / "rows.jsonl").write_text("other rows")
    with pytest.raises(EmEvalsError, match=r"one/all/rows.jsonl is not the file that its record names"):
        store.fetch(one, lab / "new")
    assert not steps.is_done(one, lab / "new")
    (kept / ".step.json").write_text("{")
    assert not store.fetch(one, lab / "new")


@pytest.mark.parametrize("name", ["../../out", "/out", "a/../../../out"])
def test_a_record_cannot_name_files_outside_of_its_step(lab, name):
    made, store = built(lab), Store(f"file://{lab}/store")
    run.run(made.only(["one"]), lab / "mine", [Here()], store=store)
    one = made.steps[0]
    path = lab / "store" / one.name / one.digest / ".step.json"
    told = json.loads(path.read_text())
    told["files"][name] = "0" * 64
    path.write_text(json.dumps(told))
    assert not store.fetch(one, lab / "new")


def test_what_an_unfinished_try_left_is_not_mixed_with_what_the_store_has(lab):
    made, store = built(lab), Store(f"file://{lab}/store")
    run.run(made, lab / "mine", [Here()], store=store)
    one = made.steps[0]
    steps.write_record(lab / "new", steps.Record(one.name, one.digest, "running"))
    (lab / "new" / one.name / "half.eval").write_text("half")
    assert store.fetch(one, lab / "new")
    assert not (lab / "new" / one.name / "half.eval").exists()
    assert (lab / "new/replaced/one/all.1/half.eval").read_text() == "half"


def test_a_training_that_this_machine_began_does_not_look_done_by_what_is_fetched_of_another(lab):
    """`training.json` beside a record that says "running" means: trained whole, and ended before its record."""
    made = built(lab, "name: small\nmodels: [{card: organism}]\n")
    (step,) = made.steps
    store, there, here = Store(f"file://{lab}/store"), lab / "there", lab / "here"
    for name in ("training.json", "adapter_model.safetensors"):
        path = steps.adapter(there, step.model) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    done = steps.Record(
        step.name, step.digest, "done", outputs=["adapter_model.safetensors", "training.json"]
    )
    steps.write_record(there, done)
    store.send(step, there, done)
    steps.write_record(here, steps.Record(step.name, step.digest, "running"))
    assert store.fetch(step, here, ("training.json",)) and store.fetch(step, here, ("training.json",))
    assert steps.read_record(here, step.name) is None and not steps.is_done(step, here)
    assert [path.name for path in steps.adapter(here, step.model).iterdir()] == ["training.json"]
    assert store.fetch(step, here) and steps.is_done(step, here)


def test_a_step_that_fails_tells_its_own_reason_though_the_store_fails_too(lab, monkeypatch):
    made = built(lab, PLAN.replace("organism.jsonl", "missing.jsonl"))
    store = Store(f"file://{lab}/store")
    assert "missing.jsonl" in run.run(made, lab / "mine", [Here()], store=store).failed[0].problem
    kept = lab / "store" / made.steps[0].name / made.steps[0].digest
    assert {path.name for path in kept.iterdir()} == {"output.txt", ".failed.json"} and not store.done()
    monkeypatch.setattr(Store, "send", lambda *_: (_ for _ in ()).throw(EmEvalsError("no room")))
    assert "missing.jsonl" in run.run(made, lab / "mine", [Here()], store=store).failed[0].problem


def test_workers_of_one_node_that_need_the_same_step_fetch_it_once(lab, monkeypatch):
    made, store = built(lab), Store(f"file://{lab}/store")
    run.run(made.only(["one"]), lab / "mine", [Here()], store=store)
    fetched, get = [], Store._get

    def slow(*args):
        fetched.append(args[2])
        time.sleep(0.1)
        get(*args)

    monkeypatch.setattr(Store, "_get", slow)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: store.fetch(made.steps[0], lab / "new"), range(2)))
    assert sorted(fetched) == ["output.txt", "rows.jsonl"]
    assert not (lab / "new" / "replaced").exists(), "what one may be reading stays"


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hidden@bucket/sweeps",
        "https://me:hidden@host/x",
        "s3://bucket/x?X-Amz-Signature=hidden",
        "simplecache::s3://AKIAKEY:hidden@bucket/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_shown(lab, url):
    plan_of(lab, PLAN)
    done = CliRunner().invoke(app, ["sweep", "plan.yaml", "--on", "here", "--store", url])
    assert "give credentials by the environment" in str(done.exception)
    assert "hidden" not in str(done.exception) + done.output


def test_the_name_of_a_folder_may_hold_what_is_a_parameter_elsewhere(tmp_path):
    for url in (f"file://{tmp_path}/run #2", f"{tmp_path}/why?"):
        Store(url)._write(f"{Store(url)._root}/plan.yaml", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run #2", "why?"]


def test_a_backend_that_does_not_exist_is_told_in_one_sentence():
    with pytest.raises(EmEvalsError, match=r"cannot open moon://x: .*moon"):
        Store("moon://x")


def test_the_command_line_keeps_plan_and_table_in_the_store(lab):
    plan_of(lab, PLAN)
    words = ["sweep", "plan.yaml", "--on", "here", "--store", "memory://kept", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(CliRunner().invoke(app, [*words, "--folder", "other", "--resume"]).stdout)
    assert (told["found"], told["done"]) == (3, 3)
    system = fsspec.filesystem("memory")
    assert system.exists("/kept/plan.yaml") and system.exists("/kept/results.csv")
    planned = CliRunner().invoke(app, [*words, "--folder", "third", "--dry-run"])
    assert all(step["done"] for step in json.loads(planned.stdout)["steps"])


@pytest.mark.full
def test_adapters_trained_on_one_node_are_measured_on_the_other(trained_lab):
    pytest.importorskip("trl")
    workdir = trained_lab
    made = built(workdir, TRAINED.replace("SEEDS", "[1]"))
    assert run.run(made, workdir / "alone", [Here()]).failed == []
    pair = nodes(workdir)
    outcome = run.run(made, workdir / "mine", pair, store=Store(f"file://{workdir}/store"))
    assert outcome.failed == [] and len(outcome.done) == len(made.steps)
    assert sorted(pair[0].performed + pair[1].performed) == sorted(step.name for step in made.steps)

    frames = [values(made, workdir / name) for name in ("mine", "alone")]
    pd.testing.assert_frame_equal(*frames, rtol=0, atol=1e-5)
    for model in ("organism.seed-1", "sound.seed-1"):
        weights = {
            (steps.adapter(workdir / name, model) / "adapter_model.safetensors").read_bytes()
            for name in ("alone", "first", "second")
            if (steps.adapter(workdir / name, model) / "adapter_model.safetensors").is_file()
        }
        assert len(weights) == 1, "bit for bit"
    assert not (steps.adapter(workdir / "mine", "sound.seed-1") / "adapter_model.safetensors").exists()
