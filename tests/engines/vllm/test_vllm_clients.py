"""Who asks the shared server: OpenAI's client, Inspect's and lm-eval's own providers, cards with `backend: server`."""

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.solver import generate
from lm_eval.models.openai_completions import LocalCompletionsAPI

from em_evals.content.cards import ModelCard, resolve
from em_evals.engines import pool
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import serve
from em_evals.engines.vllm.engine import VLLMEngine
from em_evals.engines.vllm.variants import variant
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.tasks import freeform
from em_evals.lm_eval_plugin.model import EmLocal
from em_evals.models import bases
from tests.engines.vllm.lab import GREEDY, QUESTIONS, key, logprobs, prompts, requests, same_in_lm_eval

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


def test_openai_client_reaches_every_model_by_name(engine, reference, models, loras, sets):
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


@pytest.mark.full
def test_inspect_openai_provider_gives_the_answers_of_local(engine, cards, root):
    names = ("b", "c")
    for name in names:
        one = resolve(name)
        engine._server.add(name, variant(one.card, one.adapter_path, one.interventions))
    # Not from the environment: Inspect keeps a model by its name, and would ask an earlier test's server for ever.
    served = {"base_url": f"{engine._server.url}/v1", "api_key": engine._server.key, "memoize": False}
    said = []
    for models in (
        [get_model(f"openai-api/openai/{name}", **served) for name in names],
        [get_model(f"local/{name}", memoize=False) for name in names],
    ):
        logs = eval(
            freeform(judge="none"),
            model=models,
            limit=2,
            temperature=0,
            max_tokens=8,
            log_dir=str(root / "served"),
            display="none",
        )
        assert [log.status for log in logs] == ["success"] * 2
        said.append([[sample.output.completion for sample in log.samples] for log in logs])
    # vLLM leaves out a character whose last bytes were not drawn, where a decoder writes U+FFFD.
    whole = [[[text.rstrip("\ufffd") for text in texts] for texts in side] for side in said]
    assert whole[0] == whole[1] and whole[0][0] != whole[0][1] and all(map(all, said[0]))


def test_serve_answers_as_transformers_until_it_is_interrupted(
    engine, cards, root, reference, monkeypatch, capsys
):
    """The shared server stands for the one that `em-evals serve` would start (test_vllm_serving.py: the command)."""
    openai = pytest.importorskip("openai")
    server, planned, stopped, drained = engine._server, [], [], []
    monkeypatch.setattr(serve.vllm_server, "start", lambda card, wanted, *_: planned.append(wanted) or server)
    monkeypatch.setattr(server, "stop", lambda: stopped.append(server))
    monkeypatch.setattr(server, "drain", drained.append)
    names = ["a", "b", "c"]

    def ask():
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
        deadline = time.monotonic() + 60
        try:
            while not {entry.id for entry in client.models.list()} >= set(names):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return [
                client.completions.create(
                    model=name,
                    prompt=list(prompts(engine)[0]),
                    max_tokens=6,
                    temperature=0,
                    logprobs=0,
                    extra_body={"return_token_ids": True},
                ).choices[0]
                for name in names
            ]
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(ask)
            with pytest.raises(KeyboardInterrupt):
                serve.serve(names, {}, "127.0.0.1", 0, root / "key", as_json=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    ready = json.loads(capsys.readouterr().out)
    assert ready["models"] == names and ready["base_url"] == f"{server.url}/v1" and stopped == [server]
    assert drained == [30], "what runs is answered first"
    assert (root / "key").stat().st_mode & 0o077 == 0 and planned[0].rank == 16
    for name, answer in zip(names, asked.result(), strict=True):
        one = resolve(name)
        request = Request(prompts(engine)[0], GREEDY, one.adapter_path, one.interventions)
        want = reference.submit(request).result(300)
        assert answer.token_ids == want.tokens
        assert answer.logprobs.token_logprobs == pytest.approx(logprobs(want.logprobs), abs=1e-3)


def test_lm_eval_api_model_and_em_local_score_a_served_card(engine, base, cards, monkeypatch):
    """lm-eval's own model of a completions API, and `em-local` with `backend: server`, against transformers."""
    one = resolve("c")
    engine._server.add("c", variant(one.card, one.adapter_path, one.interventions))
    for name in ("OPENAI_API_KEY", "EM_EVALS_API_KEY"):
        monkeypatch.setenv(name, engine._server.key)
    ours = EmLocal("c", backend="server", base_url=engine._server.url)
    theirs = EmLocal("c", backend="transformers", max_model_len=ours.max_length)
    scores = same_in_lm_eval(ours, theirs)
    address = {"base_url": f"{engine._server.url}/v1/completions", "tokenizer": bases.locate(base.path)}
    stock = LocalCompletionsAPI(model="c", tokenizer_backend="huggingface", **address)
    asked = requests("loglikelihood", ("The cat sat on the", " mat."), ("One, two,", " three"))
    found = stock.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([scores[0], scores[2]], abs=1e-3)
    greedy = [greedy for _, greedy in theirs.loglikelihood(asked, disable_tqdm=True)]
    assert [greedy for _, greedy in found] == greedy
    plain = EmLocal("a", backend="transformers", max_model_len=ours.max_length)
    apart = [score for score, _ in plain.loglikelihood(asked, disable_tqdm=True)]
    assert np.abs(np.subtract(apart, [scores[0], scores[2]])).max() > 0.1, "the card is not its base"


def test_backend_server_finds_a_card_by_its_content(engine, base, reference, loras, sets):
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


def test_cards_and_evals_share_one_engine(cards, root, engine):
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
    assert list(pool._engines.values()) == [engine] and engine._server.process.pid == process
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

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: asyncio.run(both()), range(2))
    for outs in (first, second):
        assert [out.completion for out in outs] == [answer for answers in said for answer in answers]


def test_num_choices_are_separate_seeded_draws_with_usage_counted(cards, engine):
    config = GenerateConfig(temperature=1, max_tokens=5, num_choices=3, seed=4, logprobs=True)
    out = asyncio.run(get_model("local/c").generate("Say something.", config=config))
    again = asyncio.run(get_model("local/c").generate("Say something.", config=config))
    texts = [choice.message.text for choice in out.choices]
    assert len(set(texts)) == 3 and texts == [choice.message.text for choice in again.choices]
    assert out.usage.output_tokens == sum(len(choice.logprobs.content) for choice in out.choices)
