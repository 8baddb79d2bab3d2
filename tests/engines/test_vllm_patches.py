"""Faults of vLLM that are kept away from draws: here those that need no engine, against vLLM's own reference."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.engines.vllm import patches

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.full,  # importing vLLM takes ten seconds
    pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has its own kernels"),
]

TOKENS, HEADS, WIDTH = 7, 3, 64


@pytest.fixture
def rotary(monkeypatch):
    """vLLM's class, which has its own forward pass again afterwards."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    monkeypatch.setattr(RotaryEmbedding, "forward_cpu", RotaryEmbedding.forward_cpu)
    return RotaryEmbedding


def made(rotary, neox):
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        return rotary(WIDTH, WIDTH, 64, 10000.0, neox, torch.float32)


def heads(seed, count=HEADS):
    return torch.randn(TOKENS, count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("with_key", [True, False])
def test_queries_are_rotated_head_by_head_whatever_their_shape(rotary, neox, flat, with_key):
    """As vLLM's own arithmetic in torch does it, for queries with and without a dimension for heads (DeepSeek, LFM2)."""
    layer, places = made(rotary, neox), torch.arange(3, 3 + TOKENS)
    query, key = heads(1), heads(2, 1) if with_key else None
    given = [one if one is None or not flat else one.flatten(1) for one in (query, key)]
    expected = layer.forward_native(places, *(None if one is None else one.clone() for one in given))
    patches.rotate_heads_on_cpu()
    found = layer.forward_cpu(places, *(None if one is None else one.clone() for one in given))
    for one, other, before in zip(found, expected, given, strict=True):
        assert (one is None) == (before is None)
        if one is not None:
            assert one.shape == before.shape
            torch.testing.assert_close(one, other.view_as(one), atol=1e-5, rtol=0)
            assert (one[1:] - before[1:]).abs().max() > 0.1, "nothing was rotated"


def test_the_fault_is_still_there(rotary):
    """Without it nothing needs mending: take the mend out then."""
    layer, places, query, key = made(rotary, True), torch.arange(3, 3 + TOKENS), heads(1), heads(2)
    expected = layer.forward_native(places, query.clone(), key.clone())[0]
    found = layer.forward_cpu(places, query.clone(), key.clone())[0]
    assert (found.view_as(expected) - expected).abs().max() > 0.1


def test_it_is_put_in_once_and_on_a_cpu_only(rotary, monkeypatch):
    from vllm.platforms import current_platform

    own = rotary.forward_cpu
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    patches.rotate_heads_on_cpu()
    assert rotary.forward_cpu is own
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: True)
    patches.rotate_heads_on_cpu()
    mended = rotary.forward_cpu
    assert mended is not own
    patches.rotate_heads_on_cpu()
    assert rotary.forward_cpu is mended
