"""Two `em-evals serve` behind one card: what one drains, and another that is killed, cost no draw and change none."""

import socket
import subprocess
import sys
import time

import psutil
import pytest
import yaml

pytest.importorskip("torch")

from em_evals.content.cards import resolve
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm.engine import VLLMEngine
from tests.tiny_models import make_adapter, tiny

DRAWS = 120

pytestmark = [pytest.mark.full, pytest.mark.vllm, pytest.mark.process, pytest.mark.timeout(1800)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    base = tiny("llama", tmp_path / "base", **heads)
    make_adapter(base, tmp_path / "adapters" / "lora", 4, ["down_proj"], seed=1, strength=0.5)
    engine = {
        "dtype": "float32",
        "max_model_len": 128,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 64 * 1024**2,
        "enforce_eager": True,
    }
    fields = {"base": base, "adapter": "lora", "engine": engine}
    (tmp_path / "adapters" / "trained.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(root):
    """Start a server and return it with its address, once it serves; one key for all."""
    made = []

    def started():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "em_evals",
            "serve",
            "trained",
            "--port",
            str(port),
            "--key-file",
            "key",
            "--json",
        ]
        one = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        made.append(one)
        assert one.stdout.readline(), one.stderr.read()[-2000:]
        return one, f"http://127.0.0.1:{port}"

    yield started
    for one in made:
        one.terminate()
        one.wait(60)


def drawn(root, urls, amid=lambda: None):
    """The draws of servers; `amid` is called when some are there and others are not."""
    card = resolve("trained", {"backend": "server", "base_url": urls})
    engine = VLLMEngine(card.card, api_key=(root / "key").read_text().strip())
    try:
        requests = [
            Request(
                (5, 9, 200, 31, seed), Sampling(temperature=1, max_tokens=60, seed=seed), card.adapter_path
            )
            for seed in range(DRAWS)
        ]
        futures = engine.submit_all(requests)
        while sum(future.done() for future in futures) < 20:
            time.sleep(0.01)
        amid()
        assert sum(future.done() for future in futures) < DRAWS
        return [future.result(300).tokens for future in futures]
    finally:
        engine.close()


def kill(served):
    """As when a machine is gone: nothing is answered or closed in order."""
    for one in [*psutil.Process(served.pid).children(recursive=True), psutil.Process(served.pid)]:
        one.kill()


def test_a_server_that_drains_and_one_that_is_killed_lose_and_change_no_draw(root, start):
    first, one = start()
    second, other = start()
    alone = drawn(root, [other])
    assert len(set(map(tuple, alone))) == DRAWS
    assert drawn(root, [one, other], amid=first.terminate) == alone
    assert first.wait(60) == 130
    third, more = start()
    assert drawn(root, [more, other], amid=lambda: kill(third)) == alone
    assert second.poll() is None
