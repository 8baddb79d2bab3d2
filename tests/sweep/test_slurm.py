"""Steps as submitit's jobs; its local scheduler runs them as processes, where Slurm would queue them."""

import os
import stat
import sys
from pathlib import Path

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


SBATCH = """#!/bin/bash
# Runs what Slurm would queue: every task of an array, one after another.
script="${@: -1}"
cp "$script" "$(dirname "$0")/submitted.$$.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$script")
export SLURM_JOB_ID=$$ SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
if [ -n "$last" ]; then
  (for i in $(seq 0 $last); do SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$i bash "$script"; done) >/dev/null 2>&1 &
else
  bash "$script" >/dev/null 2>&1 &
fi
echo "Submitted batch job $$"
"""
SRUN = """#!/bin/bash
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that stand for Slurm's, in a folder that is first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return folder


def test_steps_that_start_at_once_are_one_job_array(lab, queue):
    plan = PLAN.replace("[card, wrong]", "[card, rubric, gate]")
    made = graph.build(sweep_plans.load(plan_of(lab, plan)))
    workers = slurm.connect(lab / "runs", 8, {"timeout_min": 5, "slurm_array_parallelism": 3})
    outcome = run.run(made, lab / "runs", workers)
    assert sorted(outcome.done) == ["alone/all", "told/kind-card", "told/kind-gate", "told/kind-rubric"]
    (script,) = queue.glob("submitted.*.sh")
    assert "#SBATCH --array=0-3%3" in script.read_text()


def test_a_queue_that_refuses_jobs_fails_their_steps_and_ends(lab, queue):
    (queue / "sbatch").write_text("#!/bin/bash\necho 'Invalid account' >&2; exit 1\n")
    made = graph.build(sweep_plans.load(plan_of(lab, PLAN)))
    outcome = run.run(made, lab / "runs", slurm.connect(lab / "runs", 4, {"timeout_min": 5}))
    assert len(outcome.failed) == 3
    assert all("its process ended 3 times" in one.problem for one in outcome.failed)
