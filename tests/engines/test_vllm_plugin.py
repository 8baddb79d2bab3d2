"""Steering inside vLLM is the transformers engine's: every op, position and architecture, mixed in one batch, eager and
compiled. `make test` compares them on one architecture, through a server (tests/engines/vllm)."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import plugin
from tests.models.test_interventions import ANSWERS, PROMPTS, SETS, direction, interventions  # noqa: F401 - a fixture
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import card, tiny

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


@pytest.mark.full
@pytest.mark.vllm
@pytest.mark.parametrize("kind", [*KINDS, COMPILED])
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


@pytest.mark.full
@pytest.mark.vllm
def test_vllm_refuses_to_load_a_block_that_was_not_compared(results):
    assert "cannot steer CohereForCausalLM" in results[UNKNOWN]["refused"]


def runner(blocks, layers, **parallel):
    """What the plugin reads of vLLM's model runner; blocks by the number of their layer."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(blocks)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace()),
        cache_config=SimpleNamespace(),
    )
    known = SimpleNamespace(
        architecture="Some", hf_text_config=SimpleNamespace(num_hidden_layers=layers), hf_config=None
    )
    return SimpleNamespace(vllm_config=config, model_config=known, get_model=lambda: model)


def block(module, name):
    """A block of a class that vLLM defines in one of its modules."""
    kind = type(name, (torch.nn.Module,), {"__module__": f"vllm.model_executor.models.{module}"})
    return kind()


def test_only_blocks_that_were_compared_are_steered_and_every_layer_must_be_there():
    found = plugin._blocks(
        runner([block("llama", "LlamaDecoderLayer"), block("llama", "LlamaDecoderLayer")], 2)
    )
    assert sorted(found) == [0, 1]
    missing = block("utils", "PPMissingLayer")
    assert list(plugin._blocks(runner([missing, block("llama", "LlamaDecoderLayer")], 2))) == [1]
    other = block("commandr", "CohereDecoderLayer")
    for blocks, layers in (([other], 1), ([block("llama", "LlamaDecoderLayer"), other], 2), ([], 1)):
        with pytest.raises(RuntimeError, match=r"cannot steer Some in vLLM.*backend: transformers"):
            plugin._blocks(runner(blocks, layers))
    with pytest.raises(RuntimeError, match="cannot steer with dual-batch overlap"):
        plugin._blocks(runner([block("llama", "LlamaDecoderLayer")], 1, enable_dbo=True))


@pytest.mark.parametrize("plan", [None, "{}"])
def test_the_patches_are_for_servers_that_em_evals_starts(plan, monkeypatch):
    """A vLLM of somebody else, in whose environment em-evals happens to be installed, stays as it is."""
    patched = []
    for name in ("plain_logits", "rewind_on_cpu", "grouped_lora_on_cpu", "rotate_heads_on_cpu"):
        monkeypatch.setattr(plugin.patches, name, lambda name=name: patched.append(name))
    monkeypatch.delenv(plugin.ENABLE, raising=False)
    monkeypatch.delenv(plugin.PLAN, raising=False)
    if plan is not None:
        monkeypatch.setenv(plugin.PLAN, plan)
    plugin.register()
    assert len(patched) == (4 if plan else 0)
