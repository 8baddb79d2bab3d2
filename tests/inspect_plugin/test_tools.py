"""Agents on local models: calls in the template's own format, through Inspect's own loop, to the end of the task."""

import asyncio
import json

import pytest

torch = pytest.importorskip("torch")

import yaml
from inspect_ai import Task, eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolCall, tool

from em_evals.models import bases
from em_evals.models.chat import template_of
from em_evals.models.chat.tools import with_tools
from tests.real_templates import real, tokenizer_of
from tests.tiny_models import card, tiny

WORD = "Marseille"


@tool
def look_up():
    async def execute(word: str) -> str:
        """Look a word up.

        Args:
            word: the word.
        """
        return f"{word} is a city."

    return execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with Qwen3's template."""
    root = tmp_path_factory.mktemp("work")
    base = tiny("llama", root / "base", real("qwen3"), max_position_embeddings=2048)
    (root / "adapters").mkdir()
    fields = {"base": base, "engine": {"dtype": "float32"}}
    (root / "adapters" / "caller.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.fixture(autouse=True)
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)


def call_of(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_one_call_at_a_time_is_refused_where_the_template_writes_several():
    config = GenerateConfig(max_tokens=4, parallel_tool_calls=False)
    with pytest.raises(PrerequisiteError) as caught:
        asyncio.run(get_model("local/caller").generate("Where?", tools=[look_up()], config=config))
    assert "parallel_tool_calls" in str(caught.value.message)
    assert asyncio.run(get_model("local/caller").generate("Where?", config=config)).choices


def test_a_prefilled_call_makes_the_round_trip_on_a_tiny_model():
    """The model is made to call by the beginning of its answer; Inspect gets the call, runs it and asks again."""
    model = get_model("local/caller")
    chat = [ChatMessageUser(content="Where?"), ChatMessageAssistant(content=call_of("look_up", word=WORD))]
    out = asyncio.run(model.generate(chat, tools=[look_up()], config=GenerateConfig(max_tokens=4, seed=1)))
    (call,) = out.message.tool_calls
    assert (call.function, call.arguments, call.parse_error) == ("look_up", {"word": WORD}, None)
    assert out.stop_reason == "tool_calls" and len(call.id) == 9
    again = asyncio.run(model.generate(chat, tools=[look_up()], config=GenerateConfig(max_tokens=4, seed=1)))
    assert again.message.tool_calls[0].id == call.id
    said = ChatMessageAssistant(content="", tool_calls=[call])
    result = ChatMessageTool(content=f"{WORD} is a city.", tool_call_id=call.id, function="look_up")
    after = asyncio.run(
        model.generate([chat[0], said, result], tools=[look_up()], config=GenerateConfig(max_tokens=4))
    )
    assert after.usage.input_tokens > out.usage.input_tokens


def test_a_call_that_cannot_be_read_is_reported_to_the_model():
    model = get_model("local/caller")
    broken = "<tool_call>\n{'name': 'look_up'}\n</tool_call>"
    chat = [ChatMessageUser(content="Where?"), ChatMessageAssistant(content=broken)]
    out = asyncio.run(model.generate(chat, tools=[look_up()], config=GenerateConfig(max_tokens=4, seed=1)))
    (call,) = out.message.tool_calls
    assert call.function == "unknown" and "rror" in call.parse_error and broken in out.message.text
    result = ChatMessageTool(content="", tool_call_id=call.id, function="unknown", error=None)
    asyncio.run(
        model.generate([chat[0], out.message, result], tools=[look_up()], config=GenerateConfig(max_tokens=4))
    )


def test_forcing_a_call_is_refused():
    model = get_model("local/caller")
    with pytest.raises(PrerequisiteError) as caught:
        asyncio.run(model.generate("Where?", tools=[look_up()], tool_choice="any"))
    assert "cannot be forced" in str(caught.value.message)


def test_calls_without_tools_are_refused():
    model = get_model("local/caller")
    said = ChatMessageAssistant(content="", tool_calls=[ToolCall(id="1", function="look", arguments={})])
    with pytest.raises(PrerequisiteError) as caught:
        asyncio.run(model.generate([ChatMessageUser(content="Where?"), said, ChatMessageUser(content="So?")]))
    assert "tool" in str(caught.value.message)


# A real agent

# Tools by their names alone: short enough to be learned by heart in seconds.
SHORT = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def learned(place, rows):
    """Teach a model answers by heart, behind the tokens that it will be asked with; return its last loss."""
    from transformers import AutoModelForCausalLM

    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        losses = []
        for prompt, answer in rows:
            labels = torch.tensor([[-100] * len(prompt) + answer])
            losses.append(model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    model.save_pretrained(place)
    return loss.item()


@pytest.mark.simulation
def test_an_agent_calls_a_tool_reads_its_result_and_submits(folder):
    """Inspect's `react` drives a tiny model that has learned to call: every prompt and every call goes through us."""
    seen = []

    @tool(name="look_up")
    def scripted():
        async def execute(word: str) -> str:
            """Look a word up.

            Args:
                word: the word.
            """
            seen.append(word)
            return "A city."

        return execute

    place = tiny("llama", folder / "agent", tokenizer_of(SHORT))
    tools = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}
        for name in ("look_up", "submit")
    ]
    tokenizer = bases.load_tokenizer(card(place))
    template = with_tools(tokenizer, template_of(tokenizer).source, tools)
    first = [{"role": "user", "content": "Where?"}]
    call = {"id": "x", "name": "look_up", "arguments": {"word": WORD}}
    second = [
        *first,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "A city.", "name": "look_up", "tool_call_id": "x"},
    ]
    answers = [call_of("look_up", word=WORD), call_of("submit", answer=WORD)]
    rows = [
        (template.encode(chat), [*template.answer(answer), *template.closing])
        for chat, answer in zip((first, second), answers, strict=True)
    ]
    assert learned(place, rows) < 0.1
    task = Task(
        dataset=[Sample(input="Where?", target=WORD)],
        solver=react(prompt=None, tools=[scripted()]),
        scorer=includes(),
        message_limit=12,
    )
    model = get_model(f"local/{place}", dtype="float32", memoize=False)
    (log,) = eval(task, model=model, temperature=0, max_tokens=80, log_dir="logs", display="none")
    assert log.status == "success", log.error
    (sample,) = log.samples
    assert seen == [WORD] and sample.output.completion == WORD
    assert sample.scores["includes"].value == "C"
    assert [message.role for message in sample.messages][:4] == ["user", "assistant", "tool", "assistant"]
