"""The examples for clusters are files that their tools read, and call `em-evals sweep` with options that it has."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import sweep_plans

EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"


def test_the_example_plan_is_a_plan():
    plan = sweep_plans.load(EXAMPLES / "sweep.yaml")
    assert [row.title for row in plan.measures] == ["forced_choice", "capability", "gate", "report"]
    assert len([*sweep_plans.combinations(plan.models[0].matrix)]) == 12


@pytest.mark.parametrize("name", ["sweep.sbatch", "rayjob.yaml", "skypilot.yaml"])
def test_examples_call_the_sweep_with_options_that_it_has(name):
    text = (EXAMPLES / name).read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "em-evals sweep " in line]
    help_text = CliRunner().invoke(app, ["sweep", "--help"]).stdout
    options = re.findall(r"(--[a-z-]+)", line.partition("em-evals sweep")[2])
    assert options
    assert all(option in help_text for option in options)


def test_examples_are_what_their_tools_read():
    cluster, job, sky = (
        yaml.safe_load((EXAMPLES / name).read_text())
        for name in ("raycluster.yaml", "rayjob.yaml", "skypilot.yaml")
    )
    assert (cluster["apiVersion"], cluster["kind"], job["kind"]) == ("ray.io/v1", "RayCluster", "RayJob")
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == cluster["metadata"]["name"]
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}, "no step runs on the head"
    for script in ((EXAMPLES / "sweep.sbatch").read_text(), sky["setup"], sky["run"]):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
