"""Scoring given text as a tree: the same log-probabilities as plain transformers, each part computed once."""

import pytest

torch = pytest.importorskip("torch")

from concurrent.futures import Future

from em_evals.engines.hf import packing
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.hf.row import Row
from em_evals.engines.hf.scoring import Scoring, groups
from em_evals.engines.protocol import Request, Sampling
from em_evals.models import bases
from tests.tiny_models import card, make_adapter, tiny

CONTEXT = tuple(range(100, 130))
OTHER = (*CONTEXT[:20], *range(300, 317))
ANSWERS = [(7,), (8,), (9, 10), (9, 11), (9, 10, 12)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def served(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    base = tiny(request.param, root / "base")
    adapter = make_adapter(base, root / "adapter", 4, "all-linear", seed=3)
    engine = HFEngine(card(base))
    yield engine, base, adapter
    engine.close()


def requests(adapters, top=1):
    return [
        Request(
            (*context, *answer),
            Sampling(temperature=0, max_tokens=0, prompt_logprobs=top, prompt_logprobs_from=len(context)),
            adapter,
        )
        for adapter in adapters
        for context in (CONTEXT, OTHER)
        for answer in ANSWERS
    ]


def reference(base, adapter, request):
    """Log-probabilities by plain transformers and PEFT, one prompt at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model.config.model_type == "gemma2":
        model.set_attn_implementation("eager")  # sdpa leaves out the soft cap of its attention scores
    model = model.eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([request.prompt])).logits[0].log_softmax(-1)
    start = request.sampling.prompt_logprobs_from
    return [
        (float(logprobs[i - 1, token]), int(logprobs[i - 1].argmax()))
        for i, token in enumerate(request.prompt)
        if i >= start
    ]


@pytest.mark.parametrize("packed", [True, False], ids=["lines", "levels"])
def test_answers_to_shared_contexts_equal_transformers(served, packed, monkeypatch):
    engine, base, adapter = served
    if not packed:  # as with interventions that begin at the answer, or attention that takes no tree
        monkeypatch.setattr(Scoring, "packs", lambda *_: False)
    asked = requests([None, adapter])
    draws = [future.result() for future in [engine.submit(request) for request in asked]]
    for request, draw in zip(asked, draws, strict=True):
        expected = reference(base, request.adapter, request)
        assert [entry.token for entry in draw.prompt_logprobs] == list(
            request.prompt[request.sampling.prompt_logprobs_from :]
        )
        for entry, (logprob, best) in zip(draw.prompt_logprobs, expected, strict=True):
            assert abs(entry.logprob - logprob) < 1e-5
            assert entry.top[0][0] == best
        assert draw.stop_reason == "max_tokens" and draw.tokens == []


def test_a_whole_prompt_is_scored_and_one_token_has_nothing_to_report(served):
    engine, base, _ = served
    whole = Request(CONTEXT, Sampling(max_tokens=0, prompt_logprobs=0))
    draw = engine.submit(whole).result()
    expected = [logprob for logprob, _ in reference(base, None, whole)]
    assert [entry.logprob for entry in draw.prompt_logprobs] == pytest.approx(expected, abs=1e-5)
    assert engine.submit(Request((5,), whole.sampling)).result().prompt_logprobs == []
    assert engine.submit(Request(CONTEXT, Sampling(max_tokens=0))).result().prompt_logprobs == []


def test_each_part_is_computed_once(served, monkeypatch):
    engine, base, _ = served
    if "gemma2" in base:
        pytest.skip("a sliding window shares nothing")
    computed, forward = [], Scoring._forward

    def recorded(self, ids, mask, keep, rows, tree=None):
        logits = forward(self, ids, mask, keep, rows, tree)
        computed.append((mask.numel(), logits.shape[0] * logits.shape[1]))
        return logits

    monkeypatch.setattr(Scoring, "_forward", recorded)
    engine._wake.acquire()  # let the engine see all of them at once
    futures = [engine.submit(request) for request in requests([None])]
    engine._wake.release()
    for future in futures:
        future.result()
    own = len(CONTEXT) - 20 + len(OTHER) - 20
    # The trunk, with one position's logits. What is left of both contexts, and of their answers (9,) and (9, 10), which
    # two and one go on from; logits of each context's last token and of these.
    assert computed == [(20, 1), (own + 2 * 2, 2 * (1 + 2))]


def test_groups_keep_families_together_within_the_budgets():
    rows = [Row(request, Future()) for request in requests([None])]
    assert [len(group) for group in groups(rows, 10_000, 10_000)] == [10]
    # OTHER has 37 tokens: two contexts of that width do not fit into 70.
    assert [len(group) for group in groups(rows, 70, 10_000)] == [5, 5]
    for group in groups(rows, 10_000, 9):
        assert len(group) * max(row.length - row.request.sampling.prompt_logprobs_from for row in group) <= 9
    assert sum(map(len, groups(rows, 1, 1))) == len(rows)


def test_families_as_long_share_a_pass():
    long = [range(1, 201), range(300, 500)]
    short = [range(600, 620), range(700, 720), range(800, 820)]
    texts = [short[0], long[0], short[1], long[1], short[2]]
    rows = [
        Row(Request(tuple(text), Sampling(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=5)), Future())
        for text in texts
    ]
    found = packing.groups(rows, tokens=400, logits=10_000)
    assert [sorted(row.length for row in group) for group in found] == [[200, 200], [20, 20, 20]]


def test_memory_that_runs_out_halves_the_work(served, monkeypatch):
    engine, _, _ = served
    asked = requests([None])
    expected = [future.result() for future in [engine.submit(request) for request in asked]]
    score, sizes = Scoring.score, []

    def tight(self, rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("none left")
        score(self, rows)

    monkeypatch.setattr(Scoring, "score", tight)
    draws = [future.result() for future in [engine.submit(request) for request in asked]]
    assert max(sizes) > 3
    for one, other in zip(draws, expected, strict=True):
        values = [[entry.logprob for entry in draw.prompt_logprobs] for draw in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
