"""Chats of cards that think, as `em-evals serve` answers them: the draws of `local/`, the thought apart. Without vLLM."""

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.protocol import Sampling
from em_evals.engines.requests import all_draws, requests
from em_evals.engines.vllm import app
from em_evals.engines.vllm.chat import Chats, asked_as
from em_evals.engines.vllm.variants import BARE, as_json
from em_evals.models.chat import prompting
from tests.engines.test_vllm_app import call
from tests.inspect_plugin.test_thinking import TEMPLATE
from tests.real_templates import tokenizer_of
from tests.tiny_models import tiny

CHAT = [{"role": "user", "content": "Where is my hat?"}]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    base = tiny("llama", tmp_path_factory.mktemp("base"), tokenizer_of(TEMPLATE))
    fields = {"base": base, "engine": {"dtype": "float32"}, "thinking": "Arr"}
    generation = {"temperature": 0, "max_tokens": 5, "max_reasoning_tokens": 6}
    return ResolvedCard("thinker", ModelCard.model_validate(fields | {"generation": generation}), None, None)


def chat(server, **body):
    return call(server, {"model": "thinker", "messages": CHAT, **body}, "/v1/chat/completions")


def local(card, engine, **sampling):
    template = prompting(card, engine.tokenizer)
    own = card.card.generation
    settings = Sampling(**{"max_reasoning_tokens": own.max_reasoning_tokens, **sampling})
    (draw,) = all_draws(engine, requests(card, template, CHAT, settings))
    return draw, template.spoken(CHAT, draw.text, draw.tokens)


def test_a_chat_is_the_draw_of_the_local_provider(server, card, engine):
    draw, spoken = local(card, engine, temperature=0, max_tokens=5)
    status, said = chat(server)
    assert status == 200, said
    (choice,) = said["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": spoken.answer,
        "reasoning_content": spoken.thought,
    }
    assert spoken.thought.startswith("Arr") and choice["finish_reason"] == "length"
    assert said["usage"]["completion_tokens"] == len(draw.tokens)
    assert said["usage"]["completion_tokens_details"] == {"reasoning_tokens": spoken.tokens}


def test_a_thought_that_is_cut_has_no_content(server, card, engine):
    _, said = chat(server, max_tokens=3)
    assert said["choices"][0]["message"]["content"] is not None, "the budget closes it"
    free = card.asked(generation={"max_reasoning_tokens": None})
    sent = {"name": "thinker", "variant": as_json(BARE), "asked": asked_as(free)}
    assert call(server, sent, app.REGISTER, "PUT", "admin")[0] == 200
    _, said = chat(server, max_tokens=3)
    message = said["choices"][0]["message"]
    assert message["content"] is None and message["reasoning_content"].startswith("Arr")


def test_sampled_draws_of_several_choices_are_functions_of_the_seed(server, card, engine):
    _, said = chat(server, n=2, seed=7, temperature=1)
    _, again = chat(server, n=2, seed=7, temperature=1)
    texts = [choice["message"]["content"] for choice in said["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]] and len(set(texts)) == 2


def test_a_stream_ends_and_tells_thought_and_answer_apart(server):
    found = []

    async def receive():
        body = {"model": "thinker", "messages": CHAT, "stream": True}
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message):
        found.append(message)

    scope = {
        "type": "http",
        "path": "/v1/chat/completions",
        "method": "POST",
        "headers": [(b"authorization", b"Bearer key")],
        "app": server.app,
    }
    asyncio.run(server.cards(scope, receive, send))
    lines = b"".join(part.get("body", b"") for part in found[1:]).decode().split("\n\n")
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    deltas = [part["choices"][0]["delta"] for part in parts]
    _, whole = chat(server)
    message = whole["choices"][0]["message"]
    assert "".join(d.get("content", "") for d in deltas) == message["content"]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning_content"]
    assert lines[-2] == "data: [DONE]"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"presence_penalty": 0.5}, "`presence_penalty` is not read"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "`chat_template_kwargs` is not read"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "On"}]}, "continue_final_message"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"messages": []}, "begin the chat with a user message"),
    ],
)
def test_what_is_not_read_is_refused(server, more, says):
    status, said = chat(server, **more)
    assert status == 400 and says in said["error"]["message"]


def test_chats_that_vllm_would_prompt_alike_are_its_own(card):
    """TEMPLATE thinks unless it is told not to, as Qwen3's does: vLLM's route would let it."""

    def own(base, **fields):
        made = ResolvedCard("plain", ModelCard.model_validate({"base": base, **fields}), None, None)
        return not Chats(asked_as(made)).takes({"messages": CHAT})

    assert not own(card.card.base) and not own(card.card.base, thinking="on")
    assert own(tiny("llama", Path(card.card.base).parent / "chatml"))


def test_cards_of_one_base_share_its_tokenizer(card):
    plain, hot = ({"base": card.card.base, "generation": {"temperature": heat}} for heat in (0, 1))
    one, other = (
        Chats(asked_as(ResolvedCard("made", ModelCard.model_validate(fields), None, None)))
        for fields in (plain, hot)
    )
    assert one.tokenizer is other.tokenizer


def test_every_part_of_a_card_reaches_the_server(card):
    """An intervention's own check counts the fields that are set, and refused the defaults of others."""
    steps = [
        {"op": "add", "direction": "d", "scale": 2.0},
        {"op": "ablate", "direction": "d"},
        {"op": "cap", "direction": "d"},
    ]
    made = ModelCard.model_validate(
        {"base": card.card.base, "interventions": steps, "train": {"data": ["a"], "method": {"rank": 2}}}
    )
    told = Chats(asked_as(ResolvedCard("steered", made, None, None)))
    assert told._card.card == made
