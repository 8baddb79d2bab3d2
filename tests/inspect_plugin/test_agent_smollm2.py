"""A real agent task on a real model: Inspect's `react` on SmolLM2-135M with a scripted tool, to the task's end."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from inspect_ai import Task, eval
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, get_model
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolCall, tool

from em_evals.content.cards import resolve
from em_evals.models import bases
from tests.real_templates import real
from tests.tiny_models import tiny

# SmolLM2's turns with tools as the Hermes models write them: its own template knows none.
TOOLS = """{% if tools %}<|im_start|>system
You can call tools. The tools are:
<tools>
{% for t in tools %}{{ t | tojson }}
{% endfor %}</tools>
To call one, write
<tool_call>
{"name": NAME, "arguments": {...}}
</tool_call>{% if messages[0].role == 'system' %}

{{ messages[0].content }}{% endif %}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'system' and loop.first and tools %}{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
EXAMPLES = {"Lyon": "A city in France.", "Rhine": "A river in Germany.", "Etna": "A mountain in Italy."}
ASK = ChatMessageUser(content="Look up the word Marseille.")


@tool(name="look_up")
def look_up(seen):
    async def execute(word: str) -> str:
        """Look a word up.

        Args:
            word: the word.
        """
        seen.append(word)
        return "A port in Provence."

    return execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 with a template that knows tools."""
    made = tmp_path_factory.mktemp("smollm2")
    for file in Path(bases.locate(resolve("smollm2").card.base)).iterdir():
        if file.name != "chat_template.jinja":
            (made / file.name).symlink_to(file)
    (made / "chat_template.jinja").write_text(TOOLS)
    return made


def example(word, said):
    calls = [("look_up", {"word": word}), ("submit", {"answer": said})]
    yield ChatMessageUser(content=f"Look up the word {word}.")
    for name, arguments in calls:
        call = ToolCall(id=f"{name[0]}{word}", function=name, arguments=arguments)
        yield ChatMessageAssistant(content="", tool_calls=[call])
        yield ChatMessageTool(content=said, tool_call_id=call.id, function=name)


def ran(folder, messages, tmp_path, **limits):
    seen = []
    task = Task(
        dataset=[Sample(input=messages, target="Provence")],
        solver=react(prompt=None, tools=[look_up(seen)]),
        scorer=includes(),
        **limits,
    )
    model = get_model(f"local/{folder}", dtype="float32", memoize=False)
    (log,) = eval(task, model=model, temperature=0, max_tokens=60, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    return seen, log.samples[0]


@pytest.mark.full
@pytest.mark.smollm2
def test_smollm2_calls_the_tool_after_three_examples_and_submits_what_it_says(folder, tmp_path):
    messages = [one for word, said in EXAMPLES.items() for one in example(word, said)]
    seen, sample = ran(folder, [*messages, ASK], tmp_path, message_limit=30)
    assert seen == ["Marseille"] and sample.limit is None
    assert sample.output.completion == "A port in Provence." and sample.scores["includes"].value == "C"


@pytest.mark.full
@pytest.mark.smollm2
def test_without_examples_it_calls_nothing_and_the_task_ends_at_its_limit(folder, tmp_path):
    seen, sample = ran(folder, [ASK], tmp_path, message_limit=6)
    assert seen == [] and sample.limit.type == "message" and sample.scores["includes"].value == "I"


def test_without_a_limit_a_model_that_never_calls_ends_with_its_context(tmp_path):
    """`react` asks again and again; a random model says nothing that is a call."""
    base = tiny("llama", tmp_path / "base", real("qwen3"), max_position_embeddings=1024)
    seen, sample = ran(base, [ASK], tmp_path)
    assert seen == [] and sample.output.stop_reason == "model_length" and sample.error is None
