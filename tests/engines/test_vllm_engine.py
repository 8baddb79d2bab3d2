"""The vLLM engine, its server and the names of cards on it: one server for all tests here.

In `make test` on a tiny base, in `make test-all` on the real small one too.

The server is made uncomfortable: little memory for keys and values, so that requests are preempted; prompts prefilled
in chunks; every adapter slot taken; prefixes shared. What comes out must still be the transformers engine's.
"""

import asyncio
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.solver import generate

from em_evals.content import directions
from em_evals.content.cards import ModelCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines import pool as pool_module
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm.engine import VLLMEngine
from em_evals.engines.vllm.variants import variant
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.tasks import freeform
from em_evals.models import bases
from em_evals.models.chat import encode_chat
from tests.models.test_interventions import SETS
from tests.tiny_models import SMOLLM2, card, make_adapter, tiny

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Base:
    """The base that all tests here are about."""

    path: str
    layers: int
    width: int
    token_bytes: int
    """Of keys and values in float32."""
    answer: int
    """Tokens of answers that take long enough to be interrupted."""

    @property
    def engine(self):
        return {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 64,  # prompts come in chunks
            "kv_cache_memory_bytes": 546 * self.token_bytes,
            "max_loras": 4,
            "vllm": {"block_size": 32},
        }

    @property
    def card(self):
        return ModelCard.model_validate({"base": self.path, "backend": "vllm", "engine": self.engine})


SHARED = (
    "Think about this list before you answer: "
    + ", ".join(f"item {n} is number {n * 7}" for n in range(6))
    + ". "
)
QUESTIONS = [
    "Hello, who are you?",
    SHARED + "What is the best way to save money?",
    SHARED + "Why is the sky blue?",
]
GREEDY = Sampling(temperature=0, max_tokens=6, logprobs=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(
    scope="module",
    params=["tiny", pytest.param("smollm2", marks=[pytest.mark.full, pytest.mark.smollm2])],
)
def base(request, root):
    if request.param == "smollm2":
        return Base(SMOLLM2, layers=30, width=576, token_bytes=30 * 3 * 64 * 2 * 4, answer=20)
    # vLLM's attention on CPU knows heads of 32 and more.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    made = tiny("llama", root / "tiny", **heads)
    return Base(made, layers=3, width=64, token_bytes=3 * 1 * 32 * 2 * 4, answer=100)


@pytest.fixture(scope="module")
def direction(root, base):
    chance = np.random.default_rng(0)
    shape = (base.layers, base.width)
    found = Direction(
        chance.normal(size=shape).astype(np.float32),
        chance.normal(size=shape).astype(np.float32),
        np.full(base.layers, 40.0, np.float32),
    )
    directions.write(found, root / "adapters" / "d.safetensors")
    return str(root / "adapters" / "d.safetensors")


@pytest.fixture(scope="module")
def loras(root, base):
    make = {
        "r1": (1, ["down_proj"], 1, [base.layers // 2], False, 1),
        "r16": (16, "all-linear", 2, None, False, 0.05),
        "rs": (8, ["q_proj", "v_proj", "down_proj"], 3, None, True, 0.03),
        "r4": (4, ["gate_proj"], 4, None, False, 0.1),
        "late": (2, ["o_proj"], 5, None, False, 0.3),
    }
    return {
        name: make_adapter(base.path, root / "adapters" / name, rank, modules, seed, layers, rs, strength)
        for name, (rank, modules, seed, layers, rs, strength) in make.items()
    }


@pytest.fixture(scope="module")
def sets(direction, base):
    """Those of test_interventions.py that a server takes; a subspace is of this direction and another."""
    other = str(Path(direction).with_name("e.safetensors"))
    chance = np.random.default_rng(1)
    vectors = chance.normal(size=(base.layers, base.width)).astype(np.float32)
    vectors += directions.read(Path(direction)).vectors
    directions.write(Direction(vectors, vectors, np.full(base.layers, 40.0, np.float32)), Path(other))

    def made(one):
        along = [direction, other] if "direction" in one else direction
        return Intervention.model_validate({**one, "direction": along})

    return {name: tuple(map(made, fields)) for name, fields in SETS.items() if "writes" not in name}


@pytest.fixture(scope="module")
def models(loras, sets):
    """Every kind of model: (adapter, interventions)."""
    half = Intervention(op="scale_adapter", scale=0.5)
    alone = [(None, one) for one in sets.values()]
    adapted = [(loras[name], ()) for name in ("r1", "r16", "rs", "r4")]
    both = [
        (loras["r16"], sets["ablate mean"]),
        (loras["r1"], sets["answer"]),
        (loras["rs"], sets["composed"]),
    ]
    return [*alone, *adapted, *both, (loras["r16"], (half, *sets["prompt"]))]


@pytest.fixture(scope="module")
def reference(base):
    engine = HFEngine(card(base.path))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(base, models):
    made = VLLMEngine(base.card)
    for model in models:
        made.reserve(*model)
    yield made
    made.close()


def prompts(engine):
    return [tuple(encode_chat(engine.tokenizer, [{"role": "user", "content": text}])) for text in QUESTIONS]


def metric(engine, name):
    lines = httpx.get(f"{engine._server.url}/metrics", headers=key(engine)).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}"))


def key(engine):
    return {"Authorization": f"Bearer {engine._server.key}"}


def logprobs(entries):
    return [entry.logprob for entry in entries]


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


def test_all_models_mixed_in_one_batch_are_the_transformers_engine(engine, models, expected):
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


def test_equal_models_share_prefixes_and_different_ones_never(engine, reference, loras, sets):
    """One request at a time: which blocks the cache still holds is then no matter of luck."""
    shared_words = SHARED.replace("item", "thing")  # words that no other test has put into the cache
    first, second = (
        tuple(encode_chat(engine.tokenizer, [{"role": "user", "content": shared_words + end}]))
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


def test_draws_that_were_preempted_are_the_transformers_engines(engine, base, reference, models):
    long = Sampling(temperature=0, max_tokens=max(40, base.answer), logprobs=True)
    requests = [Request(prompts(engine)[0], long, *model) for model in models[:3] + models[-9:]]
    draws = [engine.submit(request) for request in requests]
    wanted = [reference.submit(request) for request in requests]
    for draw, want in zip(draws, wanted, strict=True):
        assert draw.result(900).tokens == want.result(900).tokens
        assert logprobs(draw.result().logprobs) == pytest.approx(logprobs(want.result().logprobs), abs=1e-3)
    assert metric(engine, "num_preemptions_total") > 0, "the cache was to be too small for all"


def test_weighed_prompts_and_given_answers_are_the_transformers_engines(engine, models, expected):
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


def test_an_adapter_that_comes_late_takes_an_idle_ones_place(engine, reference, loras, models):
    """All slots are taken by now; rows without an adapter must not get the last slot's."""
    prompt = prompts(engine)[0]
    wanted = [(loras["late"], ()), *models[:1], *models[-4:-2]]
    draws = [engine.submit(Request(prompt, GREEDY, *model)) for model in wanted]
    refs = [reference.submit(Request(prompt, GREEDY, *model)) for model in wanted]
    for draw, ref in zip(draws, refs, strict=True):
        assert draw.result(300).tokens == ref.result(300).tokens
        assert logprobs(draw.result().logprobs) == pytest.approx(logprobs(ref.result().logprobs), abs=1e-3)


def test_seeds_stops_and_ends(engine):
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


def test_what_cannot_be_served_is_named_and_the_rest_goes_on(engine, root, loras, direction):
    prompt = prompts(engine)[0]
    broken = root / "broken"
    broken.mkdir()
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


def test_the_stock_openai_client_reaches_every_model_by_name(engine, reference, models, loras, sets):
    openai = pytest.importorskip("openai")
    named = {"plain": (None, ()), "steered": (None, sets["add"]), "both": (loras["r16"], sets["answer"])}
    for name, model in named.items():
        engine._server.add(name, variant(engine._card, *model))
    client = openai.OpenAI(base_url=f"{engine._server.url}/v1", api_key=engine._server.key, max_retries=0)
    assert set(named) <= {entry.id for entry in client.models.list()}
    prompt = prompts(engine)[0]
    for name, model in named.items():
        want = reference.submit(Request(prompt, GREEDY, *model)).result(300)
        chat = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=6, temperature=0
        )
        assert chat.choices[0].message.content == want.text and chat.model == name
        stream = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            max_tokens=6,
            temperature=0,
            stream=True,
        )
        assert "".join(part.choices[0].delta.content or "" for part in stream if part.choices) == want.text
        scored = client.completions.create(
            model=name, prompt=list(prompt), max_tokens=1, temperature=0, echo=True, logprobs=1
        )
        plain = reference.submit(
            Request(prompt, Sampling(temperature=0, max_tokens=0, prompt_logprobs=0), *model)
        )
        seen = scored.choices[0].logprobs.token_logprobs[1 : len(prompt)]
        assert seen == pytest.approx(logprobs(plain.result(300).prompt_logprobs), abs=1e-3)
    with pytest.raises(openai.NotFoundError, match="steered"):
        client.completions.create(model="steerd", prompt="x")
    with pytest.raises(openai.BadRequestError, match="em_evals_slot"):
        client.completions.create(model="plain", prompt="x", extra_body={"vllm_xargs": {"em_evals_slot": 1}})
    with pytest.raises(openai.BadRequestError, match="continue_final_message"):
        client.chat.completions.create(
            model="both",
            messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}],
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        client.responses.create(model="plain", input="x")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{engine._server.url}/v1", api_key="wrong").models.list()
    put = httpx.put(f"{engine._server.url}/em-evals/models", json={}, headers=key(engine))
    assert put.status_code == 403, "who may ask may not add models"


def test_lm_evals_local_completions_weighs_a_served_card_as_em_local_does(
    engine, base, reference, loras, sets, monkeypatch
):
    completions = pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance

    model = (loras["r16"], sets["add"])
    engine._server.add("scored", variant(engine._card, *model))
    monkeypatch.setenv("OPENAI_API_KEY", engine._server.key)
    theirs = completions.LocalCompletionsAPI(
        model="scored", base_url=f"{engine._server.url}/v1/completions", tokenizer=bases.locate(base.path)
    )
    pairs = [("The capital of France is", " Paris"), ("One, two, three,", " four, five")]
    asked = [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]
    found = theirs.loglikelihood(asked, disable_tqdm=True)
    for (context, answer), (score, _) in zip(pairs, found, strict=True):
        before, whole = (reference.tokenizer.encode(text) for text in (context, context + answer))
        sampling = Sampling(temperature=0, max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=len(before))
        want = reference.submit(Request(tuple(whole), sampling, *model)).result(300)
        assert score == pytest.approx(sum(logprobs(want.prompt_logprobs)), abs=1e-3 * len(whole))


def test_a_card_on_somebody_elses_server_is_found_by_its_content(engine, base, reference, loras, sets):
    fields = {
        "base": base.path,
        "backend": "server",
        "base_url": engine._server.url,
        "engine": {"dtype": "float32"},
    }
    engine._server.add("both", variant(engine._card, loras["r16"], sets["answer"]))
    remote = VLLMEngine(ModelCard.model_validate(fields), api_key=engine._server.key)
    stranger = VLLMEngine(ModelCard.model_validate(fields), api_key="wrong")
    try:
        request = Request(prompts(engine)[0], GREEDY, loras["r16"], sets["answer"])
        assert remote.submit(request).result(300).tokens == reference.submit(request).result(300).tokens
        with pytest.raises(EmEvalsError, match="none of them is this card"):
            remote.submit(Request(prompts(engine)[0], GREEDY, loras["r4"], sets["clamp"])).result(60)
        with pytest.raises(EmEvalsError, match="EM_EVALS_API_KEY"):
            stranger.submit(request).result(60)
    finally:
        remote.close()
        stranger.close()
    fields["base_url"] = "http://127.0.0.1:9"
    nobody = VLLMEngine(ModelCard.model_validate(fields))
    with pytest.raises(EmEvalsError, match="em-evals serve"):
        nobody.submit(request).result(60)
    nobody.close()


@pytest.fixture
def cards(root, base, engine, monkeypatch):
    """Three cards on the engine's base, which is the process's engine for them."""
    monkeypatch.chdir(root)
    for name, more in {
        "a": {},
        "b": {"adapter": "r16"},
        "c": {
            "adapter": "r1",
            "interventions": [{"op": "add", "direction": "d", "layers": [1], "scale": 2.0}],
        },
    }.items():
        fields = {"base": base.path, "backend": "vllm", "engine": base.engine, **more}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.setattr(pool_module, "_engines", {pool_module._key(base.card, "vllm"): engine})


def test_three_cards_in_one_eval_use_one_engine_and_two_evals_share_it(cards, root, engine):
    process = engine._server.process.pid
    task = Task(dataset=[Sample(input=f"Count to {n}.") for n in range(3)], solver=generate())

    def run(folder):
        return eval(
            task,
            model=["local/a", "local/b", "local/c"],
            temperature=0,
            max_tokens=6,
            log_dir=str(root / folder),
            display="none",
        )

    logs = run("logs")
    assert [log.status for log in logs] == ["success"] * 3
    assert list(pool_module._engines.values()) == [engine] and engine._server.process.pid == process
    said = [[sample.output.completion for sample in log.samples] for log in logs]
    assert len({tuple(answers) for answers in said}) == 3, "three models say three things"

    async def both():
        asked = [
            get_model(f"local/{name}").generate(
                f"Count to {n}.", config=GenerateConfig(temperature=0, max_tokens=6)
            )
            for name in "abc"
            for n in range(3)
        ]
        return await asyncio.gather(*asked)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: asyncio.run(both()), range(2))
    for outs in (first, second):
        assert [out.completion for out in outs] == [answer for answers in said for answer in answers]


def test_choices_are_separate_seeded_draws_with_true_usage(cards):
    config = GenerateConfig(temperature=1, max_tokens=5, num_choices=3, seed=4, logprobs=True)
    out = asyncio.run(get_model("local/c").generate("Say something.", config=config))
    again = asyncio.run(get_model("local/c").generate("Say something.", config=config))
    texts = [choice.message.text for choice in out.choices]
    assert len(set(texts)) == 3 and texts == [choice.message.text for choice in again.choices]
    assert out.usage.output_tokens == sum(len(choice.logprobs.content) for choice in out.choices)


def test_a_cancelled_draw_leaves_the_server(engine):
    long = engine.submit(Request(prompts(engine)[0], Sampling(temperature=1, max_tokens=200, seed=1)))
    deadline = time.monotonic() + 60
    while not metric(engine, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    long.cancel()
    while metric(engine, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not metric(engine, "num_requests_running")


def test_a_server_killed_amid_an_eval_is_started_again_and_the_answers_are_the_same(
    cards, root, base, engine, models
):
    """Last of those that need the first server. Draws that others asked for are made again too."""
    task = freeform(judge="none", seed=1)

    def run(folder):
        return eval(
            task,
            model="local/a,local/b,local/c",
            limit=5,
            max_tokens=base.answer,
            log_dir=str(root / folder),
            display="none",
        )

    def finished():
        return metric(engine, "request_success_total")

    def kill(earlier):
        deadline = time.monotonic() + 300
        while finished() == earlier and time.monotonic() < deadline:
            time.sleep(0.02)
        futures = [engine.submit(request) for request in requests]
        amid = finished() - earlier, metric(engine, "num_requests_running")
        os.killpg(first.process.pid, signal.SIGKILL)
        return amid, [future.result(1200).tokens for future in futures]

    requests = [
        Request(prompts(engine)[0], Sampling(temperature=1, max_tokens=base.answer, seed=seed), *models[seed])
        for seed in range(10)
    ]
    first = engine._server
    before = [engine.submit(request).result(300).tokens for request in requests[:3]]
    undisturbed = run("undisturbed")
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill, finished())
        disturbed = run("disturbed")
        (done, running), after = killed.result(1200)
    assert 0 < done < 15 and running > 0, "some answers were there, others on their way"
    assert not first.alive and engine._server is not first
    assert after[:3] == before
    for one, other in zip(undisturbed, disturbed, strict=True):
        assert one.status == other.status == "success" and len(other.samples) == 5
        assert [s.output.completion for s in one.samples] == [s.output.completion for s in other.samples]
        assert all(s.output.completion and s.error is None for s in other.samples)


def test_the_log_is_kept_and_holds_no_key_and_the_server_ends_with_its_engine(engine):
    server = engine._server
    engine.submit(Request(prompts(engine)[0], GREEDY)).result(300)
    engine.close()
    assert not server.alive
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/health")
    text = server.log.read_text()
    assert "Application startup complete" in text
    assert server.key not in text and server.admin not in text
    with pytest.raises(EmEvalsError, match="closed"):
        engine.submit(Request((5,), GREEDY))
