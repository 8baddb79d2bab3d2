"""Draws and log-probabilities of the shared server are the transformers engine's, whatever meets in a batch."""

import re
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.protocol import Request, Sampling, ThoughtLimit
from em_evals.errors import EmEvalsError
from em_evals.models.chat import template_of
from tests.engines.vllm.lab import GREEDY, SHARED, logprobs, metric, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def expected(reference, models):
    """The transformers engine's draws, prompts scored as well; the answer begins five tokens before the prompt's end."""
    scoring = Sampling(temperature=0, max_tokens=6, logprobs=True, prompt_logprobs=0)
    futures = {
        (i, j, given): reference.submit(Request(prompt, scoring, *model, len(prompt) - 5 if given else None))
        for i, model in enumerate(models)
        for j, prompt in enumerate(prompts(reference))
        for given in (False, True)
    }
    return {place: future.result(900) for place, future in futures.items()}


def test_all_models_mixed_in_one_batch_equal_the_transformers_engine(engine, models, expected):
    futures = {
        (i, j, False): engine.submit(Request(prompt, GREEDY, *model))
        for j, prompt in enumerate(prompts(engine))
        for i, model in enumerate(models)
    }
    for place, future in futures.items():
        draw = future.result(900)
        assert draw.tokens == expected[place].tokens, place
        assert draw.text == expected[place].text and draw.stop_reason == expected[place].stop_reason
        assert logprobs(draw.logprobs) == pytest.approx(logprobs(expected[place].logprobs), abs=1e-3), place
    assert engine.plan.loras == 4 and engine.plan.steps == 3, "a subspace of two directions is two steps"


def test_prefix_cache_is_shared_by_equal_models_only(engine, reference, loras, sets):
    """One request at a time: which blocks the cache still holds is then no matter of luck."""
    # Words that no other test has put into the cache, from the first block on.
    head = {"role": "system", "content": "Things that nobody else asks about."}
    first, second = (
        tuple(template_of(engine.tokenizer).encode([head, {"role": "user", "content": SHARED + end}]))
        for end in ("Why is grass green?", "Who wrote this?")
    )
    kinds = [(None, ()), (None, sets["add"]), (loras["r16"], ()), (loras["r16"], sets["add"])]
    for model in kinds:
        for prompt, shares in ((first, False), (second, True)):
            before = metric(engine, "prefix_cache_hits_total")
            draw = engine.submit(Request(prompt, GREEDY, *model)).result(300)
            want = reference.submit(Request(prompt, GREEDY, *model)).result(300)
            assert draw.tokens == want.tokens
            assert logprobs(draw.logprobs) == pytest.approx(logprobs(want.logprobs), abs=1e-3)
            assert (metric(engine, "prefix_cache_hits_total") > before) == shares, model


def test_preempted_draws_equal_the_transformers_engine(engine, base, reference, models):
    long = Sampling(temperature=0, max_tokens=max(40, base.answer), logprobs=True)
    requests = [Request(prompts(engine)[0], long, *model) for model in models[:3] + models[-9:]]
    # Adapters are waited for: what meets in the cache for certain is asked of the base.
    requests += [Request((*prompts(engine)[0], token), long) for token in range(20, 40)]
    draws = [engine.submit(request) for request in requests]
    wanted = [reference.submit(request) for request in requests]
    for draw, want in zip(draws, wanted, strict=True):
        assert draw.result(900).tokens == want.result(900).tokens
        assert logprobs(draw.result().logprobs) == pytest.approx(logprobs(want.result().logprobs), abs=1e-3)
    assert metric(engine, "num_preemptions_total") > 0, "the cache was to be too small for all"


@pytest.mark.parametrize(("tokens", "marked"), [(5, False), (30, True)])
def test_limited_thoughts_equal_the_transformers_engine(engine, reference, models, tokens, marked):
    """Closed at the limit by a second request, or ended before it by a mark that this model writes."""
    close = tuple(engine.tokenizer.encode("\n((over))\n", add_special_tokens=False))
    asked = Sampling(temperature=0, max_tokens=6, logprobs=True)
    prompt = prompts(engine)[1]  # the tiny base ends its answer to the first after three tokens
    for model in (models[0], models[-1]):
        free = reference.submit(Request(prompt, Sampling(temperature=0, max_tokens=12), *model)).result(300)
        assert len(free.tokens) == 12, "without a limit, the model must write beyond it"
        word = engine.tokenizer.decode(free.tokens[3:5]) if marked else "((never written))"
        request = Request(prompt, asked, *model, thought=ThoughtLimit(tokens, None, word, close))
        draw, want = engine.submit(request).result(300), reference.submit(request).result(300)
        assert (draw.tokens, draw.text, draw.stop_reason) == (want.tokens, want.text, want.stop_reason)
        assert logprobs(draw.logprobs) == pytest.approx(logprobs(want.logprobs), abs=1e-3)
        if marked:  # at the latest behind these two tokens
            assert draw.tokens == free.tokens[: len(draw.tokens)] and 6 < len(draw.tokens) <= 5 + 6
        else:
            assert draw.tokens[: 5 + len(close)] == [*free.tokens[:5], *close]
            assert 0 < len(draw.tokens) - 5 - len(close) <= 6


def test_prompt_logprobs_and_answer_starts_equal_the_transformers_engine(engine, models, expected):
    scoring = Sampling(temperature=0, max_tokens=0, prompt_logprobs=2)
    futures = {
        (i, j, True): engine.submit(Request(prompt, scoring, *model, len(prompt) - 5))
        for j, prompt in enumerate(prompts(engine)[:2])
        for i, model in enumerate(models)
    }
    scored = {place: future.result(900) for place, future in futures.items()}
    for (i, j, given), draw in scored.items():
        assert draw.tokens == [] and [entry.token for entry in draw.prompt_logprobs] == list(
            prompts(engine)[j][1:]
        )
        assert logprobs(draw.prompt_logprobs) == pytest.approx(
            logprobs(expected[i, j, given].prompt_logprobs), abs=1e-3
        )
        assert all(
            len(entry.top) == 2 and entry.top[0][1] >= entry.top[1][1] for entry in draw.prompt_logprobs
        )
        if i:
            gap = np.subtract(logprobs(draw.prompt_logprobs), logprobs(scored[0, j, True].prompt_logprobs))
            assert np.abs(gap).max() > 1e-3, "every model must differ from the base, else this proves nothing"


def test_a_late_adapter_replaces_an_idle_one(engine, reference, loras, models):
    """All slots are taken by now; rows without an adapter must not get the last slot's."""
    prompt = prompts(engine)[0]
    wanted = [(loras["late"], ()), *models[:1], *models[-4:-2]]
    draws = [engine.submit(Request(prompt, GREEDY, *model)) for model in wanted]
    refs = [reference.submit(Request(prompt, GREEDY, *model)) for model in wanted]
    for draw, ref in zip(draws, refs, strict=True):
        assert draw.result(300).tokens == ref.result(300).tokens
        assert logprobs(draw.result().logprobs) == pytest.approx(logprobs(ref.result().logprobs), abs=1e-3)


def test_seeds_stop_texts_and_context_length(engine):
    prompt = prompts(engine)[0]
    hot = Sampling(temperature=1, max_tokens=12, logprobs=True, top_logprobs=3)

    def draw(**changes):
        return engine.submit(Request(prompt, Sampling(**{**vars(hot), **changes})))

    futures = [draw(seed=seed) for seed in (5, 5, 6, 5 + (1 << 64), 5 + (1 << 64))]
    one, two, three, four, five = (future.result(300) for future in futures)
    assert one.tokens == two.tokens != three.tokens
    assert four.tokens == five.tokens != one.tokens, "seeds beyond 64 bits are told apart"
    assert all(len(entry.top) == 3 and entry.logprob <= entry.top[0][1] for entry in one.logprobs)
    assert one.stop_reason == "max_tokens"
    chunked = Request(prompts(engine)[1], Sampling(temperature=1, max_tokens=8, seed=3))
    alone = engine.submit(chunked).result(300).tokens
    crowd = [engine.submit(chunked) for _ in range(6)]
    assert all(draw.result(300).tokens == alone for draw in crowd), "chunks take no random numbers"
    word = re.findall(r"[a-z]{2,}", one.text)[1]
    cut = draw(seed=5, stop=(word,)).result(300)
    assert cut.stop_reason == "stop" and cut.text == one.text[: one.text.index(word)]
    full = prompt * (250 // len(prompt))
    ended = engine.submit(Request((full * 2)[:253], Sampling(temperature=0, max_tokens=50))).result(300)
    assert ended.stop_reason in {"model_length", "stop"} and len(ended.tokens) <= 3
    assert engine.submit(Request((full * 2)[:256], GREEDY)).result(300).stop_reason == "model_length"


def test_requests_that_cannot_be_served_are_refused_by_name_and_others_finish(engine, root, loras, direction):
    prompt = prompts(engine)[0]
    broken = root / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "adapter_config.json").write_bytes(
        (root / "adapters" / "r4" / "adapter_config.json").read_bytes()
    )
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    wrong = Direction(np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32), np.ones(2, np.float32))
    directions.write(wrong, root / "wrong.safetensors")
    cases = [
        ((str(broken), ()), "broken"),
        ((str(root / "nowhere"), ()), "nowhere"),
        ((None, (Intervention(op="ablate", direction=str(root / "wrong.safetensors")),)), "another base"),
        ((None, (Intervention(op="add", direction=direction, layers=(77,)),)), "layer 77"),
        (
            (None, (Intervention(op="ablate", direction=direction, site="writes", from_layer=1),)),
            "em-evals compile",
        ),
        ((loras["r1"], (Intervention(op="scale_adapter", layers=(0,), scale=0),)), "none there"),
    ]
    for model, sentence in cases:
        with pytest.raises(EmEvalsError, match=sentence):
            engine.submit(Request(prompt, GREEDY, *model)).result(300)
    with pytest.raises(EmEvalsError, match="empty"):
        engine.submit(Request((), GREEDY)).result(60)
    assert engine.submit(Request(prompt, GREEDY)).result(300).tokens


def test_a_cancelled_draw_is_removed_from_the_server(engine):
    long = engine.submit(Request(prompts(engine)[0], Sampling(temperature=1, max_tokens=200, seed=1)))
    deadline = time.monotonic() + 60
    while not metric(engine, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    long.cancel()
    while metric(engine, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not metric(engine, "num_requests_running")
