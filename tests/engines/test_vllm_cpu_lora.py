"""Adapters on a CPU in vLLM: grouped products are vLLM's own arithmetic, row by row."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.engines.vllm import patches

# Importing vLLM takes ten seconds; that a server's adapters equal transformers is seen by test_vllm_engine.py.
pytestmark = [pytest.mark.vllm, pytest.mark.full]

SLOTS, RANK, WIDTH, SLICES = 3, 4, 16, (8, 4, 4)
BATCHES = {
    "base and two adapters, mixed": [0, 11, 0, 33, 11, 11, 0, 33],
    "one adapter": [22] * 8,
    "one adapter beside the base": [0, 0, 22, 0, 22, 0, 0, 0],
    "base": [0] * 8,
}


@pytest.fixture(scope="module")
def wrappers():
    """Ours and vLLM's, told of the same batches."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from em_evals.engines.vllm.cpu_lora import GroupedLoRA

    return [kind(64, 8, torch.device("cpu")) for kind in (GroupedLoRA, PunicaWrapperCPU)]


def weights(seed):
    torch.manual_seed(seed)
    return tuple(torch.randn(SLOTS, 1, RANK, WIDTH) for _ in SLICES), tuple(
        torch.randn(SLOTS, 1, width, RANK) for width in SLICES
    )


def added(wrapper, ids, x, y, a, b):
    from vllm.lora.layers import LoRAMapping

    # Prompts and draws come alike on a CPU: vLLM's runner says `is_prefill` of every batch.
    mapping = LoRAMapping(index_mapping=tuple(ids), prompt_mapping=tuple(ids), is_prefill=True)
    wrapper.update_metadata(mapping, [11, 22, 33], SLOTS, 100)
    y = y.clone()
    wrapper.add_lora_linear(y, x, a, b, 0.5, SLICES)
    return y


@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
def test_grouped_products_are_vllms_own(wrappers, ids):
    a, b = weights(0)
    x, y = torch.randn(len(ids), WIDTH), torch.randn(len(ids), sum(SLICES))
    ours, theirs = (added(wrapper, ids, x, y, a, b) for wrapper in wrappers)
    adapted = torch.tensor(ids) > 0
    torch.testing.assert_close(ours[adapted], theirs[adapted])
    assert not torch.equal(ours[adapted], y[adapted]) or not adapted.any()
    assert torch.equal(ours[~adapted], y[~adapted])


def test_a_broken_adapter_stays_in_its_rows(wrappers):
    a, b = weights(1)
    whole = [0, 11, 22, 33] * 2
    x, y = torch.randn(8, WIDTH), torch.randn(8, sum(SLICES))
    before = added(wrappers[0], whole, x, y, a, b)
    a[0][1] = float("nan")
    after = added(wrappers[0], whole, x, y, a, b)
    broken = torch.tensor(whole) == 22
    assert after[broken].isnan().any()
    assert torch.equal(after[~broken], before[~broken])


def test_a_batch_forgets_the_one_before(wrappers):
    a, b = weights(2)
    x, y = torch.randn(8, WIDTH), torch.randn(8, sum(SLICES))
    added(wrappers[0], [11] * 8, x, y, a, b)
    assert torch.equal(added(wrappers[0], [0] * 8, x, y, a, b), y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has its own kernels")
def test_a_patched_vllm_takes_grouped_products_on_a_cpu(monkeypatch):
    from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper
    from vllm.platforms import current_platform

    kind = type(current_platform)
    monkeypatch.setattr(kind, "get_punica_wrapper", kind.__dict__["get_punica_wrapper"])
    assert type(get_punica_wrapper(8, 2, "cpu")).__name__ == "PunicaWrapperCPU"
    for _ in range(2):  # vLLM registers plugins more than once
        patches.grouped_lora_on_cpu()
        assert type(get_punica_wrapper(8, 2, "cpu")).__name__ == "GroupedLoRA"
