"""Which engine a card gets when it may be any."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.engines import pool
from em_evals.engines.vllm import package, server
from em_evals.models import bases, devices
from tests.tiny_models import card


@pytest.fixture
def gpu(monkeypatch):
    """A GPU and vLLM, as far as the choice looks; what it holds can be set, and freeing is counted."""
    told = {"free": 79, "freed": 0}
    monkeypatch.setattr(package, "unusable", lambda: None)
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "kind", lambda name: "cuda")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.update(freed=told["freed"] + 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (told["free"], 80))
    monkeypatch.setattr(pool, "_engines", {})
    return told


def test_vllm_is_not_started_on_a_gpu_that_is_full(gpu):
    """This process, a server that it started for another base, or a stranger."""
    assert pool.choose(card())[0] == "vllm"
    gpu["free"] = 40
    assert pool.choose(card()) == (
        "transformers",
        "50% of the GPU's memory is free, and vLLM takes 92% (`gpu_memory_utilization`)",
    )
    assert pool.choose(card(gpu_memory_utilization=0.4))[0] == "vllm"
    assert gpu["freed"] == 3, "what nobody uses must be given back before it is judged"


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_an_engine_that_runs_goes_on_whatever_becomes_of_the_memory(kind, gpu, monkeypatch):
    monkeypatch.setattr(pool, "_engines", {pool._key(card(), kind): object()})
    for free in (79, 2):
        gpu["free"] = free
        assert pool.choose(card()) == (kind, "it runs already")


def test_a_server_starts_after_this_process_has_given_back_what_it_can(gpu, monkeypatch):
    def launched(*arguments):
        assert gpu["freed"] == 1
        raise RuntimeError("launched")

    monkeypatch.setattr(server, "_launch", launched)
    with pytest.raises(RuntimeError, match="launched"):
        server.start(card(), None, None)


def test_reading_inside_takes_the_base_that_draws_answers(tmp_path, monkeypatch):
    """One copy of the base a process: who extracts between two draws loads nothing."""
    from em_evals.content.cards import ResolvedCard
    from em_evals.engines import pool
    from em_evals.engines.protocol import Request, Sampling
    from em_evals.interp.extraction.reading import Reading
    from tests import architectures
    from tests.tiny_models import card

    bare = card(architectures.build("llama", tmp_path / "base"))
    loads, load = [], bases.load_model
    monkeypatch.setattr(bases, "load_model", lambda one: (loads.append(one.base), load(one))[1])
    try:
        engine = pool.engine_for(bare)
        long = engine.submit(Request((5, 6, 7), Sampling(temperature=0, max_tokens=60)))
        reading = Reading(ResolvedCard("base", bare, None, None))
        with reading.read_as(None) as model:
            waiting = engine.submit(Request((5, 6, 7), Sampling(temperature=0, max_tokens=2)))
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[1] == 3
        assert len(waiting.result(60).tokens) == 2 and len(long.result(60).tokens) == 60
        assert loads == [bare.base]
    finally:
        pool.close_engine(bare)
