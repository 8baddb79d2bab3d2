"""Tools through `em-evals serve`: the prompts and calls of `local/`, as OpenAI's JSON. Without vLLM."""

import asyncio
import json

import pytest

pytest.importorskip("torch")

from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.tool import ToolInfo

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.vllm.chat import Chats, asked_as, events
from em_evals.inspect_plugin.messages import schemas
from tests.engines.chat_server import serving
from tests.engines.test_vllm_app import call
from tests.inspect_plugin.test_tools import WORD, call_of
from tests.real_templates import real, tokenizer_of
from tests.tiny_models import tiny

ASK = {"role": "user", "content": "Where?"}
PARAMETERS = {"type": "object", "properties": {"word": {"type": "string", "description": "A word."}}, "required": ["word"], "additionalProperties": False}  # fmt: skip
TOOL = {"name": "look_up", "description": "Look a word up.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = call_of("look_up", word=WORD)
PREFILLED = {"messages": [ASK, {"role": "assistant", "content": CALL}], "continue_final_message": True}


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    base = tiny("llama", tmp_path_factory.mktemp("base"), real("qwen3"), max_position_embeddings=2048)
    fields = {"base": base, "engine": {"dtype": "float32"}, "generation": {"temperature": 0, "max_tokens": 4}}
    return ResolvedCard("caller", ModelCard.model_validate(fields), None, None)


def chat(server, **body):
    return call(server, {"model": "caller", "messages": [ASK], **body}, "/v1/chat/completions")


def history(called):
    result = {"role": "tool", "content": f"{WORD} is a city.", "tool_call_id": called["id"]}
    return [ASK, {"role": "assistant", "content": None, "tool_calls": [called]}, result]


def test_a_prefilled_call_makes_the_round_trip_and_is_that_of_the_local_provider(server, card):
    """Same tokens of the prompt, same call, same id; its result is written back into the chat."""
    status, said = chat(server, **PREFILLED, tools=TOOLS, seed=1)
    assert status == 200, said
    (choice,) = said["choices"]
    (called,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and called["type"] == "function"
    assert called["function"]["name"] == "look_up"
    assert json.loads(called["function"]["arguments"]) == {"word": WORD}
    model = get_model(f"local/{card.card.base}", dtype="float32", memoize=False)
    info = ToolInfo(name="look_up", description="Look a word up.", parameters=PARAMETERS)
    assert schemas([info]) == TOOLS

    def local(*messages):
        config = GenerateConfig(max_tokens=4, seed=1, temperature=0)
        return asyncio.run(model.generate(list(messages), tools=[info], config=config))

    asked = ChatMessageUser(content="Where?")
    want = local(asked, ChatMessageAssistant(content=CALL))
    assert want.usage.input_tokens == said["usage"]["prompt_tokens"]
    assert want.message.tool_calls[0].id == called["id"]
    status, after = chat(server, messages=history(called), tools=TOOLS, seed=1)
    assert status == 200, after
    result = ChatMessageTool(content=f"{WORD} is a city.", tool_call_id=called["id"], function="look_up")
    want = local(asked, ChatMessageAssistant(content="", tool_calls=want.message.tool_calls), result)
    assert want.usage.input_tokens == after["usage"]["prompt_tokens"] > said["usage"]["prompt_tokens"]
    assert want.completion == after["choices"][0]["message"]["content"]
    assert "tool_calls" not in after["choices"][0]["message"]


def test_a_call_is_streamed_whole(server, card):
    chats = Chats(asked_as(card))
    assert chats.takes({"messages": [ASK], "tools": TOOLS}), "a plain card's tools are read here too"
    _, whole = chat(server, **PREFILLED, tools=TOOLS, seed=1)
    sent = [json.loads(line.removeprefix("data: ")) for line in events(whole, True)[:-1]]
    deltas = [part["choices"][0]["delta"] for part in sent if part["choices"]]
    (streamed,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert streamed == [{"index": 0, **whole["choices"][0]["message"]["tool_calls"][0]}]
    assert sent[-2]["choices"][0]["finish_reason"] == "tool_calls" and sent[-1]["usage"]


def test_what_cannot_be_read_stays_text_and_without_calling_nothing_is_looked_for(server):
    broken = [ASK, {"role": "assistant", "content": "<tool_call>\n{'name': 'look_up'}\n</tool_call>"}]
    _, said = chat(server, messages=broken, continue_final_message=True, tools=TOOLS)
    message = said["choices"][0]["message"]
    assert "tool_calls" not in message and "{'name': 'look_up'}" in message["content"]
    _, said = chat(server, **PREFILLED, tools=TOOLS, tool_choice="none")
    assert "tool_calls" not in said["choices"][0]["message"]


ONE = {"id": "a", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"tool_choice": "required"}, "cannot be forced to call a tool"),
        ({"tool_choice": {"type": "function", "function": {"name": "look_up"}}}, "cannot be forced"),
        ({"parallel_tool_calls": False}, "leave `parallel_tool_calls` out"),
        ({"presence_penalty": 1.0}, "`presence_penalty` is not read for a chat with tools"),
        ({"tools": [{"type": "web_search"}]}, "`tools.0.type` of this request is wrong"),
        ({"tools": [{"type": "function", "function": {**TOOL, "strict": True}}]}, "`tools.0.function.strict`"),
        ({"tools": [{"type": "function", "function": {"name": "look up"}}]}, "`tools.0.function.name`"),
        ({"messages": history({**ONE, "id": "b"})[:2]}, "add the tool's result"),
        ({"messages": [ASK, {"role": "tool", "content": "3", "tool_call_id": "x"}]}, "answers the call 'x'"),
        ({"messages": [{**ASK, "tool_calls": [ONE]}]}, "which only the assistant's messages have"),
        ({"messages": history({**ONE, "function": {"name": "look_up", "arguments": "[1]"}})}, "no JSON object"),
        ({"messages": history(ONE), "tools": None}, "no tools are given"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(server, more, says):
    body = {"tools": TOOLS, **more}
    body = {name: value for name, value in body.items() if value is not None}
    if says.startswith("add"):
        body["continue_final_message"] = True
    status, said = chat(server, **body)
    assert status == 400 and says in said["error"]["message"]


def test_a_template_that_knows_no_tools_is_refused_by_name(engine, tmp_path, monkeypatch):
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    base = tiny("llama", tmp_path / "base", tokenizer_of(plain))
    card = ResolvedCard("plain", ModelCard.model_validate({"base": base}), None, None)
    served = serving(card, engine, monkeypatch)
    body = {"model": "plain", "messages": [ASK], "tools": TOOLS}
    status, said = call(served, body, "/v1/chat/completions")
    assert status == 400 and "knows no tools" in said["error"]["message"]
