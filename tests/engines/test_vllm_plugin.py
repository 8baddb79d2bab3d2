"""Steering inside vLLM is the transformers engine's steering: every op, position and architecture, mixed in one batch,
eager and compiled."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from tests.models.test_interventions import ANSWERS, PROMPTS, SETS, direction, interventions  # noqa: F401 - a fixture
from tests.selection import mostly_full
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import card, tiny

pytestmark = pytest.mark.vllm

KINDS = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral"]
UNKNOWN = "cohere"
COMPILED = "llama compiled"
NAMES = [name for name in SETS if name != "none" and "writes" not in name]


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def bases_by_kind(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    # vLLM's attention on CPU knows heads of 32 and more.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    return {kind: tiny(kind, root / kind, tokenizer, **heads) for kind in [*KINDS, UNKNOWN]}


@pytest.fixture(scope="module")
def results(request, bases_by_kind, direction, tmp_path_factory):  # noqa: F811
    """What vLLM says: the kinds that are asked for, eager, the first compiled as well, and one that is not known."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = {call.params["kind"] for call in calls if call is not None and "kind" in call.params} | {UNKNOWN}
    names = [name for name in [*KINDS, UNKNOWN, COMPILED] if name in wanted]
    _, path = direction
    sets = [
        [one.model_dump(mode="json", exclude_unset=True) for one in interventions(name, path)]
        for name in NAMES
    ]
    requests = [
        {"ids": ids, "set": NAMES.index(name) if name in NAMES else -1, "start": start}
        for ids, start in zip(PROMPTS, ANSWERS, strict=True)
        for name in ["none", *NAMES]
    ]
    models = [{"path": bases_by_kind[name.split()[0]], "eager": name != COMPILED} for name in names]
    folder = tmp_path_factory.mktemp("job")
    job = {"room": {"sets": len(NAMES), "steps": 3}, "models": models, "sets": sets, "requests": requests}
    (folder / "job.json").write_text(json.dumps(job))
    command = [
        sys.executable,
        "-m",
        "tests.vllm_driver",
        str(folder / "job.json"),
        str(folder / "results.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "results.json").read_text())
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("kind", mostly_full([*KINDS, COMPILED], "llama", "gemma2"))
def test_every_set_mixed_in_one_batch_is_the_transformers_engine(kind, results, bases_by_kind, direction):  # noqa: F811
    _, path = direction
    engine = HFEngine(card(bases_by_kind[kind.split()[0]]))
    try:
        sampling = Sampling(temperature=0, max_tokens=4, prompt_logprobs=0)
        futures = [
            engine.submit(Request(tuple(ids), sampling, None, interventions(name, path), start))
            for ids, start in zip(PROMPTS, ANSWERS, strict=True)
            for name in ["none", *NAMES]
        ]
        expected = [future.result(120) for future in futures]
    finally:
        engine.close()
    assert not isinstance(results[kind], dict), results[kind]
    for want, got in zip(expected, results[kind], strict=True):
        assert got["prompt"] == pytest.approx([entry.logprob for entry in want.prompt_logprobs], abs=1e-3)
        assert got["tokens"] == want.tokens
    plain = [row["prompt"] for row in results[kind]]
    per_prompt = 1 + len(NAMES)
    for i in range(0, len(plain), per_prompt):
        for steered in plain[i + 1 : i + per_prompt]:
            assert np.abs(np.subtract(steered, plain[i])).max() > 1e-3, "every set must have an effect"


def test_a_block_that_nobody_has_compared_is_refused(results):
    assert "cannot steer CohereForCausalLM" in results[UNKNOWN]["refused"]
