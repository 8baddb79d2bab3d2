"""What the server is told: its command line, and its environment for what nobody else may read."""

import json
import os

import pytest

torch = pytest.importorskip("torch")

from em_evals.content.cards import ModelCard
from em_evals.engines.vllm import command
from em_evals.engines.vllm.variants import Plan
from em_evals.errors import EmEvalsError
from em_evals.models import bases


def card(**engine):
    return ModelCard.model_validate(
        {"base": "base", "engine": {"dtype": "float32", "device": "cpu", **engine}}
    )


def test_the_card_decides_what_is_passed_to_vllm():
    made = card(
        tensor_parallel_size=2,
        max_model_len=512,
        enforce_eager=True,
        vllm={"quantization": "fp8", "node_rank": 1},
    )
    said = command.command(made, Plan(loras=3, rank=16, steps=1), "/models/base", "127.0.0.1", 1234)
    options = dict(zip(said[::2], said[1::2], strict=False))
    assert {
        "--tensor-parallel-size",
        "--max-model-len",
        "--quantization",
        "--node-rank",
        "--max-lora-rank",
    } <= set(said)
    assert said[said.index("--max-loras") + 1] == "4", "one slot more than may be filled (vllm#48421)"
    assert "--enforce-eager" in said and said[said.index("--quantization") + 1] == "fp8"
    assert options["--model"] == "/models/base"
    assert "--enable-lora" not in command.command(card(), Plan(), "m", "127.0.0.1", 1)


def test_secrets_travel_in_the_environment_and_not_on_the_command_line():
    said = command.command(card(), Plan(steps=1), "m", "127.0.0.1", 1)
    told = command.environment(card(), Plan(steps=1), "client-key", "admin-key")
    assert not [part for part in said if "key" in part]
    assert told["VLLM_API_KEY"] == "client-key" and told["EM_EVALS_ADMIN_KEY"] == "admin-key"
    assert told["VLLM_PLUGINS"] == "em_evals" and json.loads(told["EM_EVALS_STEERING"])["steps"] == 1
    assert told["PATH"] == os.environ["PATH"]
    assert "TORCH_COMPILE_DISABLE" not in told
    assert command.environment(card(), Plan(loras=1), "k", "a")["TORCH_COMPILE_DISABLE"] == "1"
    assert "EM_EVALS_STEERING" not in command.environment(card(), Plan(), "k", "a")


def test_idle_connections_outlast_those_of_clients(monkeypatch):
    name = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
    monkeypatch.delenv(name, raising=False)
    # httpx keeps an idle connection for 5 s: at 5 s both ends may close it, and what was just sent is lost.
    assert int(command.environment(card(), Plan(), "k", "a")[name]) > 5
    monkeypatch.setenv(name, "9")
    assert command.environment(card(), Plan(), "k", "a")[name] == "9"


def test_workers_on_other_machines_get_the_plan_and_the_steering_too(monkeypatch):
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "MINE")
    told = command.environment(card(), Plan(steps=1), "client-key", "admin-key")
    copied = told["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"].split(",")
    assert copied[0] == "MINE" and {"EM_EVALS_STEERING", "EM_EVALS_PLAN"} <= set(copied) & (
        set(told) | {"MINE"}
    )


@pytest.mark.parametrize(
    ("seen", "device", "taken"), [(None, "cuda:1", "1,2"), ("4,5", "cuda:1", "5"), ("4,5", "cuda", "4,5")]
)
def test_vllm_takes_the_gpu_that_the_card_names_among_those_it_sees(seen, device, taken, monkeypatch):
    monkeypatch.setattr(bases, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    told = command.environment(card(device=device), Plan(), "k", "a")
    assert told["CUDA_VISIBLE_DEVICES"] == taken


def test_two_processes_start_on_one_numa_node(monkeypatch):
    """vLLM binds each process to a node of its own, and did not start otherwise (docs/vllm.md)."""
    name = "VLLM_CPU_OMP_THREADS_BIND"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command, "_numa_nodes", lambda: 2)
    two, four = card(tensor_parallel_size=2), card(tensor_parallel_size=2, data_parallel_size=2)
    assert name not in command.environment(two, Plan(), "k", "a")
    assert command.environment(four, Plan(), "k", "a")[name] == "nobind"
    monkeypatch.setenv(name, "0|1|2|3")
    assert command.environment(four, Plan(), "k", "a")[name] == "0|1|2|3", "the user's wins"


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ({"distributed_executor_backend": "ray"}, "cannot run on Ray"),
        ({"pipeline_parallel_size": 2}, "ends at the first request with engine.pipeline_parallel_size"),
    ],
)
def test_what_ends_a_server_on_a_cpu_is_refused_before_it_starts(engine, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        command.command(card(**engine), Plan(), "m", "127.0.0.1", 1)
