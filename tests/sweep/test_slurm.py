"""Steps as submitit's jobs; its local scheduler runs them as processes, where Slurm would queue them."""

import pytest

pytest.importorskip("submitit")

from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import graph, run, slurm
from tests.sweep.conftest import plan_of

pytestmark = [pytest.mark.full, pytest.mark.process]

PLAN = """
name: small
models: [{card: plain}]
measures:
  - {name: told, run: "em-evals schema {kind}", matrix: {kind: [card, wrong]}}
  - {name: alone, run: em-evals --version}
"""


def test_jobs_give_their_records_and_failures(lab):
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN)))
    folder = lab / "runs"
    workers = slurm.connect(folder, 2, {"timeout_min": 5}, cluster="local")
    outcome = run.run(made, folder, workers)
    assert sorted(outcome.done) == ["alone/all", "told/kind-card"]
    (failed,) = outcome.failed
    assert "wrong" in failed.problem


def test_a_machine_without_slurm_or_a_wrong_parameter_is_refused(lab):
    with pytest.raises(EmEvalsError, match="submitit cannot use Slurm here"):
        slurm.connect(lab, 1, {})
    with pytest.raises(EmEvalsError, match="submitit cannot use Slurm here"):
        slurm.connect(lab, 1, {"timeuot_min": 5}, cluster="local")
