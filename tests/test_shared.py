"""Which engine a card gets when it may be any."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.models import bases, shared, vllm_server
from tests.models import card


@pytest.fixture
def gpu(monkeypatch):
    """A GPU and vLLM, as far as the choice looks; what it holds can be set, and freeing is counted."""
    told = {"free": 79, "freed": 0}
    monkeypatch.setattr(vllm_server, "unusable", lambda: None)
    monkeypatch.setattr(bases, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.update(freed=told["freed"] + 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (told["free"], 80))
    monkeypatch.setattr(shared, "_engines", {})
    return told


def test_vllm_is_not_started_on_a_gpu_that_somebody_fills(gpu):
    """This process, a server that it started for another base, or a stranger."""
    assert shared.choose(card())[0] == "vllm"
    gpu["free"] = 40
    assert shared.choose(card()) == (
        "transformers",
        "50% of the GPU's memory is free, and vLLM takes 92% (`gpu_memory_utilization`)",
    )
    assert shared.choose(card(gpu_memory_utilization=0.4))[0] == "vllm"
    assert gpu["freed"] == 3, "what nobody uses must be given back before it is judged"


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_an_engine_that_runs_goes_on_whatever_becomes_of_the_memory(kind, gpu, monkeypatch):
    monkeypatch.setattr(shared, "_engines", {shared._key(card(), kind): object()})
    for free in (79, 2):
        gpu["free"] = free
        assert shared.choose(card()) == (kind, "it runs already")


def test_a_server_starts_after_this_process_has_given_back_what_it_can(gpu, monkeypatch):
    def launched(*arguments):
        assert gpu["freed"] == 1
        raise RuntimeError("launched")

    monkeypatch.setattr(vllm_server, "_launch", launched)
    with pytest.raises(RuntimeError, match="launched"):
        vllm_server.start(card(), None, None)
