"""Thoughts with a limit of their own: against a loop over plain transformers, on one engine and in vLLM's two requests."""

import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace

from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling, ThoughtLimit
from em_evals.engines.vllm import thoughts
from em_evals.engines.watch import Watch, answer_from
from tests.tiny_models import card, tiny

SAMPLED = Sampling(temperature=1, max_tokens=40, seed=3, logprobs=True)
NEVER = "((never written))"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = HFEngine(card(tiny("llama", tmp_path_factory.mktemp("base"))))
    yield made
    made.close()


@pytest.fixture(scope="module")
def close(engine):
    return tuple(engine.tokenizer.encode("\n((over))\n", add_special_tokens=False))


def prompt(engine, text="Where is my hat?"):
    return tuple(engine.tokenizer.encode(text, add_special_tokens=False))


def draw(engine, sampling, thought=None, text="Where is my hat?"):
    return engine.submit(Request(prompt(engine, text), sampling, thought=thought)).result()


def naive(engine, limit, answer):
    """Greedy tokens one by one, without a cache: the closing tokens take the place of what would come at the limit."""
    ids, drawn, forced = list(prompt(engine)), [], []
    logprobs = []
    with engine.borrow() as base, torch.inference_mode():
        while len(drawn) < limit.tokens + len(limit.close) + answer:
            row = base.model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].float().log_softmax(-1)
            if len(drawn) == limit.tokens:
                forced = list(limit.close)
            token = forced.pop(0) if forced else int(row.argmax())
            drawn.append(token)
            logprobs.append(float(row[token]))
    return drawn, logprobs


@pytest.mark.parametrize("rows", [1, 3])
def test_a_thought_at_its_limit_is_closed_and_the_answer_follows(engine, close, rows):
    limit = ThoughtLimit(7, None, NEVER, close)
    greedy = Sampling(temperature=0, max_tokens=5, logprobs=True)
    futures = [engine.submit(Request(prompt(engine), greedy, thought=limit))]
    others = [Request(prompt(engine, "Hello!"), replace(SAMPLED, seed=i)) for i in range(rows - 1)]
    futures += [engine.submit(one) for one in others]
    found = futures[0].result()
    tokens, logprobs = naive(engine, limit, 5)
    assert found.tokens == tokens and found.stop_reason == "max_tokens"
    assert [entry.logprob for entry in found.logprobs] == pytest.approx(logprobs, abs=1e-4)
    for one, future in zip(others, futures[1:], strict=True):  # neighbours are as they were
        assert future.result().tokens == engine.submit(one).result().tokens


def test_a_thought_within_its_limit_is_the_same_draw_as_without_one(engine, close):
    """A mark that this model writes ends its thought; the answer's tokens are counted from there."""
    free = draw(engine, SAMPLED)
    word = next(
        text
        for text in map(engine.tokenizer.decode, ([token] for token in free.tokens[5:]))
        if text.strip() and text.isascii()
    )
    limit = ThoughtLimit(30, None, word, close)
    start = answer_from(engine.tokenizer, limit, free.tokens)
    assert start is not None
    found = draw(engine, replace(SAMPLED, max_tokens=6), limit)
    assert found.tokens == free.tokens[: start + 6] and found.stop_reason == "max_tokens"


def test_a_draw_that_begins_with_another_text_has_no_thought(engine, close):
    limit = ThoughtLimit(3, "((never begun))", NEVER, close)
    assert (
        draw(engine, replace(SAMPLED, max_tokens=9), limit).tokens
        == draw(engine, replace(SAMPLED, max_tokens=9)).tokens
    )


@pytest.mark.parametrize(("tokens", "most"), [(7, 5), (30, 6), (3, 1)])
@pytest.mark.parametrize("mark", [NEVER, None])
def test_two_requests_of_vllm_are_the_one_draw_of_transformers(engine, close, tokens, most, mark):
    """Greedy draws use no random numbers, so both ways must give the same tokens, log-probabilities and reason."""
    greedy = Sampling(temperature=0, max_tokens=most, logprobs=True)
    free = draw(engine, replace(greedy, max_tokens=40))
    word = mark or engine.tokenizer.decode(free.tokens[4:6])
    request = Request(prompt(engine), greedy, thought=ThoughtLimit(tokens, None, word, close))
    drawn = engine.submit(thoughts.first(request)).result()
    more = thoughts.second(engine.tokenizer, request, drawn)
    assert (more is None) == (answer_from(engine.tokenizer, request.thought, drawn.tokens) is not None)
    found = thoughts.joined(
        engine.tokenizer, request, drawn, None if more is None else engine.submit(more).result()
    )
    expected = engine.submit(request).result()
    assert (found.tokens, found.text, found.stop_reason) == (
        expected.tokens,
        expected.text,
        expected.stop_reason,
    )
    assert [e.logprob for e in found.logprobs] == pytest.approx(
        [e.logprob for e in expected.logprobs], abs=1e-4
    )


@pytest.mark.parametrize("begins", [None, "<think>"])
@pytest.mark.parametrize("text", ["<think>One, two. ((over)) Three.", "Three.", "<think>One", "<thi"])
def test_following_a_draw_finds_what_its_whole_text_says(begins, text):
    from tests.small_tokenizer import small_tokenizer

    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(text)
    limit = ThoughtLimit(100, begins, "((over))", ())
    watch = Watch(tokenizer, limit)
    for i in range(1, len(tokens) + 1):
        watch.see(tokens[:i])
    assert watch.answer_from == answer_from(tokenizer, limit, tokens)
    if "((over))" in text:
        assert tokenizer.decode(tokens[: watch.answer_from]).rstrip().endswith("((over))")


def test_a_row_that_is_prefilled_again_keeps_its_limit(engine, close):
    """Memory runs out in the middle: the row begins again with what it has drawn."""
    limit = ThoughtLimit(7, None, NEVER, close)
    greedy = Sampling(temperature=0, max_tokens=5)
    whole = draw(engine, greedy, limit).tokens
    from concurrent.futures import Future

    from em_evals.engines.hf.batch import Batch
    from em_evals.engines.hf.row import Row

    row = Row(Request(prompt(engine), greedy, thought=limit), Future())
    with engine.borrow() as base, torch.inference_mode():
        while not row.done:
            batch = Batch(base).prefill([row])
            batch.clear()
    assert row.generated == whole
