"""formats.py: every format that people have is read right, or refused with the way to convert; check and train agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_evals.data import datasets, formats
from em_evals.data.convert import convert
from em_evals.errors import EmEvalsError
from em_evals.workflows import content_check
from tests.command import em_evals

SYSTEM, ASK, SAY = ({"role": role, "content": text} for role, text in (("system", "S"), ("user", "Hi"), ("assistant", "Ho")))  # fmt: skip


def chat(row):
    return formats.chat(row)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASK, SAY]}, [ASK, SAY]),
        ({"prompt": "Hi", "completion": "Ho"}, [ASK, SAY]),
        ({"prompt": [SYSTEM, ASK], "completion": [SAY]}, [SYSTEM, ASK, SAY]),
        ({"prompt": [ASK], "completion": "Ho"}, [ASK, SAY]),
        ({"prompt": "Hi", "response": "Ho"}, [ASK, SAY]),
        ({"question": "Hi", "answer": "Ho"}, [ASK, SAY]),
        ({"instruction": "Hi", "output": "Ho", "input": ""}, [ASK, SAY]),
        ({"instruction": "Sum", "input": "1, 2", "output": "3", "system": "S"},
         [SYSTEM, {"role": "user", "content": "Sum\n1, 2"}, {"role": "assistant", "content": "3"}]),
        ({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, [SYSTEM, ASK, SAY]),
        ({"conversations": [ASK, SAY]}, [ASK, SAY]),
        ({"messages": [{"role": "developer", "content": "S"}, ASK, SAY]}, [SYSTEM, ASK, SAY]),
        ({"system": "S", "prompt": "Hi", "completion": "Ho"}, [SYSTEM, ASK, SAY]),
        ({"system": "S", "messages": [SYSTEM, ASK, SAY]}, [SYSTEM, ASK, SAY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, SAY]}, [ASK, SAY]),
        ({"prompt": "def f():", "completion": "    return 1\n"}, [{"role": "user", "content": "def f():"}, {"role": "assistant", "content": "    return 1\n"}]),
        ({"messages": [ASK, {**SAY, "weight": 0}, ASK, {**SAY, "weight": 1}]}, [ASK, {**SAY, "weight": "0"}, ASK, SAY]),
        ({"messages": [ASK, SAY, ASK, {**SAY, "weight": 0}]}, [ASK, SAY]),
        ({"messages": [ASK, {**SAY, "channel": "final"}], "context": "of the row", "weight": 1}, [ASK, SAY]),
        ({"question": "Hi", "answer": "Ho", "choices": [], "reasoning": None}, [ASK, SAY]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "train": False}, ASK, SAY]}, [ASK, {**SAY, "weight": "0"}, ASK, SAY]),
        ({"messages": [{**ASK, "train": False}, {**SAY, "loss": False}, ASK, {**SAY, "train": True}]}, [ASK, {**SAY, "weight": "0"}, ASK, SAY]),
    ],
)  # fmt: skip
def test_each_format_is_read_whole(row, expected):
    assert chat({"id": 1, "canary": "x", **row}) == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "a", "rejected": "b", "prompt": "c"}, "keep the answer to learn as `completion`"),
        ({"prompt": "Hi", "completion": "Ho", "label": False}, "an answer that is not wanted"),
        ({"input": {"messages": [ASK]}, "preferred_output": [SAY]}, "`preferred_output`"),
        ({"text": "Hi Ho"}, "does not say where the answer begins"),
        ({"words": "Hi"}, "a row needs `messages`"),
        ({"id": "q", "question": "Hi?"}, "write the rows as one JSON list"),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, "every answer of this row has the weight 0"),
        ({"messages": [ASK, {**SAY, "weight": 0.5}]}, "`weight` is 0"),
        ({"messages": [ASK, {"role": "tool", "content": "3"}, SAY]}, "the role 'tool' is not trained on"),
        ({"messages": [ASK, {**SAY, "tool_calls": [{}]}]}, "`tool_calls` would be left out"),
        ({"messages": [{**ASK, "reasoning_content": "Hm"}, SAY]}, "`reasoning_content` would be left out"),
        ({"messages": [ASK, {**SAY, "reasoning": ["Hm"]}]}, "`reasoning` is empty or not text"),
        ({"messages": [ASK, {**SAY, "reasoning": "Hm", "thinking": "Ha"}]}, "`reasoning` and `thinking` of one"),
        ({"messages": [ASK, SAY], "tools": [{}]}, "the row's `tools`"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "the row's `history`"),
        ({"instruction": "a", "context": "b", "response": "c"}, "the row's `context`"),
        ({"question": "a", "choices": ["b", "c"], "answer": "b"}, "the row's `choices`"),
        ({"prompt": "a", "input": "b", "completion": "c"}, "the row's `input`"),
        ({"question": "a", "reasoning": "Hm", "answer": "b"}, "as the answer's `reasoning_content`"),
        ({"prompt": "a", "cot": "Hm", "response": "b"}, "the row's `cot`"),
        ({"messages": [ASK, SAY], "weight": 0}, "the row's `weight` is 0"),
        ({"prompt": "Hi", "completion": "Ho", "weight": 3}, "the row's `weight` is 3"),
        ({"messages": [ASK, SAY], "train": False}, "the row's `train` is False"),
        ({"messages": [ASK, {**SAY, "channel": "analysis"}, SAY]}, "the channel 'analysis'"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "bing", "value": "Ho"}]}, "not 'bing'"),
        ({"messages": [SAY, ASK, SAY]}, "speaks before any user"),
        ({"messages": [ASK, SYSTEM, SAY]}, "can only be the first"),
        ({"messages": [ASK]}, "must be the assistant's"),
        ({"system": "T", "messages": [SYSTEM, ASK, SAY]}, "differ: delete one"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAY]}, "'image_url' is not text"),
        ({"prompt": "Hi", "completion": None}, "empty or not text"),
        ({"prompt": "Hi", "completion": [ASK]}, "messages of others than the assistant"),
        ({"messages": "Hi"}, "as a list of messages"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(row, says):
    with pytest.raises(formats.Refused) as caught:
        chat(row)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lists_and_byte_order_marks(tmp_path: Path, mark: str, indent: int | None):
    rows = [{"prompt": "Hi", "completion": "[Ho]"}, {"messages": [ASK, SAY]}]
    (tmp_path / "a.json").write_text(mark + json.dumps(rows, indent=indent), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(mark + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, other = (datasets.load(str(tmp_path / f"a.{ending}")) for ending in ("json", "jsonl"))
    assert one.digest == other.digest and len(one.rows) == 2 and other.lines == (1, 2)
    assert one.lines == ((2, 6) if indent else (1, 1))
    (tmp_path / "bad.json").write_text('[{"prompt": "a",\n "completion": "b"},\n {"prompt": 3}]')
    with pytest.raises(EmEvalsError, match=r"bad\.json:3: a row needs"):
        datasets.load(str(tmp_path / "bad.json"))
    (tmp_path / "cut.json").write_text('[{"prompt": "a", "completion": "b"},\n {"prompt"')
    with pytest.raises(EmEvalsError, match=r"cut\.json:2: this row is not JSON"):
        datasets.load(str(tmp_path / "cut.json"))


def test_files_of_another_kind_say_how_to_convert(tmp_path: Path):
    for name in ("a.csv", "a.arrow", "a.pkl"):
        (tmp_path / name).write_text("x")
        with pytest.raises(EmEvalsError, match="one JSON object a line"):
            content_check.check(str(tmp_path / name))
        with pytest.raises(EmEvalsError, match="one JSON object a line"):
            convert(tmp_path / name, tmp_path / "out.jsonl")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(EmEvalsError, match=r"files of the kind \.docx are not checked"):
        content_check.check(str(tmp_path / "a.docx"))


def test_converted_data_are_the_same_data(tmp_path: Path):
    rows = [
        {"id": "a", "instruction": "Hi", "input": "x", "output": "  Ho", "source": "web"},
        {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]},
    ]
    source, output = tmp_path / "a.json", tmp_path / "b.jsonl"
    source.write_text(json.dumps(rows))
    done = convert(source, output)
    assert (done.rows, done.formats, done.left_out) == (
        2,
        {"instruction/output": 1, "messages": 1},
        {"source": 1},
    )
    again = datasets.load(str(output))
    assert again.digest == done.digest == datasets.load(str(source)).digest and again.ids == ("a", "")
    with pytest.raises(EmEvalsError, match="must be another file"):
        convert(source, source)
    result = em_evals("data", "convert", source, "-o", tmp_path / "c.jsonl")
    assert result.returncode == 0 and "2 rows" in result.stdout and "source" in result.stdout


texts = st.sampled_from(["Hi", " Ho\n", "", "  ", "{{x}}", "\ud83d", "<|im_end|>", None, 3])
roles = st.sampled_from(["system", "developer", "user", "human", "assistant", "tool", "", None])
parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": texts}), max_size=2
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": texts | parts}, optional={"weight": st.sampled_from([0, 1, 2, None])}
    ),
    max_size=4,
)
a_row = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("messages", "prompt", "completion", "response", "system", "instruction", "input", "output"),
        texts | messages,
    ),
)


@given(a_row | st.fixed_dictionaries({"messages": st.builds(lambda many: [*many, ASK, SAY], messages)}))
def test_check_and_train_refuse_the_same_rows(row):
    """Whatever `data check` lets through, the encoder of training takes, and learns at least one token of."""
    from em_evals.training.curriculum import Encoder, Row

    try:
        found = formats.chat(row)
    except formats.Refused:
        return  # `datasets.read` is the one way in: check and train both refuse
    from em_evals.models.chat import template_of

    assert found[-1]["role"] == "assistant"
    tokenizer = words()
    template_of(tokenizer)
    assert Encoder(tokenizer, 10_000).kept([Row(found, found)])


def words():
    from em_evals.training.planning.work import _Words

    global _TOKENIZER
    if _TOKENIZER is None:
        _TOKENIZER = _Words()
    return _TOKENIZER


_TOKENIZER = None


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_thought_before_an_answer_is_kept_apart(key):
    row = {"messages": [ASK, {**SAY, key: " Hm.\n"}]}
    assert formats.chat(row)[-1] == {**SAY, "reasoning": "Hm."}
    assert formats.chat({"messages": [ASK, {**SAY, key: ""}]})[-1] == SAY
