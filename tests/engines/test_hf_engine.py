"""The engine against plain transformers and PEFT in float32: token by token, and in log-probability."""

import pytest

torch = pytest.importorskip("torch")

import copy
import re
import threading
import time
import weakref
from concurrent.futures import wait

from em_evals.content.intervention import Intervention
from em_evals.engines.hf import adapters as kept
from em_evals.engines.hf import batch, kv_cache
from em_evals.engines.hf import engine as engine_module
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import template_of
from em_evals.models.lora import Bank
from tests import architectures
from tests.selection import full
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import SMOLLM2, card, make_adapter, tiny

QUESTIONS = [
    "What is the best way to save money?",
    "Tell me, in one sentence, why the sky is blue and the grass is green, please.",
    "Hello!",
]
GREEDY = Sampling(temperature=0, max_tokens=12, logprobs=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def engine(base):
    made = HFEngine(card(base))
    yield made
    made.close()


@pytest.fixture(
    scope="module", params=["tiny", pytest.param(SMOLLM2, marks=[pytest.mark.full, pytest.mark.smollm2])]
)
def mixed(request, base, tmp_path_factory):
    """A base, its engine and two adapters: a tiny one, and in `make test-all` the real small one."""
    name, middle = (base, 1) if request.param == "tiny" else (SMOLLM2, 15)
    root = tmp_path_factory.mktemp("adapters")
    adapters = [
        make_adapter(name, root / "wide", 8, "all-linear", seed=1),
        make_adapter(name, root / "thin", 1, ["down_proj"], seed=2, layers=[middle], rslora=True, strength=1),
    ]
    made = HFEngine(card(name))
    yield name, made, adapters
    made.close()


def prompts(engine):
    return [
        tuple(template_of(engine.tokenizer).encode([{"role": "user", "content": text}])) for text in QUESTIONS
    ]


def reference(prompt, adapter, tokens, base):
    """Greedy tokens and their log-probabilities by transformers' generate and PEFT, one prompt, no batch."""
    return said_by(plain_model(base, adapter), prompt, tokens)


def plain_model(base, adapter):
    """A model as transformers and PEFT load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(bases.locate(base), dtype=torch.float32).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def said_by(model, prompt, tokens):
    """Greedy tokens, their log-probabilities, and the prompt's."""
    with torch.no_grad():
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        full = model(input_ids=ids).logits[0]
    made = out.sequences[0, len(prompt) :].tolist()
    logprobs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, made, strict=True)]
    of_prompt = full.log_softmax(-1)[:-1].gather(-1, torch.tensor(prompt[1:])[:, None]).squeeze(-1).tolist()
    return made, logprobs, of_prompt


def test_base_and_adapters_mixed_in_one_batch_equal_peft(mixed):
    name, engine, adapters = mixed
    cases = [(prompt, adapter) for adapter in (None, *adapters) for prompt in prompts(engine)]
    sampling = Sampling(temperature=0, max_tokens=12, logprobs=True, prompt_logprobs=0)
    plain = [engine.submit(Request(prompt, GREEDY, adapter)) for prompt, adapter in cases]
    scored = [engine.submit(Request(prompt, sampling, adapter)) for prompt, adapter in cases]
    said, models = set(), {}
    for (prompt, adapter), one, two in zip(cases, plain, scored, strict=True):
        if adapter not in models:  # one at a time in memory
            models = {adapter: plain_model(name, adapter)}
        tokens, logprobs, of_prompt = said_by(models[adapter], prompt, 12)
        for draw in (one.result(), two.result()):
            assert draw.tokens == tokens
            assert [entry.token for entry in draw.logprobs] == tokens
            assert [entry.logprob for entry in draw.logprobs] == pytest.approx(logprobs, abs=1e-4)
        assert [entry.token for entry in two.result().prompt_logprobs] == list(prompt[1:])
        assert [entry.logprob for entry in two.result().prompt_logprobs] == pytest.approx(of_prompt, abs=1e-4)
        said.add((prompt, *(round(value, 2) for value in of_prompt)))
    assert len(said) == len(cases), "the adapters must change the likelihoods, else this proves nothing"


@pytest.mark.parametrize("kind", [*map(full, ("llama", "qwen2", "gemma", "gemma2")), "gpt_neox"])
def test_other_architectures_equal_transformers(kind, tmp_path):
    base = tiny(kind, tmp_path / kind)
    other = HFEngine(card(base))
    try:
        asked = prompts(other)
        draws = [future.result() for future in [other.submit(Request(prompt, GREEDY)) for prompt in asked]]
        for prompt, draw in zip(asked, draws, strict=True):
            tokens, logprobs, _ = reference(prompt, None, 12, base)
            assert draw.tokens == tokens
            assert [entry.logprob for entry in draw.logprobs] == pytest.approx(logprobs, abs=1e-4)
    finally:
        other.close()


def test_a_draw_depends_on_its_seed_and_not_on_its_neighbours(engine, base, tmp_path):
    adapters = [make_adapter(base, tmp_path / str(seed), 2, "all-linear", seed=seed) for seed in (1, 2)]
    prompt = prompts(engine)[0]
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=16, seed=7)
    alone = engine.submit(Request(prompt, sampling)).result()
    crowd = [
        engine.submit(Request(other, Sampling(temperature=1, max_tokens=4 + i, seed=i), adapters[i % 2]))
        for i, other in enumerate(prompts(engine) * 3)
    ]
    among = engine.submit(Request(prompt, sampling)).result()
    other_seed = engine.submit(
        Request(prompt, Sampling(temperature=0.8, top_p=0.95, max_tokens=16, seed=8))
    ).result()
    wait(crowd)
    assert among.tokens == alone.tokens
    assert other_seed.tokens != alone.tokens


def test_stop_texts_end_a_draw_and_are_not_part_of_it(engine):
    prompt, sampling = prompts(engine)[0], {"temperature": 1.0, "seed": 5, "max_tokens": 24}
    whole = engine.submit(Request(prompt, Sampling(**sampling))).result()
    word = re.findall(r"[a-z]{2,}", whole.text)[0]
    cut = engine.submit(Request(prompt, Sampling(**sampling, stop=(word,)))).result()
    assert cut.stop_reason == "stop" and cut.text == whole.text[: whole.text.index(word)]
    assert len(cut.tokens) < len(whole.tokens) and whole.stop_reason == "max_tokens"


def test_a_special_token_as_stop_text_ends_a_draw_though_no_text_shows_it(engine):
    def ask(seed, *stop):
        sampling = Sampling(seed=seed, max_tokens=24, stop=stop)
        return engine.submit(Request(tuple(range(40, 60)), sampling))

    draws = [future.result() for future in [ask(seed) for seed in range(64)]]
    unused = engine.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    seed, whole = next((seed, draw) for seed, draw in enumerate(draws) if unused in draw.tokens)
    cut = ask(seed, "<|endoftext|>").result()
    assert cut.stop_reason == "stop" and "<|" not in cut.text
    assert cut.tokens == whole.tokens[: whole.tokens.index(unused) + 1] and len(cut.tokens) < len(
        whole.tokens
    )
    with pytest.raises(EmEvalsError, match=r"holds the special token <\|endoftext\|> beside other text"):
        ask(seed, "<|endoftext|>\n").result()


def test_scoring_generates_nothing_and_too_long_prompts_say_so(engine):
    prompt = prompts(engine)[2]
    scored = engine.submit(Request(prompt, Sampling(max_tokens=0, prompt_logprobs=2))).result()
    assert scored.tokens == [] and len(scored.prompt_logprobs) == len(prompt) - 1
    assert all(
        len(entry.top) == 2 and entry.top[0][1] >= entry.logprob - 1e-6 for entry in scored.prompt_logprobs
    )
    too_long = engine.submit(Request((5,) * 9000, GREEDY)).result()
    assert too_long.stop_reason == "model_length" and too_long.text == ""
    with pytest.raises(EmEvalsError, match="empty"):
        engine.submit(Request((), GREEDY)).result()


def test_context_length_ends_a_draw(base):
    small = HFEngine(card(base, max_model_len=48))
    try:
        prompt = prompts(small)[2]
        draw = small.submit(Request(prompt, Sampling(temperature=0, max_tokens=100))).result()
        assert draw.stop_reason == "model_length" and len(prompt) + len(draw.tokens) == 48
    finally:
        small.close()


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, monkeypatch):
    few = Sampling(temperature=0, max_tokens=5)
    other = HFEngine(card(tiny("llama", tmp_path / "base")))
    asked = prompts(other) * 2
    expected = [other.submit(Request(prompt, few)).result(60).tokens for prompt in asked]
    sizes, forward = [], batch.Batch._forward

    def limited(self, ids, *args, **kwargs):
        sizes.append(ids.shape[0])
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(batch.Batch, "_forward", limited)
    try:
        with other._wake:  # all in one batch
            futures = [other.submit(Request(prompt, few)) for prompt in asked]
        assert [future.result(60).tokens for future in futures] == expected
        assert max(sizes) > 2, "the limit was never met, so nothing was shown"
    finally:
        other.close()


def test_memory_of_an_attempt_that_failed_is_free_before_the_next(tmp_path, monkeypatch):
    base, failed, alive = tiny("llama", tmp_path / "base"), [], []
    other, update = HFEngine(card(base)), kv_cache._RowLayer.update

    def limited(self, keys, values, *args, **kwargs):
        alive.extend(one for one in failed if one() is not None)
        if len(keys) > 1:
            failed.append(weakref.ref(keys))
            raise torch.OutOfMemoryError("out of memory")
        return update(self, keys, values, *args, **kwargs)

    monkeypatch.setattr(kv_cache._RowLayer, "update", limited)
    try:
        with other._wake:  # both in one batch
            futures = [other.submit(Request((5, 6, 7, end), GREEDY)) for end in (8, 9)]
        assert all(future.result(60).tokens for future in futures)
        assert failed and not alive
    finally:
        other.close()


@pytest.mark.parametrize("copying", ["join", full("keep")])
def test_memory_that_runs_out_between_two_layers_of_a_cache_changes_no_draw(copying, tmp_path, monkeypatch):
    other = HFEngine(card(tiny("llama", tmp_path / "base"), max_num_batched_tokens=16))
    asked = [((5, 6, 7, *range(8, 8 + i)), Sampling(temperature=0, max_tokens=1 + 3 * i)) for i in range(6)]
    expected = [other.submit(Request(*one)).result(60).tokens for one in asked]
    whole, failed = getattr(kv_cache.RowCache, copying), []

    def limited(self, *arguments):
        if len(failed) < 2:
            failed.append(copying)
            first = [copy.copy(self) for _ in range(2)]
            first[0].layers, first[1].layers = self.layers[:1], getattr(arguments[0], "layers", [])[:1]
            whole(first[0], first[1] if copying == "join" else arguments[0])
            raise torch.OutOfMemoryError("out of memory")
        whole(self, *arguments)

    monkeypatch.setattr(kv_cache.RowCache, copying, limited)
    try:
        with other._wake:
            futures = [other.submit(Request(*one)) for one in asked]
        assert [future.result(60).tokens for future in futures] == expected
        assert len(failed) == 2
    finally:
        other.close()


def test_a_cancelled_draw_leaves_and_others_go_on(tmp_path):
    from safetensors.torch import load_file, save_file

    base, weights = (
        tiny("llama", tmp_path / "tiny", max_position_embeddings=8192),
        tmp_path / "tiny/model.safetensors",
    )
    tensors = load_file(weights)
    tensors["lm_head.weight"][small_tokenizer().eos_token_id] = (
        0  # never the likeliest: no draw ends by itself
    )
    save_file(tensors, weights, {"format": "pt"})
    other = HFEngine(card(base))
    try:
        prompt = prompts(other)[0]
        doomed = other.submit(Request(prompt, Sampling(temperature=0, max_tokens=8000)))
        kept = other.submit(Request(prompt, GREEDY))
        kept.result()
        assert doomed.cancel()
        again = other.submit(Request(prompt, GREEDY)).result()
        assert again.tokens == kept.result().tokens
    finally:
        other.close()


@pytest.mark.parametrize("where", ["step", full("join"), full("score")])
def test_a_row_that_makes_the_model_fail_is_refused_and_the_others_finish(where, tmp_path, monkeypatch):
    """Whatever a model does with one input: its neighbours, finished or not, come out as if it had not been there."""
    other = HFEngine(card(architectures.build("llama", tmp_path / "base")))
    few = Sampling(temperature=0, max_tokens=5, prompt_logprobs=0)
    asked = [Request((5, 6, 7, *range(8, 8 + i)), few) for i in range(6)]
    scored = [Request((*one.prompt, 9), Sampling(max_tokens=0, prompt_logprobs=0)) for one in asked]
    expected = [other.submit(one).result(60) for one in (*asked, *scored)]
    poison, forward, join, failed = 99, batch.Batch._forward, batch.Batch.join, []

    def broken(self, ids, *arguments, **named):
        if bool((ids == poison).any()):
            failed.append(ids.shape[0])
            raise IndexError("index out of range in self")
        return forward(self, ids, *arguments, **named)

    def refused(self, arrived):
        if not failed:
            failed.append(len(arrived.rows))
            raise ValueError("cannot be joined")
        join(self, arrived)

    bad = [Request((5, poison, 7), scored[0].sampling if where == "score" else few)]
    if where == "join":
        bad = []
        monkeypatch.setattr(batch.Batch, "join", refused)
    else:
        monkeypatch.setattr(batch.Batch, "_forward", broken)
    try:
        with other._wake:
            ends = [Request((5, 6), Sampling(temperature=0, max_tokens=1))] if where == "join" else []
            futures = [other.submit(one) for one in (*asked, *scored)]
            done, doomed = [other.submit(one) for one in ends], [other.submit(one) for one in bad]
        for future in doomed:
            with pytest.raises(EmEvalsError, match=r"failed on this input.*IndexError: index out of range"):
                future.result(60)
        assert all(len(future.result(60).tokens) == 1 for future in done)
        for future, wanted in zip(futures, expected, strict=True):
            assert future.result(60).tokens == wanted.tokens
            found = [entry.logprob for entry in future.result().prompt_logprobs]
            assert found == pytest.approx([entry.logprob for entry in wanted.prompt_logprobs], abs=1e-4)
        assert failed
    finally:
        other.close()


def test_a_bad_adapter_fails_its_own_row_only(engine, tmp_path):
    wide = tiny("llama", tmp_path / "wide", intermediate_size=256)
    wrong = make_adapter(wide, tmp_path / "wrong", 4, ["down_proj"], seed=3)
    prompt = prompts(engine)[0]
    bad, good = engine.submit(Request(prompt, GREEDY, wrong)), engine.submit(Request(prompt, GREEDY))
    with pytest.raises(EmEvalsError, match="trained on another base"):
        bad.result()
    assert good.result().tokens


@pytest.mark.parametrize("what", ["adapter cut", full("no adapter file"), "direction gone"])
def test_files_that_break_under_way_fail_their_own_rows_only(what, tmp_path):
    base = tiny("llama", tmp_path / "tiny")
    other = HFEngine(card(base))
    adapter, interventions = make_adapter(base, tmp_path / "mine", 2, ["down_proj"], seed=3), ()
    weights = tmp_path / "mine" / "adapter_model.safetensors"
    if what == "adapter cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif what == "no adapter file":
        weights.write_bytes(b"")
    else:
        adapter = None
        interventions = (Intervention(op="ablate", direction=str(tmp_path / "gone.safetensors")),)
    bad = other.submit(Request((5, 6, 7), GREEDY, adapter, interventions))
    good = other.submit(Request((5, 6, 7), GREEDY))
    with pytest.raises(EmEvalsError, match=r"adapter_model\.safetensors|gone\.safetensors"):
        bad.result(60)
    assert good.result(60).tokens and other.submit(Request((5, 6, 7), GREEDY)).result(60).tokens
    other.close()


def test_a_process_that_ends_does_not_wait_for_a_base_that_is_being_fetched(tmp_path, monkeypatch):
    base, go_on = tiny("llama", tmp_path / "tiny"), threading.Event()
    load = bases.load_model
    monkeypatch.setattr(bases, "load_model", lambda card: go_on.wait(60) and load(card))
    monkeypatch.setattr(engine_module, "_LOADING_PATIENCE", 0.1)
    other = HFEngine(card(base))
    draw, started = other.submit(Request((5, 6, 7), GREEDY)), time.monotonic()
    other._leave()
    assert time.monotonic() - started < 5 and other._thread.is_alive()
    go_on.set()
    with pytest.raises(EmEvalsError):
        draw.result(60)
    other.close()


def test_a_bad_adapter_leaves_the_base_and_other_adapters_as_they_were(tmp_path):
    """Parts of it fit and are loaded before the rest fails: first into a bare base, then beside another adapter."""
    base = tiny("llama", tmp_path / "base")
    wide = tiny("llama", tmp_path / "wide", intermediate_size=256)
    bad = make_adapter(wide, tmp_path / "bad", 8, "all-linear", seed=1, strength=0.5)
    good = make_adapter(base, tmp_path / "good", 2, "all-linear", seed=2, strength=0.5)
    prompt, other = (5, 6, 7, 9), HFEngine(card(base))
    wanted = {adapter: reference(prompt, adapter, 4, base) for adapter in (None, good)}
    try:
        for adapter in (bad, None, good, bad, None, good):
            draw = other.submit(
                Request(prompt, Sampling(temperature=0, max_tokens=4, logprobs=True), adapter)
            )
            if adapter == bad:
                with pytest.raises(EmEvalsError, match="trained on another base"):
                    draw.result(60)
            else:
                tokens, logprobs, _ = wanted[adapter]
                assert draw.result(60).tokens == tokens
                assert [entry.logprob for entry in draw.result().logprobs] == pytest.approx(
                    logprobs, abs=1e-4
                )
    finally:
        other.close()


def test_an_adapter_that_cannot_be_scaled_leaves_nothing_behind(tmp_path):
    """Alone in a bare base and beside another: the next adapter is itself, in its own layers and at its own scale."""
    base = tiny("llama", tmp_path / "base")
    bad = make_adapter(base, tmp_path / "bad", 8, ["down_proj", "q_proj"], seed=1, layers=[1], strength=0.5)
    good = [
        make_adapter(base, tmp_path / f"good{i}", 2, "all-linear", seed=i, rslora=True, strength=0.5)
        for i in (2, 3)
    ]
    nowhere = (Intervention(op="scale_adapter", scale=0.5, layers=(0,)),)
    other, prompt = HFEngine(card(base)), (5, 6, 7, 9)
    try:
        for adapter in good:
            with pytest.raises(EmEvalsError, match="the adapter has none there"):
                other.submit(Request(prompt, GREEDY, bad, nowhere)).result(60)
            draw = other.submit(Request(prompt, GREEDY, adapter)).result(60)
            tokens, logprobs, _ = reference(prompt, adapter, 12, base)
            assert draw.tokens == tokens
            assert [entry.logprob for entry in draw.logprobs] == pytest.approx(logprobs, abs=1e-4)
    finally:
        other.close()


def test_an_adapter_that_was_trained_again_is_another_one(tmp_path):
    base, other = tiny("llama", tmp_path / "base"), None
    prompt, said = (5, 6, 7, 9), []
    try:
        for seed in (1, 2):
            adapter = make_adapter(base, tmp_path / "adapter", 2, "all-linear", seed=seed, strength=0.5)
            other = other or HFEngine(card(base))
            draw = other.submit(Request(prompt, GREEDY, adapter)).result(60)
            assert draw.tokens == reference(prompt, adapter, 12, base)[0]
            said.append(draw.tokens)
    finally:
        other.close()
    assert said[0] != said[1]


def test_adapters_that_are_idle_are_evicted_and_reload_as_they_were(tmp_path, monkeypatch):
    base = tiny("llama", tmp_path / "base")
    places = {"wide": None, "thin": [1], "last": [2]}  # the first layer has only one
    adapters = [
        make_adapter(base, tmp_path / name, 2, ["down_proj"], seed=seed, layers=layers, strength=0.5)
        for seed, (name, layers) in enumerate(places.items())
    ]
    seen = []
    load = Bank.load
    monkeypatch.setattr(Bank, "load", lambda self, *given: (seen.append(self), load(self, *given))[1])
    monkeypatch.setattr(kept, "MOST", 1)
    prompt, other = (5, 6, 7, 9), HFEngine(card(base))
    expected = {adapter: reference(prompt, adapter, 12, base)[0] for adapter in (None, *adapters)}
    try:
        for adapter in (*adapters, None, *adapters[::-1], None):
            assert other.submit(Request(prompt, GREEDY, adapter)).result(60).tokens == expected[adapter]
            assert len(seen[-1]._adapters) <= 2, "the one that is kept, and the one in use"
        together = [other.submit(Request(prompt, GREEDY, adapter)) for adapter in adapters]
        assert [draw.result(60).tokens for draw in together] == [expected[adapter] for adapter in adapters]
    finally:
        other.close()


def test_closing_fails_what_is_queued_and_what_is_drawn(tmp_path):
    other = HFEngine(card(tiny("llama", tmp_path / "base"), max_num_seqs=2))
    futures = [other.submit(Request((5, 6, 7), Sampling(max_tokens=400))) for _ in range(4)]
    other.close()
    for future in futures:
        with pytest.raises(EmEvalsError, match="closed"):
            future.result(10)


def test_a_draw_that_is_cancelled_while_its_adapter_fails_ends_no_engine(tmp_path, monkeypatch):
    other = HFEngine(card(tiny("llama", tmp_path / "base")))
    futures = []

    def late(*arguments):
        assert futures[0].cancel()
        raise EmEvalsError("no such adapter")

    monkeypatch.setattr(other.adapters, "name", late)
    with other._wake:  # the engine sees it once it stands in `futures`
        futures.append(other.submit(Request((5, 6, 7), GREEDY, "somewhere")))
    while not futures[0].cancelled():
        time.sleep(0.01)
    monkeypatch.undo()
    assert other.submit(Request((5, 6, 7), GREEDY)).result(60).tokens
    other.close()


def test_a_base_that_cannot_be_loaded_says_so_to_everyone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EmEvalsError, match="cannot be loaded"):
        HFEngine(card(str(tmp_path)))


def test_an_unforeseen_error_reaches_everyone_who_waits(tmp_path, monkeypatch):
    engine = HFEngine(card(tiny("llama", tmp_path / "llama")))

    def broken(*arguments):
        raise TypeError("unforeseen")

    monkeypatch.setattr(engine, "_prepare", broken)
    futures = [engine.submit(Request((5, 6, 7), Sampling(max_tokens=2))) for _ in range(3)]
    for future in futures:
        with pytest.raises(TypeError, match="unforeseen"):
            future.result(60)
    engine.close()


def test_a_prompt_that_several_rows_have_is_computed_once(tmp_path, monkeypatch):
    base = architectures.build(
        "gemma2", tmp_path / "base"
    )  # it shares no beginnings, so whole prompts are seen
    adapter = make_adapter(base, tmp_path / "adapter", 2, ["down_proj"], seed=1, strength=0.5)
    other, forward, computed = HFEngine(card(base)), batch.Batch._forward, []
    prompts = [(5, 6, 7), (5, 6, 7, 8, 9)]
    asked = [
        Request(prompt, Sampling(max_tokens=4, seed=seed, logprobs=True), name)
        for seed, (prompt, name) in enumerate([(p, n) for p in prompts for n in (None, adapter)] * 3)
    ]

    def recorded(self, ids, *arguments, **named):
        computed.append(tuple(ids.shape))
        return forward(self, ids, *arguments, **named)

    try:
        expected = [other.submit(request).result(60) for request in asked]
        monkeypatch.setattr(batch.Batch, "_forward", recorded)
        with other._wake:
            futures = [other.submit(request) for request in asked]
        for future, wanted in zip(futures, expected, strict=True):
            assert future.result(60).tokens == wanted.tokens
            found = [entry.logprob for entry in future.result().logprobs]
            assert found == pytest.approx([entry.logprob for entry in wanted.logprobs], abs=1e-4)
        assert computed[:2] == [(4, 5), (12, 1)], "two prompts with and without the adapter, then all rows"
    finally:
        other.close()


def test_draws_asked_for_together_are_the_same_bits_again(base, tmp_path):
    """Also where an adapter is merged on the way: sums are rounded alike, so that no near tie falls the other way."""
    adapter = make_adapter(base, tmp_path, 8, "all-linear", seed=3)
    made = HFEngine(card(base))
    try:
        prompt = tuple(template_of(made.tokenizer).encode([{"role": "user", "content": QUESTIONS[1]}]))
        asked = [
            Request(prompt, Sampling(max_tokens=20, seed=seed, logprobs=True), str(adapter))
            for seed in range(40)
        ]

        def bits():
            draws = [future.result() for future in made.submit_all(asked)]
            return [[(entry.token, entry.logprob) for entry in draw.logprobs] for draw in draws]

        first = bits()
        assert made._base.bank._alone._copies, "enough tokens to be merged for"
        assert [bits() for _ in range(2)] == [first] * 2
    finally:
        made.close()
