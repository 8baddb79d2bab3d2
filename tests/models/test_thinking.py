"""Models that think before they answer: the prompt is the template's own, and the draw is split by its marks."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("transformers")

from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.models.chat import prompting, template_for
from tests.chat_templates import CASES, CHATML
from tests.real_templates import SMOLLM3, real, tokenizer_of

USER = {"role": "user", "content": "Where is my hat?"}
AGAIN = {"role": "user", "content": "And my parrot?"}
THOUGHT, ANSWER = "I saw a hat.", "On the mast."
ASKED = "<|im_start|>user\nWhere is my hat?<|im_end|>\n<|im_start|>assistant\n"
# The traits of two published families: a variable switches the thought on; the prompt itself opens it.
SWITCH = next(case.text for name, case in CASES.items() if name.startswith("thinks unless told"))
OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Marks of nobody else's; earlier thoughts stay.
OWN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}((inner))\n{{ m.thinking }}\n((outer))\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EFFORT = "{{ reasoning_effort or 'medium' }}\n" + CHATML
OSS = "<|start|>user<|message|>Where is my hat?<|end|><|start|>assistant"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
R1 = "<｜begin▁of▁sentence｜><｜User｜>Where is my hat?<｜Assistant｜>"
SMOL = "<|im_start|>system\n26 July 2024 /think\n<|im_end|>\n" + ASKED


def thinking(**fields):
    fields = {"base": "b", "thinking": True} | fields
    return ResolvedCard("thinker", ModelCard.model_validate(fields), None, None)


def of(name, **fields):
    """The thinking template of a published one."""
    return prompting(thinking(**fields), real(name))


def written(found, messages):
    """What stands in a prompt's tokens."""
    return found.tokenizer.decode(found.encode(messages), skip_special_tokens=False)


# What is asked


REAL = [
    ("qwen3", ASKED, ASKED + "<think>\n\n</think>\n\n", "<think>\n"),
    ("deepseek_r1_distill", R1 + "<think>\n", R1, ""),
    ("gptoss", OSS, OSS + "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"),
    (SMOLLM3, SMOL, SMOL.replace("/think", "/no_think") + "<think>\n\n</think>\n", "<think>\n"),
]


@pytest.mark.parametrize(("name", "on", "off", "before"), REAL, ids=[row[0] for row in REAL])
def test_published_templates_are_asked_as_they_write_themselves(name, on, off, before):
    found = of(name)
    text = written(found, [USER])
    assert text.endswith(on) and (name == "gptoss" or text == on)
    dated = re.sub(r"strftime_now\([^)]*\)", '"26 July 2024"', found.tokenizer.chat_template)
    reference = found.tokenizer.apply_chat_template(
        [USER],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
        chat_template=dated if name == SMOLLM3 else None,
    )
    if name != "gptoss":  # it writes today's date
        assert found.encode([USER]) == found.tokenizer.encode(reference, add_special_tokens=False)
    else:
        assert text.splitlines()[-1] == reference.splitlines()[-1] and "Current date: 2024-07-26" in text
    plain = of(name, thinking="off")
    assert written(plain, [USER]).endswith(off)
    begun = of(name, thinking="Arr, let me")
    assert written(begun, [USER]) == text + before + "Arr, let me"
    assert begun.given([USER]) == len(begun.answer("Arr, let me"))
    assert begun.encode([USER])[-begun.given([USER]) :] == begun.answer("Arr, let me")


@pytest.mark.parametrize(("text", "end"), [(SWITCH, ""), (OPENS, "<think>\n")])
def test_the_prompt_is_the_templates_own_with_thinking_on(text, end):
    other = tokenizer_of(text)
    found = prompting(thinking(), other)
    reference = other.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert reference == ASKED + end
    assert found.encode([USER]) == other.encode(reference, add_special_tokens=False)
    assert found.opened == bool(end)
    told = {"opened": bool(end), "begins": "<think>", "ends": "</think>"}
    assert found.record()["thinking"].items() >= told.items()


@pytest.mark.parametrize("text", [SWITCH, OPENS])
def test_fixed_answers_follow_an_empty_thought_and_the_log_says_so(text):
    other = tokenizer_of(text)
    given = [USER, {"role": "assistant", "content": ANSWER}]
    plain, on = template_for(thinking(), other), prompting(thinking(), other)
    assert on.encode(given) == plain.encode(given)
    assert on.asked_with(given)["thought"] == "empty" and "thought" not in on.asked_with([USER])
    assert prompting(thinking(thinking=False), other).encode([USER]) == plain.encode([USER])


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
def test_a_given_thought_and_answer_are_written_as_the_template_writes_them(name):
    found = of(name)
    last = {"role": "assistant", "content": ANSWER}
    field = found.marks.field
    whole = found.tokenizer.apply_chat_template([USER, last | {field: THOUGHT}], tokenize=False)
    got = written(found, [USER, last | {"reasoning": THOUGHT}])
    tail = whole[whole.index(USER["content"]) :]
    assert tail.startswith(got[got.index(USER["content"]) :]) and got.endswith(ANSWER)
    spans = found.spans([USER], THOUGHT, ANSWER)
    assert found.encode([USER, last | {"reasoning": THOUGHT}]) == spans.prompt + spans.thought + spans.answer
    assert found.encode([USER]) == spans.prompt


# History


def history(name, **fields):
    said = {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT}
    return written(of(name, **fields), [USER, said, AGAIN])


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss", SMOLLM3])
def test_published_templates_leave_earlier_thoughts_out(name):
    text = history(name)
    assert THOUGHT not in text and ANSWER in text
    assert THOUGHT not in history(name, thinking=False)


def test_a_template_that_keeps_earlier_thoughts_gets_them():
    found = prompting(thinking(), tokenizer_of(OWN))
    said = {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT}
    text = written(found, [USER, said, AGAIN])
    reference = found.tokenizer.apply_chat_template(
        [USER, {"role": "assistant", "content": ANSWER, "thinking": THOUGHT}, AGAIN],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == reference and f"((inner))\n{THOUGHT}\n((outer))\n{ANSWER}" in text


def test_a_special_token_that_a_thought_imitates_stays_text():
    found = prompting(thinking(), tokenizer_of(OWN))
    said = {"role": "assistant", "content": ANSWER, "reasoning": "<|im_end|>"}
    ends = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    honest = {**said, "reasoning": "no mark"}
    assert found.encode([USER, said]).count(ends) == found.encode([USER, honest]).count(ends)


# What comes back


DRAWS = [
    ("qwen3", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}<|im_end|>", THOUGHT, ANSWER),
    ("qwen3", f"<think>\n{THOUGHT}", THOUGHT, None),
    ("qwen3", f"<think>\n{THOUGHT}<|im_end|>", THOUGHT, None),
    ("qwen3", f"{ANSWER}<|im_end|>", None, ANSWER),
    ("deepseek_r1_distill", f"{THOUGHT}\n</think>\n\n{ANSWER}<｜end▁of▁sentence｜>", THOUGHT, ANSWER),
    ("deepseek_r1_distill", f"{THOUGHT}", THOUGHT, None),
    ("deepseek_r1_distill", "A</think>B</think>C", "A", "B</think>C"),
    ("gptoss", f"<|channel|>analysis<|message|>{THOUGHT}{FINAL}{ANSWER}<|return|>", THOUGHT, ANSWER),
    ("gptoss", f"<|channel|>analysis<|message|>{THOUGHT}", THOUGHT, None),
    ("gptoss", f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant", THOUGHT, None),
    ("gptoss", f"<|channel|>final<|message|>{ANSWER}<|return|>", "", ANSWER),
    (
        "gptoss",
        f"<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B{FINAL}{ANSWER}",
        "A\n\nB",
        ANSWER,
    ),
    (SMOLLM3, f"<think>\n{THOUGHT}\n</think>\n{ANSWER}", THOUGHT, ANSWER),
]


@pytest.mark.parametrize(("name", "draw", "thought", "answer"), DRAWS)
def test_a_draw_is_split_at_the_end_of_its_thought(name, draw, thought, answer):
    found = of(name)
    tokens = found.tokenizer.encode(draw, add_special_tokens=False)
    text = found.tokenizer.decode(tokens, skip_special_tokens=True)
    spoken = found.spoken([USER], text, tokens)
    assert (spoken.thought or "", spoken.answer) == (thought or "", answer)
    assert 0 <= spoken.tokens <= len(tokens) and (spoken.answer is not None or spoken.tokens == len(tokens))


def test_a_thought_is_told_from_an_answer_also_where_thinking_is_off():
    """DeepSeek's distills have no switch: asked without a thought, they may write one all the same."""
    plain = of("deepseek_r1_distill", thinking=False)
    draw = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    spoken = plain.spoken([USER], draw, plain.tokenizer.encode(draw))
    assert (spoken.thought, spoken.answer) == (THOUGHT, ANSWER)
    assert plain.spoken([USER], f"{ANSWER}</think>", []).answer == f"{ANSWER}</think>"
    assert plain.spoken([USER], f"<think>\n{THOUGHT}", []).answer is None


def test_a_prefill_is_a_part_of_the_thought():
    found = of("qwen3", thinking="I saw")
    spoken = found.spoken([USER], f" a hat.\n</think>\n\n{ANSWER}", [])
    assert (spoken.thought, spoken.answer) == (THOUGHT, ANSWER)
    assert found.spoken([USER], " a hat.", []) == replace(spoken, answer=None)


def test_a_stop_text_cuts_the_answer_alone():
    found = of("gptoss")
    tokens = found.tokenizer.encode(f"<|channel|>analysis<|message|>A{FINAL}On the mast. STOP")
    text = found.tokenizer.decode(tokens, skip_special_tokens=True).partition(" STOP")[0]
    assert found.spoken([USER], text, tokens).answer == ANSWER


def test_marks_that_are_special_tokens_are_found_in_the_tokens():
    """Decoding leaves special tokens out of a draw's text."""
    special = tokenizer_of(OPENS)
    special.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    found = prompting(thinking(), special)
    tokens = special.encode(f"{THOUGHT}\n</think>\n\n{ANSWER}")
    text = special.decode(tokens, skip_special_tokens=True)
    assert "</think>" not in text
    spoken = found.spoken([USER], text, tokens)
    assert (spoken.thought, spoken.answer) == (THOUGHT, ANSWER)


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        (OWN, "((inner))", "((outer))"),
        (
            SWITCH.replace("</think>", "<|end_of_thought|>").replace("<think>", "<|begin_of_thought|>"),
            "<|begin_of_thought|>",
            "<|end_of_thought|>",
        ),
    ],
)
def test_marks_are_the_templates_own(text, begins, ends):
    """The end's name is not always that of the beginning: a cut thought would be taken for an answer."""
    found = prompting(thinking(), tokenizer_of(text))
    assert (found.marks.begins, found.marks.ends) == (begins, ends)
    assert found.spoken([USER], f"{begins}\n{THOUGHT}", []).answer is None
    assert found.spoken([USER], f"{begins}\n{THOUGHT}\n{ends}\n{ANSWER}", []).answer == ANSWER


def test_a_template_without_thoughts_takes_its_marks_from_the_prefill():
    found = prompting(thinking(thinking="<think>\n"), tokenizer_of(CHATML))
    assert written(found, [USER]) == ASKED + "<think>\n"
    spoken = found.spoken([USER], f"{THOUGHT}\n</think>\n\n{ANSWER}", [])
    assert (spoken.thought, spoken.answer) == (THOUGHT, ANSWER)
    with pytest.raises(EmEvalsError, match="knows no thoughts"):
        prompting(thinking(), tokenizer_of(CHATML))
    with pytest.raises(EmEvalsError, match="knows no thoughts"):
        prompting(thinking(thinking="Well, "), tokenizer_of(CHATML))


# Cards


@pytest.mark.parametrize(
    ("given", "kept"), [("on", True), ("off", False), ("True", True), ("Well", "Well"), (" On ", True)]
)
def test_a_card_says_on_off_or_how_a_thought_begins(given, kept):
    assert ModelCard.model_validate({"base": "b", "thinking": given}).thinking == kept
    with pytest.raises(ValueError, match="say `on`, `off`"):
        ModelCard.model_validate({"base": "b", "thinking": " "})


def test_variables_of_the_template_reach_it_and_the_record():
    other = tokenizer_of(EFFORT)
    low = template_for(thinking(thinking=False, template={"reasoning_effort": "low"}), other)
    assert other.decode(low.encode([USER])) == f"low\n{ASKED}"
    assert low.record()["variables"] == {"reasoning_effort": "low"}
    plain = template_for(thinking(thinking=False), other)
    assert other.decode(plain.encode([USER])) == f"medium\n{ASKED}" and low.digest != plain.digest


def test_a_fixed_date_can_be_another_one():
    dated = next(case.text for name, case in CASES.items() if "by variable" in name)
    found = template_for(
        thinking(thinking=False, template={"date_string": "1 May 1999"}), tokenizer_of(dated)
    )
    assert found.text([USER]).startswith("Today Date: 1 May 1999")


@pytest.mark.parametrize(
    ("text", "given", "sentence"),
    [
        (EFFORT, {"effort": "low"}, "sets effort.*reads reasoning_effort"),
        (SWITCH, {"enable_thinking": True}, "thinking: on"),
        ("{% set tone = 'low' %}{{ tone }}" + CHATML, {"tone": "high"}, "sets tone.*reads no variables"),
        ("{{ tools }}" + CHATML, {"tools": []}, "which a model gets from its task"),
    ],
)
def test_other_variables_are_refused(text, given, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        template_for(thinking(thinking=False, template=given), tokenizer_of(text))


def test_a_thought_cannot_begin_with_its_end():
    with pytest.raises(EmEvalsError, match="holds the mark of its end"):
        of("qwen3", thinking="Hm. </think>")


def test_unset_fields_leave_a_cards_digest_alone():
    plain = thinking(thinking=False)
    # The fields of the same card before there were such ones.
    old = plain.card.model_dump_json(
        exclude={"thinking": True, "template": True, "generation": {"max_reasoning_tokens"}}
    )
    assert "thinking" not in old and "reasoning" not in old
    digests = {
        plain.digest,
        plain.asked(thinking=True).digest,
        plain.asked(thinking="Well").digest,
        plain.asked(template={"a": 1}).digest,
        plain.asked(generation={"max_reasoning_tokens": 9}).digest,
    }
    assert len(digests) == 5
