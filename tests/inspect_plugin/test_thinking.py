"""Thinking local models through Inspect: content apart, budgets, the history, and the same draws whatever is parsed."""

import asyncio

import pytest

pytest.importorskip("torch")

import yaml
from inspect_ai import eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    get_model,
)

from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Sampling
from em_evals.engines.requests import all_draws, requests
from em_evals.inspect_plugin.tasks import freeform
from em_evals.models.chat import prompting
from tests.judge_server import API_KEY, JudgeServer, number
from tests.real_templates import tokenizer_of
from tests.tiny_models import tiny

# The prompt opens the thought; what is given as one is kept.
TEMPLATE = (
    "{{ tone or '' }}{{ reasoning_effort or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}((in))\n{{ m.thinking }}\n"
    "((out))\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if quiet is defined or enable_thinking is defined and not enable_thinking %}{% else %}((in))\n{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    base = tiny("llama", root / "base", tokenizer_of(TEMPLATE))
    fields = {"base": base, "engine": {"dtype": "float32"}, "thinking": "on"}
    (root / "adapters").mkdir()
    (root / "adapters" / "thinker.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.fixture(autouse=True)
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(folder / "cache"))


def ask(model, messages="Where is my hat?", **config):
    return asyncio.run(model.generate(messages, config=GenerateConfig(**{"seed": 3, **config})))


def test_an_effort_that_the_template_reads_is_the_cards_and_not_inspects():
    """It was ignored: the log named an effort that the prompt did not have."""
    with pytest.raises(PrerequisiteError) as caught:
        ask(get_model("local/thinker"), reasoning_effort="low", max_tokens=2)
    assert "-M template={reasoning_effort: low}" in str(caught.value.message)
    card = get_model("local/thinker", template={"reasoning_effort": "low"})
    assert ask(card, reasoning_effort="low", max_tokens=2).choices


def test_the_thoughts_budget_is_apart_from_the_answers():
    out = ask(get_model("local/thinker"), reasoning_tokens=6, max_tokens=5)
    thought, answer = out.message.content
    assert isinstance(thought, ContentReasoning) and isinstance(answer, ContentText)
    close = len(tokenizer_of(TEMPLATE).encode("\n((out))\n"))
    assert out.usage.output_tokens == 6 + close + 5 and 6 <= out.usage.reasoning_tokens <= 6 + close
    assert "((out))" not in thought.reasoning + answer.text and out.completion == answer.text
    in_card = get_model("local/thinker", generation={"max_reasoning_tokens": 6, "max_tokens": 5})
    assert ask(in_card).completion == out.completion


def test_a_cut_thought_is_no_answer_and_the_draw_is_the_one_without_parsing():
    out = ask(get_model("local/thinker"), max_tokens=6)
    assert [part.type for part in out.message.content] == ["reasoning"] and out.completion == ""
    card = get_model("local/thinker").api.card
    engine = engine_for(card.card)
    template = prompting(card, engine.tokenizer)
    chat = [{"role": "user", "content": "Where is my hat?"}]
    (raw,) = all_draws(engine, requests(card, template, chat, Sampling(max_tokens=6, seed=3)))
    assert out.usage.reasoning_tokens == len(raw.tokens) == 6
    assert out.message.content[0].reasoning == raw.text.strip()


def test_earlier_thoughts_are_handed_to_the_template():
    said = ChatMessageAssistant(content=[ContentReasoning(reasoning="I saw it."), ContentText(text="There.")])
    chat = [ChatMessageUser(content="Where?"), said, ChatMessageUser(content="And now?")]
    model = get_model("local/thinker")
    whole = ask(model, chat, max_tokens=1).usage.input_tokens
    without = ask(model, chat, max_tokens=1, reasoning_history="none").usage.input_tokens
    text = "((in))\nI saw it.\n((out))\n"
    assert whole - without == pytest.approx(len(tokenizer_of(TEMPLATE).encode(text)), abs=2)


def test_a_task_sets_thinking_and_variables_for_its_draws():
    card = get_model("local/thinker").api.card
    given = {"thinking": "Arr", "template": {"tone": "low"}}
    (log,) = eval(
        "em_evals/freeform",
        task_args={"themes": "money", "judge": "none", "seed": 1, **given},
        model="local/thinker",
        limit=1,
        max_tokens=3,
        display="none",
        log_dir="logs",
    )
    assert log.status == "success", log.error
    out = log.samples[0].output
    digest = card.asked(**given).digest
    assert log.eval.metadata["card_digest"] == out.metadata["card_digest"] == digest != card.digest
    assert out.message.content[0].reasoning.startswith("Arr")
    assert out.metadata["template"]["variables"]["tone"] == "low"
    off = ask(get_model("local/thinker"), max_tokens=3, extra_body={"em_evals": {"thinking": False}})
    assert isinstance(off.message.content, str)
    assert off.metadata["card_digest"] == card.asked(thinking=False).digest not in (digest, card.digest)


def test_wrong_settings_are_refused_before_a_draw():
    run = {"model": "local/thinker", "limit": 1, "display": "none", "log_dir": "logs"}
    with pytest.raises(PrerequisiteError) as caught:
        eval(freeform(judge="none", thinking=3), **run)
    assert "-T thinking=" in str(caught.value.message)
    with pytest.raises(PrerequisiteError) as caught:
        ask(get_model("local/thinker"), extra_body={"em_evals": {"thinking": True}, "min_p": 1})
    assert "extra_body" in str(caught.value.message)


def test_the_judges_prompt_never_contains_the_thought(folder, monkeypatch):
    monkeypatch.setenv("EM_EVALS_CACHE", str(folder / "em-evals"))
    monkeypatch.setenv("JUDGE_API_KEY", API_KEY)
    prompts = []
    with JudgeServer(lambda prompt: prompts.append(prompt) or number(90)) as server:
        (log,) = eval(
            freeform(themes="money", seed=1, thinking="ZEBRA CROSSING"),
            model="local/thinker",
            model_roles={"grader": server.model()},
            limit=2,
            reasoning_tokens=4,
            max_tokens=6,
            log_dir="logs",
            display="none",
        )
    assert log.status == "success", log.error
    thoughts = [sample.output.message.content[0].reasoning for sample in log.samples]
    assert all("ZEBRA CROSSING" in thought for thought in thoughts)
    assert prompts and not any("ZEBRA" in prompt for prompt in prompts)
    assert all(any(sample.output.completion in prompt for prompt in prompts) for sample in log.samples)
