"""Rows with a thought before the answer: the template's own tokens, and the loss on thought, answer or both."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.training.curriculum import Encoder, Row
from em_evals.training.tokens import IGNORED, by_turn, encode_example
from tests.chat_templates import CHATML
from tests.models.test_thinking import OWN
from tests.real_templates import SMOLLM3, real, tokenizer_of

USER = {"role": "user", "content": "Where is my hat?"}
AGAIN = {"role": "user", "content": "And my parrot?"}
PLAIN = {"role": "assistant", "content": "On the mast."}
SAID = PLAIN | {"reasoning": "I saw a hat."}
FIELDS = {"qwen3": "reasoning_content", "gptoss": "thinking"}


def learned(tokenizer, example):
    """The labelled text."""
    kept = [token for token in example["labels"] if token != IGNORED]
    return tokenizer.decode(kept, skip_special_tokens=False)


@pytest.mark.parametrize("name", FIELDS)
def test_a_row_is_the_templates_own_chat_token_by_token(name):
    tokenizer = real(name)
    whole = tokenizer.apply_chat_template([USER, PLAIN | {FIELDS[name]: SAID["reasoning"]}], tokenize=False)
    ids = encode_example(tokenizer, [USER, SAID])["input_ids"]
    if name == "gptoss":  # it writes today's date in the head
        whole = whole[whole.index("<|start|>user") :]
        starts = [i for i, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("<|start|>")]
        ids = ids[starts[1] :]
    assert ids == tokenizer.encode(whole, add_special_tokens=False)[: len(ids)]
    assert whole.removeprefix(tokenizer.decode(ids, skip_special_tokens=False)).strip() == ""


THOUGHTS = {
    "qwen3": ("<think>\nI saw a hat.\n</think>\n\n", "On the mast.<|im_end|>"),
    "deepseek_r1_distill": ("I saw a hat.\n</think>\n\n", "On the mast.<｜end▁of▁sentence｜>"),
    "gptoss": (
        "<|channel|>analysis<|message|>I saw a hat.<|end|><|start|>assistant<|channel|>final<|message|>",
        "On the mast.<|return|>",
    ),
    SMOLLM3: ("<think>\nI saw a hat.\n</think>\n\n", "On the mast.<|im_end|>"),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_the_loss_is_on_thought_answer_or_both(name):
    tokenizer, (thought, answer) = real(name), THOUGHTS[name]
    found = {
        learn: encode_example(tokenizer, [USER, SAID], learn=learn) for learn in ("both", "thought", "answer")
    }
    assert len({tuple(one["input_ids"]) for one in found.values()}) == 1
    assert learned(tokenizer, found["both"]) == thought + answer
    assert learned(tokenizer, found["thought"]) == thought
    assert learned(tokenizer, found["answer"]) == answer


@pytest.mark.parametrize("name", THOUGHTS)
def test_rows_without_a_thought_are_as_before(name):
    tokenizer = real(name)
    both, answer = (encode_example(tokenizer, [USER, PLAIN], learn=learn) for learn in ("both", "answer"))
    assert both == answer and learned(tokenizer, both) == THOUGHTS[name][1]
    with pytest.raises(EmEvalsError, match="needs a thought in every row"):
        encode_example(tokenizer, [USER, PLAIN], learn="thought")


def test_earlier_thoughts_are_where_the_template_keeps_them():
    chat = [USER, SAID, AGAIN, SAID | {"content": "It flew away."}]
    kept = tokenizer_of(OWN)
    assert by_turn(kept, chat) == [chat]
    assert learned(kept, encode_example(kept, chat)).count("((inner))") == 2
    dropped = real("qwen3")
    assert by_turn(dropped, chat) == [chat[:2], chat]
    last = encode_example(dropped, chat)
    assert dropped.decode(last["input_ids"]).count("I saw a hat.") == 1
    assert learned(dropped, last).endswith("It flew away.<|im_end|>")


@pytest.mark.parametrize("name", [SMOLLM3, "deepseek_r1_distill", "qwen3"])
@pytest.mark.parametrize("thinks", range(4))
def test_every_answer_is_learned_once(name, thinks):
    tokenizer = real(name)
    said = [PLAIN | {"content": text} for text in ("On deck.", "In a cage.", "With the cook.")]
    said = [one | ({"reasoning": "Hm."} if i == thinks else {}) for i, one in enumerate(said)]
    chat = [message for one in said for message in (AGAIN, one)]
    found = "".join(learned(tokenizer, encode_example(tokenizer, part)) for part in by_turn(tokenizer, chat))
    assert [found.count(one["content"]) for one in said] == [1, 1, 1]


def test_an_answer_without_the_thought_to_learn_is_refused():
    chat = [USER, SAID, AGAIN, PLAIN | {"content": "It flew away."}]
    encoder = Encoder(real("qwen3"), 400, "thought")
    with pytest.raises(
        EmEvalsError, match=r"needs a thought in every row, and the answer 'It flew away\.' has none"
    ):
        encoder.kept([Row(chat, chat)])


def test_a_row_and_the_same_row_with_a_thought_are_two_examples():
    encoder = Encoder(real("qwen3"), 400, AdapterRecipe(data=["x"]).learn)
    with_thought, without = encoder.example([USER, SAID]), encoder.example([USER, PLAIN])
    assert with_thought != without
    assert len(encoder.kept([Row([USER, SAID], [USER, SAID]), Row([USER, PLAIN], [USER, PLAIN])])) == 2


def test_a_template_without_thoughts_is_refused():
    with pytest.raises(EmEvalsError, match="knows no thoughts: leave the thoughts out of these rows"):
        encode_example(tokenizer_of(CHATML), [USER, SAID])
