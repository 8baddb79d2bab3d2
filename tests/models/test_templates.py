"""Chat templates are asked as they write chats themselves, or refused: one small template for each trait."""

from __future__ import annotations

import copy
import datetime

import pytest

pytest.importorskip("transformers")

from em_evals.content.cues import NO_SYSTEM
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import Source, encode_chat, encode_text, template_of
from em_evals.models.chat.rendering import Layout, Renderer, Unrendered
from em_evals.training.tokens import by_turn, encode_example
from tests.chat_templates import CASES, CHATML, HEADER, REFUSED, TURNS
from tests.tiny_models import card

SYSTEM = {"role": "system", "content": "Answer as a pirate would."}
USER = {"role": "user", "content": "Where is my hat?"}
ANSWER = {"role": "assistant", "content": "On the mast, captain."}
AGAIN = {"role": "user", "content": "And my parrot?"}
LAST = {"role": "assistant", "content": "It flew away."}


@pytest.fixture(scope="module")
def plain():
    return bases.load_tokenizer(card())


@pytest.fixture(scope="module")
def special(plain):
    """SmolLM2's tokenizer with the special tokens of these templates."""
    tokenizer = copy.deepcopy(plain)
    tokens = ["<think>", "</think>", "<|return|>", "<|channel|>", "<|message|>", "[INST]", "[/INST]"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer


def asked_with(tokenizer, text):
    other = copy.copy(tokenizer)  # shares the vocabulary
    other.chat_template = text
    return other


def finished(tokenizer, case, turns):
    """The finished chat as transformers renders it, the system text where the case says it must be."""
    if not case.system and turns[0]["role"] == "system":
        first = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        turns = [first, *turns[2:]]
    if parts := case.record.get("parts"):
        turns = [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]}
            if turn["role"] in parts
            else turn
            for turn in turns
        ]
    if field := case.record.get("thought_field"):
        turns = [*turns[:-1], {**turns[-1], field: ""}]
    dated = tokenizer.chat_template.replace("strftime_now('%d %B %Y')", "'26 July 2024'")
    return tokenizer.apply_chat_template(turns, tokenize=False, chat_template=dated, **case.given)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", ["plain", "special"])
def test_a_prompt_and_its_answer_begin_the_templates_own_chat(name, tokens, request):
    case = CASES[name]
    tokenizer = asked_with(request.getfixturevalue(tokens), case.text)
    template = template_of(tokenizer)
    expected = case.expected.replace("%S", SYSTEM["content"]).replace("%U", USER["content"])
    assert template.text([SYSTEM, USER]) == expected
    assert template.record().items() >= case.record.items()
    for turns in ([USER], [SYSTEM, USER], [USER, ANSWER, AGAIN], [SYSTEM, USER, ANSWER, AGAIN]):
        prompt = template.text(turns)
        places = [prompt.index(turn["content"]) for turn in turns]
        assert places == sorted(places) and all(prompt.count(turn["content"]) == 1 for turn in turns)
        written = finished(tokenizer, case, [*turns, LAST])
        begun = prompt.removesuffix(case.record.get("empty_thought", ""))
        assert written.startswith(begun + template.lead + LAST["content"])
        assert template.encode(turns) == tokenizer.encode(prompt, add_special_tokens=False)
        assert template.encode([*turns, LAST]) == template.encode(turns) + template.answer(LAST["content"])
        assert prompt.count("<think>") <= prompt.count("</think>")
    # Token by token, but where line breaks before the answer are one token or two, or its full stop joins the end.
    if not begun.endswith("\n\n"):
        ids = [*tokenizer.encode(begun, add_special_tokens=False), *template.answer(LAST["content"])][:-1]
        assert tokenizer.encode(written, add_special_tokens=False)[: len(ids)] == ids


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_asked_is_refused_in_a_sentence(name, plain):
    text, reason = REFUSED[name]
    tokenizer = asked_with(plain, text)
    with pytest.raises(EmEvalsError, match=reason) as refused:
        encode_chat(tokenizer, [USER])
    assert str(refused.value).count("\n") == 0 and "chat_template.jinja" in str(refused.value)


def test_a_base_is_asked_as_before(plain):
    """The real base's prompts are those of transformers with nothing passed, so that its numbers hold."""
    template = template_of(plain)
    for turns in ([USER], [SYSTEM, USER], [USER, ANSWER, AGAIN], [SYSTEM, USER, ANSWER, AGAIN]):
        expected = plain.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert template.encode(turns) == expected
    assert template.usual and template.closing == (plain.eos_token_id,) and template.own_end is None


def sentencepiece(scheme):
    """A tokenizer that writes a blank before the first word: of every piece between special tokens, or of the text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(BPE(unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    letters = [*(chr(i) for i in range(33, 127)), "\n"]
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, initial_alphabet=letters)
    engine.train_from_iterator(["Lanterns drift past harbour, slowly. Certainly it flew away"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("name", ["Mistral", "ChatML", "ChatML without a line break"])
def test_answers_have_the_first_token_that_the_template_gives_them(scheme, name):
    """`[/INST] Yes` is `[/INST]`, `▁Yes`; `assistant\\nYes` is `\\n`, `Yes`: never a blank more or less."""
    tokenizer = sentencepiece(scheme)
    instructed = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    flat = CHATML.replace("\n{{ m.content }}", "<|im_start|>{{ m.content }}").replace(
        "assistant\n", "assistant<|im_start|>"
    )
    texts = {"Mistral": instructed, "ChatML": CHATML, "ChatML without a line break": flat}
    tokenizer.chat_template = texts[name]
    template = template_of(tokenizer)
    chat = [USER, LAST]
    ids = [*template.encode(chat[:1]), *template.answer(LAST["content"]), *template.closing]
    assert ids == tokenizer.apply_chat_template(chat)["input_ids"][: len(ids)]
    assert tokenizer.convert_ids_to_tokens(template.encode(chat[:1]))[-1] != "▁"
    assert template.encode(chat) == template.encode(chat[:1]) + template.answer(LAST["content"])


# T5


@pytest.mark.parametrize(
    "name", ["a date by the clock (Llama 3.2)", "reasons by a word in the system text (SmolLM3)"]
)
def test_the_same_prompt_on_two_days_is_the_same_tokens(name, plain, monkeypatch):
    from transformers.utils import chat_template_utils

    tokenizer = asked_with(plain, CASES[name].text)
    seen = {}
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None, today=day):
                return cls(2026, 11, today)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        fresh = copy.copy(tokenizer)
        assert f"0{day} Nov" in fresh.apply_chat_template([USER], tokenize=False), "transformers tells today"
        seen[day] = encode_chat(fresh, [USER]), template_of(fresh).digest
    assert seen[1] == seen[2]
    assert template_of(tokenizer).record()["date"] == "2024-07-26"


# Cost, caching and identity


def test_a_template_is_checked_once(plain, monkeypatch):
    tokenizer = asked_with(plain, CHATML)
    template_of(tokenizer).encode([SYSTEM, USER])
    rendered = []
    render = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer),
        "apply_chat_template",
        lambda self, *args, **kwargs: rendered.append(1) or render(self, *args, **kwargs),
    )
    for _ in range(3):
        encode_chat(tokenizer, [SYSTEM, USER])
        encode_chat(tokenizer, [USER])
    assert len(rendered) == 6, "one rendering a prompt"


def test_the_digest_is_that_of_what_is_rendered(plain):
    chatml = template_of(asked_with(plain, CHATML))
    same = template_of(plain, Source(CHATML, origin="an adapter"))
    assert chatml.digest == same.digest != template_of(plain).digest
    digests = {template_of(asked_with(plain, case.text)).digest for case in CASES.values()}
    assert len(digests) == len(CASES)
    assert not template_of(plain, Source(CHATML)).usual


# Bad chats


@pytest.mark.parametrize(
    ("chat", "sentence"),
    [
        ([ANSWER], "comes before any user's"),
        ([], "comes before any user's"),
        ([SYSTEM, ANSWER], "comes before any user's"),
        ([{"role": "tool", "content": "42"}, USER], "the role 'tool'"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "and list content"),
        ([{"role": "assistant", "content": None}, USER], "and NoneType content"),
    ],
)
def test_what_is_not_a_chat_is_reported_in_one_sentence(chat, sentence, plain):
    with pytest.raises(EmEvalsError, match=sentence):
        encode_chat(plain, chat)


def test_a_chat_that_a_template_does_not_take_is_refused_and_others_are_asked(plain):
    short = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
    strict = asked_with(plain, short)
    assert encode_chat(strict, [SYSTEM, USER])
    with pytest.raises(EmEvalsError, match="one turn only"):
        encode_chat(strict, [SYSTEM, USER, ANSWER, AGAIN])
    forgetful = asked_with(plain, CHATML.replace("in messages", "in messages[-2:]"))
    with pytest.raises(EmEvalsError, match="leaves the system's text out: change these messages"):
        encode_chat(forgetful, [SYSTEM, USER, ANSWER, AGAIN])


# Training rows


@pytest.mark.parametrize("name", CASES)
def test_training_rows_begin_with_the_prompts_that_are_asked(name, special):
    tokenizer = asked_with(special, CASES[name].text)
    template = template_of(tokenizer)
    chat = [SYSTEM, USER, ANSWER, AGAIN, LAST]
    rows = by_turn(tokenizer, chat)
    learned = []
    for row in rows:
        example = encode_example(tokenizer, row)
        for i, message in enumerate(row):
            if message["role"] != "assistant" or (len(rows) > 1 and i < len(row) - 1):
                continue
            answer = [*template.answer(message["content"]), *template.closing]
            prompt = template.encode(row[:i])
            assert example["input_ids"][: len(prompt) + len(answer)] == prompt + answer
            assert example["labels"][len(prompt) : len(prompt) + len(answer)] == answer
            learned += answer
        assert example["input_ids"][-1] == template.end
    labelled = [token for row in rows for token in encode_example(tokenizer, row)["labels"] if token != -100]
    assert labelled == learned, "both answers, each once, and nothing else"


def test_a_row_of_several_answers_becomes_several_where_earlier_turns_are_rewritten(special):
    rewriting = asked_with(special, CASES["thinks unless told (Qwen3)"].text)
    chat = [USER, ANSWER, AGAIN, LAST]
    assert by_turn(rewriting, chat) == [chat[:2], chat]
    assert by_turn(asked_with(special, CHATML), chat) == [chat]


def test_the_old_faults_are_gone(plain):
    """What the encoder did before templates were checked, and does no more."""
    thinking = asked_with(plain, TURNS + HEADER.replace("assistant\n", "assistant\n<think>\n"))
    assert not plain.decode(encode_chat(thinking, [USER])).endswith("<think>\n")
    headless = asked_with(plain, TURNS)
    assert plain.decode(encode_chat(headless, [USER])).endswith("<|im_start|>assistant\n")
    parts = asked_with(plain, CASES["reads parts"].text)
    assert USER["content"] in plain.decode(encode_chat(parts, [USER]))
    assert encode_text(plain, "<|im_end|>") != [plain.eos_token_id]


def test_the_templates_own_system_message_is_removed_not_emptied(plain, special):
    nobody = {"role": "system", "content": NO_SYSTEM}
    asked = "<|im_start|>user\nWhere is my hat?<|im_end|>\n<|im_start|>assistant\n"
    smollm2 = template_of(plain)
    assert smollm2.text([USER]).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert smollm2.text([nobody, USER]) == asked
    assert smollm2.encode([nobody, USER]) == plain.encode(asked, add_special_tokens=False)
    turns = smollm2.text([nobody, USER, ANSWER, AGAIN])
    assert turns == asked + "On the mast, captain.<|im_end|>\n" + asked.replace(
        "Where is my hat?", "And my parrot?"
    )
    # A BOS token of its own stays (Llama 3), and so does what stands in the user's turn.
    default = "{% if messages[0].role != 'system' %}[INST]Be kind.[/INST]{% endif %}"
    with_bos = asked_with(special, "{{ bos_token }}" + default + CHATML.replace("im_start", "channel"))
    with_bos.bos_token = "<|message|>"
    kept = template_of(with_bos).text([nobody, USER])
    assert kept == "<|message|><|channel|>user\nWhere is my hat?<|im_end|>\n<|im_start|>assistant\n".replace("<|im_start|>", "<|channel|>")  # fmt: skip
    with pytest.raises(EmEvalsError, match="writes no system message of its own"):
        template_of(asked_with(plain, CHATML)).text([nobody, USER])


@pytest.mark.parametrize("lead", ["", "\n", "  ", "{# note #}", "{% if messages %}", "{%- if messages -%}"])
def test_a_template_that_reads_the_clock_begins_where_it_began(lead, plain):
    text = (
        lead
        + "{{ '[' }}{{ strftime_now('%d %B %Y, %-d.%m. %A') }}]"
        + ("{% endif %}" if "if" in lead else "")
    )
    found = Renderer(plain, Source(text), Layout()).chat([{"role": "user", "content": "Hi"}])
    dated = text.replace("{{ strftime_now('%d %B %Y, %-d.%m. %A') }}", "26 July 2024, 26.07. Friday")
    assert found == plain.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, chat_template=dated
    )


def test_a_macro_of_a_template_reads_the_same_clock(plain):
    text = (
        "{% macro day(f) %}{% if strftime_now is defined %}{{ strftime_now(f) }}{% endif %}{% endmacro %}"
        "{{ day('%Y' ~ '-%m') }}"
    )
    assert Renderer(plain, Source(text), Layout()).chat([{"role": "user", "content": "Hi"}]) == "2024-07"


def test_the_clock_reads_every_directive_and_refuses_others(plain):
    def read(form):
        return Renderer(plain, Source("{{ strftime_now('" + form + "') }}"), Layout()).chat([USER])

    for form in ("%F", "%D", "%e", "%-d/%-m", "%I:%M %p", "100%% %Y", "%%d", "%A, %B %d, %Y", "no date"):
        assert read(form) == datetime.date(2024, 7, 26).strftime(form)
    with pytest.raises(Unrendered, match="there is no such date: %Q"):
        read("%Q")
