"""When a process or a node is killed, torchrun starts the others again, and the training goes on from its last state."""

import os
import re
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file

from em_evals.training.callbacks import read_journal
from em_evals.training.trainer import train
from tests.small_trainings import write_card
from tests.tiny_models import tiny
from tests.training.test_fsdp import environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "1"]
PLAIN, SHARDED = "em_evals", "tests.training.fsdp_on_cpus"
STEPS = 8


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The adapter of one process that nothing interrupts."""
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, tiny("llama", tmp_path / "base"), max_steps=STEPS)
    return train("mine", output=tmp_path / "one")


def launched(options, killed, module, output):
    """A training under torchrun that loses its second process, or the node of that process."""
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    variables = environment() if module == SHARDED else plain
    return subprocess.Popen(
        [
            *TORCHRUN,
            *options,
            "-m",
            "tests.training.killed_rank",
            killed,
            module,
            "train",
            "mine",
            "--output",
            str(output),
            "--save-every",
            "2",
        ],
        env=variables | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_no_saved_step_is_repeated(said):
    steps = [int(step) for step in re.findall(r"trains step (\d+)", said)]
    assert steps in ([*range(1, last), *range(5, STEPS + 1)] for last in (6, 7)), said[-3000:]


def assert_equal_trainings(mine, theirs):
    journals = [read_journal(folder / "training.jsonl") for folder in (mine, theirs)]
    assert [row["step"] for row in journals[1]] == list(range(1, STEPS + 1))
    losses = [[row["loss"] for row in journal] for journal in journals]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    weights, others = (load_file(folder / "adapter_model.safetensors") for folder in (mine, theirs))
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize("module", [PLAIN, SHARDED], ids=["data parallel", "fsdp2"])
def test_a_killed_process_is_started_again_and_the_adapter_is_the_same(trained, tmp_path, module):
    two = tmp_path / "two"
    run = launched(["--standalone", "--nproc-per-node", "2"], "process", module, two)
    said = run.communicate()[1]
    assert run.returncode == 0, said[-3000:]
    assert_no_saved_step_is_repeated(said)
    assert_equal_trainings(trained, two)


@pytest.mark.full
@pytest.mark.process
def test_a_training_goes_on_without_the_node_that_it_lost(trained, tmp_path):
    two = tmp_path / "two"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port()}", "--rdzv-id", "elastic"]
    options = ["--nnodes", "1:2", "--nproc-per-node", "1", *rendezvous]
    nodes = [
        launched([*options, "--rdzv-conf", f"is_host={index == 0}"], "node", PLAIN, two) for index in range(2)
    ]
    said = [node.communicate()[1] for node in nodes]
    assert sorted(node.returncode for node in nodes) == [-9, 0], "".join(said)[-5000:]
    assert_no_saved_step_is_repeated("".join(said))
    assert_equal_trainings(trained, two)
