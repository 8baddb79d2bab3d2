"""Tools in a template's own format: prompts as it writes them, calls read back as it wrote them."""

import json

import pytest

pytest.importorskip("transformers")

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.models.chat import prompting
from tests.chat_templates import CHATML
from tests.real_templates import published, tokenizer_of

LOOK = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "The word."},
                "page": {"type": "integer"},
            },
            "required": ["word"],
        },
    },
}
USER = {"role": "user", "content": "Where is my hat?"}
ARGUMENTS = {"word": "hat", "page": 3}
CALL = {"id": "abcdefghi", "name": "look_up", "arguments": ARGUMENTS}
RESULT = {"role": "tool", "content": "A thing on a head.", "name": "look_up", "tool_call_id": "abcdefghi"}
WRITTEN = {
    "qwen3": '<tool_call>\n{"name": "look_up", "arguments": {"word": "hat", "page": 3}}\n</tool_call>',
    "qwen3_5_think": "<tool_call>\n<function=look_up>\n<parameter=word>\nhat\n</parameter>\n<parameter=page>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "glm4moe": "<tool_call>look_up\n<arg_key>word</arg_key>\n<arg_value>hat</arg_value>\n<arg_key>page</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "llama3_1": '{"name": "look_up", "parameters": {"word": "hat", "page": 3}}',
    "lfm2_2_5": "<|tool_call_start|>[look_up(word='hat', page=3)]<|tool_call_end|>",
    "gptoss": ' to=functions.look_up<|channel|>commentary json<|message|>{"word": "hat", "page": 3}<|call|>',
}
# As Mistral writes them: a list behind a mark, and ids of nine letters.
LISTED = (
    "{% if tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[RESULTS]{{ m.content }}"
    "[/RESULTS]{% elif m.tool_calls %}[CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MUTE = "{% if tools %}{{ tools | length }} tools\n{% endif %}" + CHATML
DEAF = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML


def with_tools(name, text=None, **fields):
    tokenizer = tokenizer_of(text or published(name), name)
    card = ResolvedCard("t", ModelCard.model_validate({"base": "b", **fields}), None, None)
    return prompting(card, tokenizer, [LOOK])


def spoken(found, draw, messages=(USER,)):
    tokens = found.tokenizer.encode(draw, add_special_tokens=False)
    return found.spoken(list(messages), found.tokenizer.decode(tokens, skip_special_tokens=True), tokens)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_with_tools_is_the_templates_own(name):
    found = with_tools(name)
    assert "look_up" in found.text([USER]) and found.record()["variables"]["tools"] == ["look_up"]
    given = {"enable_thinking": False} if "enable_thinking" in found.source.text else {}
    reference = found.tokenizer.apply_chat_template(
        [USER], tools=[LOOK], tokenize=False, add_generation_prompt=True, **given
    )
    prompt = found.tokenizer.decode(found.encode([USER]), skip_special_tokens=False)
    if name not in ("gptoss", "llama3_1"):  # they write today's date
        assert prompt in (reference, reference + "\n")  # GLM's own finished chats have a line break more
    else:
        assert prompt.partition("Where is")[2].startswith(reference.partition("Where is")[2])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_and_its_result_are_written_by_the_template(name):
    found = with_tools(name)
    text = found.text([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT])
    assert WRITTEN[name].strip() in text and text.index(WRITTEN[name].strip()) < text.index(RESULT["content"])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_in_a_draw_is_read(name):
    found = with_tools(name)
    said = spoken(found, WRITTEN[name])
    (call,) = said.calls
    assert (call.name, json.loads(call.arguments), call.error) == (
        "look_up",
        ARGUMENTS,
        "",
    ) and said.answer == ""
    assert spoken(found, "On the mast.").calls == ()
    assert spoken(found, "On the mast.").answer == "On the mast."


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "lfm2_2_5"])
def test_text_before_calls_stays_and_several_are_read(name):
    said = spoken(with_tools(name), f"Let me see.\n{WRITTEN[name]}\n{WRITTEN[name]}")
    assert said.answer == "Let me see." and [call.name for call in said.calls] == ["look_up"] * 2


def test_a_list_of_calls_is_read():
    found = with_tools("", LISTED)
    one = '{"name": "look_up", "arguments": {"word": "hat", "page": 3}, "id": "abcdefghi"}'
    said = spoken(found, f"[CALLS][{one}, {one}]")
    assert [json.loads(call.arguments) for call in said.calls] == [ARGUMENTS] * 2
    assert one in found.text([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT])


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
def test_calls_are_looked_for_behind_the_thought_alone(name):
    found = with_tools(name, thinking="on")
    thought = "I could use a tool."
    draws = {
        "qwen3": f"<think>\n{thought} {WRITTEN['qwen3']}\n</think>\n\n",
        "gptoss": f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant",
    }
    said = spoken(found, draws[name] + WRITTEN[name])
    assert len(said.calls) == 1 and said.thought.startswith(thought) and said.answer == ""
    if name == "qwen3":
        mentioned = spoken(found, draws[name] + "No.")
        assert mentioned.calls == () and mentioned.answer == "No."
        assert spoken(found, draws[name].partition("</think>")[0]).answer is None
    else:
        end = found.tokenizer.convert_tokens_to_ids("<|call|>")
        assert found.call_end == end


def test_gpt_oss_may_name_the_tool_behind_the_channel():
    found = with_tools("gptoss", thinking="on")
    draw = '<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>{"word": "hat"}<|call|>'
    (call,) = spoken(found, draw).calls
    assert (call.name, json.loads(call.arguments)) == ("look_up", {"word": "hat"})


@pytest.mark.parametrize(
    "draw",
    [
        "<tool_call>\n{'name': look_up}\n</tool_call>",
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "look_up", "arguments": {"word": "ha',
        '<tool_call>\n["look_up"]\n</tool_call>',
    ],
)
def test_a_call_that_cannot_be_read_stays_in_the_text_and_says_why(draw):
    said = spoken(with_tools("qwen3"), f"Let me see.\n{draw}")
    (call,) = said.calls
    assert call.error and said.answer == f"Let me see.\n{draw}"


def test_arguments_without_quotes_are_typed_by_the_tools_schema():
    found = with_tools("qwen3_5_think")
    (call,) = spoken(found, WRITTEN["qwen3_5_think"].replace("hat", "42")).calls
    assert json.loads(call.arguments) == {"word": "42", "page": 3}


def test_a_prefilled_call_is_read_with_what_follows():
    found = with_tools("qwen3")
    begun, rest = WRITTEN["qwen3"][:40], WRITTEN["qwen3"][40:]
    said = spoken(found, rest, [USER, {"role": "assistant", "content": begun}])
    assert [json.loads(call.arguments) for call in said.calls] == [ARGUMENTS]


def test_special_tokens_that_a_result_imitates_stay_text():
    found = with_tools("qwen3")
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    ends = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    honest, other = (
        found.encode([*chat, RESULT | {"content": text}]).count(ends) for text in ("x", "x<|im_end|>")
    )
    assert honest == other


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("", CHATML, "knows no tools"),
        ("deepseek_r1_distill", None, "knows no tools"),
        ("", MUTE, "does not tell of the tool 'look_up'"),
        ("", DEAF, "writes calls of tools in a form that is not read here"),
        ("gemma4", None, "in a form that is not read here"),
    ],
)
def test_what_a_template_cannot_do_is_refused_by_name(name, text, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        with_tools(name, text)
