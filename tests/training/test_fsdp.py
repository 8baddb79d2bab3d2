"""Two processes under FSDP2, as examples/fsdp2.yaml configures it, train the adapter that one process trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml
from safetensors.torch import load_file

from em_evals.training.callbacks import read_journal
from em_evals.training.trainer import train
from tests.small_trainings import write_card
from tests.tiny_models import tiny

CONFIG = Path(__file__).parents[2] / "examples" / "fsdp2.yaml"


def environment():
    """What `accelerate launch` makes of the configuration."""
    fields = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    chosen = {
        name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in fields.items()
    }
    return {
        **os.environ,
        **chosen,
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.full
@pytest.mark.process
def test_two_processes_under_fsdp2_train_the_same_adapter_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, tiny("llama", tmp_path / "base"), max_steps=4)
    one, two = train("mine", output=tmp_path / "one"), tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
    ]
    done = subprocess.run(
        [*launch, "-m", "tests.training.fsdp_on_cpus", "train", "mine", "--output", str(two)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FSDP version 2" in done.stderr
    losses = [[row["loss"] for row in read_journal(folder / "training.jsonl")] for folder in (one, two)]
    record = json.loads((two / "training.json").read_text())
    assert record["processes"] == 2 and record["smoke"] is None  # sharded: nothing was loaded back
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=1e-5)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)
