"""Two Ray nodes on one machine give what one process gives, also when one of them dies in the middle."""

import pandas as pd
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("trl")

from em_evals.content import sweep_plans
from em_evals.sweep import graph, run, steps, table
from em_evals.sweep import ray as cluster
from em_evals.sweep.workers import Here
from tests.few_pairs import few_pairs
from tests.small_tokenizer import small_tokenizer
from tests.sweep.conftest import plan_of, write_lab
from tests.tiny_models import tiny

pytestmark = [pytest.mark.full, pytest.mark.process]

PLAN = """
name: small
models:
  - matrix: {card: [organism, sound], train.seed: [1, 2]}
  - card: plain
controls: {organism: sound}
measures:
  - task: em_evals/forced_choice
  - name: direction
    run: em-evals direction extract {model} --per-theme 2 --minimum 2 --control {control} -o {out}/one.safetensors
  - run: em-evals gate --policy loose.yaml --baseline {logs.control} --candidate {logs.model} -o {out}/gate.json
"""


@pytest.fixture
def lab(workdir):
    base = tiny("llama", workdir / "tiny", small_tokenizer(" good", " bad"))
    few_pairs(workdir, each=2, themes={"finance", "daily"})
    (workdir / "loose.yaml").write_text("version: 1\nminimum_items: 2\n")
    return write_lab(workdir, base)


@pytest.fixture
def nodes():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, found
    ray.shutdown()
    made.shutdown()


def values(made, folder) -> pd.DataFrame:
    frame = table.table(list(made.steps), folder)
    return frame[~frame.metric.str.contains("seconds")].reset_index(drop=True)


def weights(made, folder):
    return {
        model.name: (steps.adapter(folder, model.name) / "adapter_model.safetensors").read_bytes()
        for model in made.models
        if model.trained
    }


def test_two_nodes_of_which_one_dies_give_what_one_process_gives(lab, nodes):
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN)))
    alone = run.run(made, lab / "alone", [Here()])
    assert alone.failed == []

    there, machines = nodes
    folder = lab / "shared"
    folder.mkdir()
    workers = cluster.connect(there.address, cluster.Request(cpus=1), None, folder)
    assert len(workers) == 2
    lines: list[str] = []

    def say(line):
        lines.append(line)
        if sum("] " in one for one in lines) == 3 and len(machines) == 2:
            there.remove_node(machines.pop(), allow_graceful=False)

    outcome = run.run(made, folder, workers, say=say)
    assert outcome.failed == []
    assert len(outcome.done) == len(made.steps)
    again = [line for line in lines if "it starts again" in line]
    assert len(again) <= 1
    done = [line.split("] ")[1].split(":")[0] for line in lines if "] " in line]
    assert len(done) == len(set(done)) == len(made.steps), "nothing finished is repeated"
    assert weights(made, folder) == weights(made, lab / "alone"), "bit for bit"
    # An adapter that is alone on its base is merged, and beside others it is not: rounding differs in the last digits.
    pd.testing.assert_frame_equal(values(made, folder), values(made, lab / "alone"), rtol=0, atol=1e-5)
