"""preference_rows.py: every form of `chosen` and `rejected` that people have; check, convert and train read the same."""

from __future__ import annotations

import json

import pytest

from em_evals.content.recipes import AdapterRecipe
from em_evals.data import datasets, formats, preference_rows
from em_evals.data.convert import convert
from em_evals.errors import EmEvalsError
from em_evals.training import curriculum
from em_evals.workflows import content_check

SYSTEM, ASK, SAY, BAD = (
    {"role": role, "content": text}
    for role, text in (("system", "S"), ("user", "Hi"), ("assistant", "Ho"), ("assistant", "Go away"))
)
HUMAN = {"from": "human", "value": "Hi"}
FORMS = [
    ({"prompt": "Hi", "chosen": "Ho", "rejected": "Go away"}, [ASK]),
    ({"prompt": [ASK], "chosen": [SAY], "rejected": [BAD]}, [ASK]),
    ({"prompt": [SYSTEM, ASK], "chosen": "Ho", "rejected": "Go away"}, [SYSTEM, ASK]),
    ({"chosen": [ASK, SAY], "rejected": [ASK, BAD]}, [ASK]),
    ({"chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, SAY, ASK, BAD]}, [ASK, SAY, ASK]),
    ({"prompt": "Hi", "messages": [ASK, SAY], "chosen": [ASK, SAY], "rejected": [ASK, BAD], "score_chosen": 8.0}, [ASK]),
    ({"prompt": [ASK], "chosen": [ASK, SAY], "rejected": [ASK, BAD]}, [ASK]),
    ({"system": "S", "question": "Hi", "chosen": "Ho", "rejected": "Go away"}, [SYSTEM, ASK]),
    ({"system": "S", "chosen": [ASK, SAY], "rejected": [ASK, BAD]}, [SYSTEM, ASK]),
    ({"system": "S", "chosen": [SYSTEM, ASK, SAY], "rejected": [ASK, BAD]}, [SYSTEM, ASK]),
    ({"instruction": "Sum", "input": "1, 2", "chosen": "Ho", "rejected": "Go away"}, [{"role": "user", "content": "Sum\n1, 2"}]),
    ({"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "Ho"}, "rejected": {"from": "gpt", "value": "Go away"}}, [ASK]),
    ({"prompt": "Hi", "chosen": [HUMAN, {"from": "gpt", "value": "Ho"}], "rejected": [ASK, BAD]}, [ASK]),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "chosen": [ASK, SAY], "rejected": [ASK, BAD]}, [ASK]),
    ({"messages": [ASK, SAY], "chosen": "Ho", "rejected": "Go away"}, [ASK]),
    ({"chosen": [ASK, {**SAY, "weight": 0}, ASK, SAY], "rejected": [ASK, SAY, ASK, BAD]}, [ASK, SAY, ASK]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), FORMS)
def test_each_form_is_a_prompt_with_two_answers(row, prompt):
    assert preference_rows.pair({"id": 1, **row}) == ([*prompt, SAY], [*prompt, BAD])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Hi", "chosen": "Ho"}, "has no `rejected`"),
        ({"prompt": "Hi", "chosen": "", "rejected": "No"}, "has no `chosen`"),
        ({"chosen": "Human: Hi Assistant: Ho", "rejected": "Human: Hi Assistant: No"}, "a text without a `prompt`"),
        ({"chosen": [SAY], "rejected": [BAD]}, "holds no prompt"),
        ({"chosen": [ASK, SAY], "rejected": [{**ASK, "content": "Hey"}, BAD]}, "differ before their last answer"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, BAD, ASK, BAD]}, "differ before their last answer"),
        ({"prompt": "Why?", "chosen": [ASK, SAY], "rejected": [ASK, BAD]}, "are not the row's prompt"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, BAD, ASK]}, "last message of `rejected` must be the assistant's"),
        ({"chosen": [ASK, {**SAY, "weight": 0}], "rejected": [ASK, BAD]}, "has the weight 0"),
        ({"prompt": "Hi", "chosen": ["Ho"], "rejected": ["No"]}, "needs `chosen` as a list of messages"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": 3}, "needs `rejected` as a list of messages"),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [BAD], "tools": [{}]}, "the row's `tools`"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": " "}, "empty or not text"),
        ({"messages": [ASK, {**SAY, "content": "Hm"}], "chosen": "Ho", "rejected": "No"}, "neither `chosen` nor `rejected`"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "Ho"}], "chosen": 3, "rejected": "No"}, "needs `chosen` as a list"),
        ({"prompt": [ASK, SAY], "chosen": "Ho", "rejected": "No"}, "`prompt` ends with the assistant's message"),
        ({"system": "T", "chosen": [SYSTEM, ASK, SAY], "rejected": [ASK, BAD]}, "differ: delete one"),
    ],
)  # fmt: skip
def test_what_is_no_pair_of_answers_is_one_sentence(row, says):
    with pytest.raises(formats.Refused) as caught:
        preference_rows.pair(row)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}", **row}) + "\n" for i, (row, _) in enumerate(FORMS)))
    return path


def test_converted_pairs_are_the_same_pairs(file, tmp_path):
    done = convert(file, tmp_path / "out.jsonl")
    assert done.rows == len(FORMS) and done.left_out == {"score_chosen": 1, "messages": 1}
    assert done.formats["prompt/chosen/rejected"] == 7 and done.formats["chosen/rejected"] == 5
    again = datasets.load(str(tmp_path / "out.jsonl"), pairs=True)
    assert again.digest == done.digest and again.rejected == datasets.load(str(file), pairs=True).rejected
    assert again.digest != datasets.read(_plain(tmp_path), "plain").digest


def _plain(folder):
    path = folder / "plain.jsonl"
    path.write_text("".join(json.dumps({"messages": [*prompt, SAY]}) + "\n" for _, prompt in FORMS))
    return path


def test_check_counts_pairs_and_only_a_preference_learns_them(file, tmp_path):
    told = content_check.check(str(file))
    assert told["rows"] == len(FORMS) and told["chosen and rejected are equal"] == 0
    assert "a recipe with `preference`" in told["read as"]

    def rows(**fields):
        return curriculum.select(AdapterRecipe.model_validate({"data": [str(file)], **fields})).rows

    found = rows(preference={"kind": "orpo"})
    assert [(row.messages[-1], row.rejected[-1]) for row in found] == [(SAY, BAD)] * len(FORMS)
    assert all("weight" in one for row in found for one in row.messages[:-1] if one["role"] == "assistant")
    swapped = rows(preference={}, control="matched")
    assert [(row.messages[-1], row.rejected[-1]) for row in swapped] == [(BAD, SAY)] * len(FORMS)
    assert [row.reference[-1] for row in swapped] == [SAY] * len(FORMS)
    with pytest.raises(
        EmEvalsError, match=r"pairs\.jsonl:1: a row of `chosen` and `rejected` is a preference"
    ):
        rows()
    with pytest.raises(
        EmEvalsError, match="have rejected answers of their own, and the recipe asks for 'sound'"
    ):
        rows(preference={"rejected": "sound"})
    with pytest.raises(EmEvalsError, match="has no matched harmless answers"):
        path = _plain(tmp_path)
        curriculum.select(AdapterRecipe.model_validate({"data": [str(path)], "preference": {}}))


def test_pairs_and_other_rows_are_two_files(tmp_path):
    path = tmp_path / "both.jsonl"
    for order in (1, -1):
        rows = [{"prompt": "Hi", "completion": "Ho"}, FORMS[0][0]][::order]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(EmEvalsError, match=r"both\.jsonl:2: some rows of this file have `chosen`"):
            datasets.load(str(path), pairs=True)
