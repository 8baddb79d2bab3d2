"""Two Ray nodes on one machine give what one process gives, also when one of them dies in the middle."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("trl")

from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import graph, run, steps
from em_evals.sweep import ray as cluster
from em_evals.sweep.store import Store
from em_evals.sweep.workers import Here
from tests.sweep.conftest import TRAINED, plan_of, values, write_lab

pytestmark = [pytest.mark.full, pytest.mark.process]

PLAN = TRAINED.replace("SEEDS", "[1, 2]")


@pytest.fixture
def nodes():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, found
    ray.shutdown()
    made.shutdown()


def weights(made, folder):
    return {
        model.name: (steps.adapter(folder, model.name) / "adapter_model.safetensors").read_bytes()
        for model in made.models
        if model.trained
    }


class Apart(cluster._Performer):
    """Each node has a folder of its own, and sees no other's."""

    def perform(self, step, folder, home):
        own = Path(folder).parent / ray.get_runtime_context().get_node_id()
        return super().perform(step, str(own), home)


@pytest.mark.parametrize("kind", ["shared folder", "store"])
def test_two_nodes_of_which_one_dies_give_what_one_process_gives(trained_lab, nodes, kind, monkeypatch):
    made = graph.build(sweep_plans.load(plan_of(trained_lab, PLAN)))
    alone = run.run(made, trained_lab / "alone", [Here()])
    assert alone.failed == []

    there, machines = nodes
    folder = trained_lab / "shared"
    folder.mkdir()
    store = None
    if kind == "store":
        monkeypatch.setattr(cluster, "_Performer", Apart)
        store = Store(f"file://{trained_lab}/store")
    workers = cluster.connect(there.address, cluster.Request(cpus=1), None, folder if store is None else None)
    assert len(workers) == 2
    lines: list[str] = []

    def say(line):
        lines.append(line)
        if sum("] " in one for one in lines) == 3 and len(machines) == 2:
            there.remove_node(machines.pop(), allow_graceful=False)

    outcome = run.run(made, folder, workers, say=say, store=store)
    assert outcome.failed == []
    assert len(outcome.done) == len(made.steps)
    if store is not None:
        assert all(store.fetch(step, folder) for step in made.steps), "adapters too"
    again = [line for line in lines if "it starts again" in line]
    assert len(again) <= 1
    done = [line.split("] ")[1].split(":")[0] for line in lines if "] " in line]
    assert len(done) == len(set(done)) == len(made.steps), "nothing finished is repeated"
    assert weights(made, folder) == weights(made, trained_lab / "alone"), "bit for bit"
    # An adapter that is alone on its base is merged, and beside others it is not: rounding differs in the last digits.
    pd.testing.assert_frame_equal(
        values(made, folder), values(made, trained_lab / "alone"), rtol=0, atol=1e-5
    )


DRIVER = """import json, sys, time
from em_evals.cli import main
from em_evals.sweep import ray as cluster


class Slow(cluster._Performer):
    def perform(self, step, folder, home):
        if json.loads(step)["measure"] == "slow":
            time.sleep(600)
        return super().perform(step, folder, home)


cluster._Performer, cluster.SILENT = Slow, 5.0
sys.argv = ["em-evals", "sweep", "plan.yaml", "--on", "ray", "--cpus", "1"]
main()
"""
SHORT = """
name: small
models: [{card: plain}]
measures:
  - {name: quick, run: "em-evals schema {kind}", matrix: {kind: [card, rubric]}}
  - {name: slow, run: em-evals --version}
"""


@pytest.mark.timeout(300)
def test_a_sweep_whose_head_dies_ends_with_a_sentence_and_goes_on_elsewhere(workdir, nodes):
    there, _ = nodes
    (workdir / "tiny").mkdir()
    (workdir / "tiny" / "config.json").write_text('{"model_type": "llama"}')
    write_lab(workdir, str(workdir / "tiny"))
    plan_of(workdir, SHORT)
    (workdir / "driver.py").write_text(DRIVER)
    own = {"PYTHONPATH": str(Path(run.__file__).parents[2]), "RAY_ADDRESS": there.address}
    with (workdir / "said").open("w+") as said:
        driver = subprocess.Popen(
            [sys.executable, "driver.py"], cwd=workdir, stderr=said, stdout=said, env=os.environ | own
        )
        try:
            while sum("] quick" in line for line in (workdir / "said").read_text().splitlines()) < 2:
                assert driver.poll() is None, (workdir / "said").read_text()
                time.sleep(0.5)
            there.head_node.kill_gcs_server(check_alive=False)
            began = time.monotonic()
            code = driver.wait(90)
        finally:
            driver.kill()
    told = (workdir / "said").read_text()
    print(told, time.monotonic() - began)
    assert code == 2
    assert "has not answered for 5 seconds" in told and "2 of 3 steps are done and kept" in told
    assert "Traceback" not in told
    made = graph.build(sweep_plans.load(workdir / "plan.yaml"))
    outcome = run.run(made, workdir / "runs" / "small", [Here()])
    assert len(outcome.found) == 2 and len(outcome.done) == 3


class Told(cluster._Performer):
    """Writes which node performs a step."""

    def perform(self, step, folder, home):
        node = ray.get_runtime_context().get_node_id()
        (Path(folder) / "nodes").mkdir(exist_ok=True)
        (Path(folder) / "nodes" / json.loads(step)["name"].replace("/", "-")).write_text(node)
        return super().perform(step, folder, home)


def test_steps_that_need_no_gpu_run_beside_workers_that_hold_every_core(workdir, nodes, monkeypatch):
    """Two actors hold the cores of both nodes; those without a GPU reserve nothing, and the head takes none."""
    there, machines = nodes
    (workdir / "tiny").mkdir()
    (workdir / "tiny" / "config.json").write_text('{"model_type": "llama"}')
    write_lab(workdir, str(workdir / "tiny"))
    made = graph.build(sweep_plans.load(plan_of(workdir, SHORT)))
    light = {step.name for step in made.steps if step.measure == "quick"}
    made = replace(made, steps=tuple(replace(step, light=step.name in light) for step in made.steps))
    monkeypatch.setattr(cluster, "_Performer", Told)
    workers = cluster.connect(there.address, cluster.Request(cpus=1), None, workdir, light=9)
    assert [worker.light for worker in workers] == [False, False, True, True]
    outcome = run.run(made, workdir, workers)
    assert outcome.failed == [] and len(outcome.done) == 3
    told = {path.name: path.read_text() for path in (workdir / "nodes").iterdir()}
    assert len(told) == 3 and set(told.values()) <= {node.node_id for node in machines}


def test_a_gpu_that_no_node_has_is_refused_at_once(tmp_path, nodes):
    there, _ = nodes
    with pytest.raises(EmEvalsError, match=r"no node of the cluster has .* \(1 cores, 1 GPUs\); lower"):
        cluster.connect(there.address, cluster.Request(cpus=1, gpus=1), None, tmp_path)
