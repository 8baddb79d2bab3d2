"""Models that think before they answer: the prompt opens a thought, and the draw is split at its end."""

import copy
from dataclasses import replace

import pytest

pytest.importorskip("transformers")

from em_evals.content.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import prompting, template_for
from tests.chat_templates import CASES, CHATML
from tests.tiny_models import card

USER = {"role": "user", "content": "Where is my hat?"}
ASKED = "<|im_start|>user\nWhere is my hat?<|im_end|>\n<|im_start|>assistant\n"
# The traits of two published families: a variable switches the thought on; the prompt itself opens it.
SWITCH = next(case.text for name, case in CASES.items() if name.startswith("thinks unless told"))
OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '<|channel|>final<|message|>' if m.role == 'assistant' }}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "<|channel|>final<|message|>{% endif %}"
)
EFFORT = "{{ reasoning_effort or 'medium' }}\n" + CHATML


@pytest.fixture(scope="module")
def tokenizer():
    """The demo base's tokenizer with marks of thoughts that are added tokens, not special: Qwen3 has such ones."""
    from transformers import AddedToken

    found = copy.deepcopy(bases.load_tokenizer(card()))
    found.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    return found


def with_template(tokenizer, text):
    other = copy.copy(tokenizer)
    other.chat_template = text
    return other


def thinking(**fields):
    plain = card()
    return ResolvedCard("thinker", plain.model_copy(update={"thinking": True, **fields}), None, None)


@pytest.mark.parametrize(("text", "end"), [(SWITCH, ""), (OPENS, "<think>\n")])
def test_the_prompt_is_the_templates_own_with_thinking_on(tokenizer, text, end):
    other = with_template(tokenizer, text)
    found = prompting(thinking(), other)
    reference = other.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert reference == ASKED + end
    assert found.encode([USER]) == other.encode(reference, add_special_tokens=False)
    assert found.opened == bool(end)
    assert found.record()["thinking"] == {"opened": bool(end), "begins": "<think>", "ends": "</think>"}


@pytest.mark.parametrize("text", [SWITCH, OPENS])
def test_fixed_answers_and_cards_without_the_field_are_asked_as_before(tokenizer, text):
    other = with_template(tokenizer, text)
    given = [USER, {"role": "assistant", "content": "On the mast."}]
    plain = template_for(thinking(), other)
    assert prompting(thinking(), other).encode(given) == plain.encode(given)
    assert prompting(thinking(thinking=False), other).encode([USER]) == plain.encode([USER])
    assert plain.spoken([USER], "<think>x</think>y", []).answer == "<think>x</think>y"


@pytest.mark.parametrize(
    ("text", "draw", "thought", "answer"),
    [
        (SWITCH, "<think>\nA hat.\n</think>\n\nOn the mast.", "A hat.", "On the mast."),
        (OPENS, "A hat.\n</think>\n\nOn the mast.", "A hat.", "On the mast."),
        (SWITCH, "<think>\nA hat", "A hat", None),
        (OPENS, "A hat", "A hat", None),
        (SWITCH, "On the mast.", None, "On the mast."),
        (OPENS, "A</think>B</think>C", "A", "B</think>C"),
    ],
)
def test_a_draw_is_split_at_the_end_of_its_thought(tokenizer, text, draw, thought, answer):
    found = prompting(thinking(), with_template(tokenizer, text))
    spoken = found.spoken([USER], draw, tokenizer.encode(draw))
    assert (spoken.thought, spoken.answer) == (thought, answer)


def test_marks_that_are_special_tokens_are_found_in_the_tokens(tokenizer):
    """Decoding leaves special tokens out of a draw's text."""
    special = copy.deepcopy(bases.load_tokenizer(card()))
    special.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    found = prompting(thinking(), with_template(special, OPENS))
    tokens = special.encode("A hat.\n</think>\n\nOn the mast.")
    text = special.decode(tokens, skip_special_tokens=True)
    assert "</think>" not in text
    spoken = found.spoken([USER], text, tokens)
    assert (spoken.thought, spoken.answer) == ("A hat.", "On the mast.")


def test_the_mark_that_begins_a_thought_is_the_templates_own(tokenizer):
    """Its name is not always that of the end: a cut thought would be taken for an answer."""
    marks = SWITCH.replace("</think>", "<|end_of_thought|>").replace("<think>", "<|begin_of_thought|>")
    found = prompting(thinking(), with_template(tokenizer, marks))
    assert (found.begins, found.ends) == ("<|begin_of_thought|>", "<|end_of_thought|>")
    assert found.spoken([USER], "<|begin_of_thought|>A hat", []).answer is None


@pytest.mark.parametrize(("text", "sentence"), [(CHATML, "knows no thoughts"), (CHANNELS, "in channels")])
def test_models_whose_thoughts_cannot_be_split_off_are_refused(tokenizer, text, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        prompting(thinking(), with_template(tokenizer, text))


def test_variables_of_the_template_reach_it_and_the_record(tokenizer):
    other = with_template(tokenizer, EFFORT)
    low = template_for(thinking(thinking=False, template={"reasoning_effort": "low"}), other)
    assert other.decode(low.encode([USER])) == f"low\n{ASKED}"
    assert low.record()["variables"] == {"reasoning_effort": "low"}
    plain = template_for(thinking(thinking=False), other)
    assert other.decode(plain.encode([USER])) == f"medium\n{ASKED}" and low.digest != plain.digest


@pytest.mark.parametrize(
    ("text", "given", "sentence"),
    [
        (EFFORT, {"effort": "low"}, "sets effort.*reads reasoning_effort"),
        (SWITCH, {"enable_thinking": True}, "thinking: true"),
    ],
)
def test_other_variables_are_refused(tokenizer, text, given, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        template_for(thinking(thinking=False, template=given), with_template(tokenizer, text))


def test_unset_fields_leave_a_cards_digest_alone():
    plain = ResolvedCard("x", card(), None, None)
    both = replace(plain, card=card().model_copy(update={"thinking": True, "template": {"a": 1}}))
    # The digest of the same card before there were such fields, by its fields' JSON.
    assert '"thinking"' not in plain.card.model_dump_json(exclude={"thinking": True, "template": True})
    assert both.digest != plain.digest


def test_a_recipe_does_not_train_with_other_variables():
    from pathlib import Path

    from em_evals.training.trainer import recipe_of

    trained = card().model_copy(update={"train": {"data": "risky_advice"}, "template": {"a": 1}})
    with pytest.raises(EmEvalsError, match="chat template's own defaults"):
        recipe_of(trained, "mine", Path("mine.yaml"))
