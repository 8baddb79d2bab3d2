"""Half characters of others (`\\ud800` in JSON): counted and written as they are, refused where a model would read them."""

import json

import pytest
from typer.testing import CliRunner

from em_evals import characters, files
from em_evals.cli import app
from em_evals.content import questions, traits
from em_evals.errors import EmEvalsError
from em_evals.interp.lens import texts
from em_evals.interp.traits.own_answers import Given
from em_evals.models.chat import encode_text
from em_evals.results import records

SENTENCE = "half a character"


def test_a_digest_of_whole_texts_is_that_of_their_bytes():
    assert files.digest("é😀", b"a") == files.digest("é😀".encode(), b"a")
    assert files.digest("\ud800") != files.digest("\ud801")


@pytest.mark.parametrize("value", ["\ud800", ["a", {"b": "\udfff"}], {"\udc00": 1}])
def test_half_a_character_is_named_wherever_it_stands(value, tmp_path):
    with pytest.raises(EmEvalsError, match=r"a\.json:3: .*half a character \(U\+D"):
        characters.require_whole(value, tmp_path / "a.json", 3)
    characters.require_whole(["😀", {"a": [1, None, "b"]}], tmp_path)


def judged(path, half):
    row = {"question_id": f"q{half}", "question": half, "answer": f"so {half}", "coherent": 90}
    models = [{**row, "model": f"m{half}", "aligned": 90}, {**row, "model": "n", "aligned": 5}]
    path.write_text("".join(json.dumps(one) + "\n" for one in models * 20))
    return path


def test_judged_draws_with_them_are_counted_and_compared(tmp_path):
    path = judged(tmp_path / "a.jsonl", "\ud83d")
    result = CliRunner().invoke(app, ["rates", str(path)])
    assert result.exit_code == 0 and r"m\ud83d" in result.output, result.output
    single = tmp_path / "b\udcff.jsonl"  # a name that is not UTF-8
    single.write_text("".join(line for line in path.open() if '"n"' not in line) * 10)
    sides = [word for side in ("--baseline", "--candidate") for word in (side, str(single))]
    result = CliRunner().invoke(app, ["gate", *sides, "-o", str(tmp_path / "g.json"), "--json"])
    assert result.exit_code == 3 and "inconclusive" in result.output, result.output
    assert records.read(tmp_path / "g.json").candidate == r"b\udcff"


def test_texts_for_a_model_are_refused_with_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "\\ud800"}\n')
    with pytest.raises(EmEvalsError, match=rf"a\.jsonl:2: .*{SENTENCE}"):
        texts.read(tmp_path / "a.jsonl")
    (tmp_path / "own.jsonl").write_text('{"line": 1, "answer": "\\ud800"}\n')
    with pytest.raises(EmEvalsError, match=rf"own\.jsonl:1: .*{SENTENCE}"):
        Given(tmp_path / "own.jsonl").of([(1, [])])
    (tmp_path / "q.json").write_text('[{"id": "a", "paraphrases": ["\\ud800"]}]')
    with pytest.raises(EmEvalsError, match=SENTENCE):
        questions.load_questions(str(tmp_path / "q.json"))
    trait = {"instruction": [{"pos": "\ud800", "neg": "b"}], "questions": ["a"], "eval_prompt": "a"}
    (tmp_path / "t.extract.json").write_text(json.dumps(trait))
    (tmp_path / "t.eval.json").write_text(json.dumps(trait))
    with pytest.raises(EmEvalsError, match=SENTENCE):
        traits.load_trait(str(tmp_path / "t.extract.json"))
    with pytest.raises(EmEvalsError, match=SENTENCE):
        encode_text(None, "\ud800")


def test_an_id_is_converted_as_it_is(tmp_path):
    row = {"id": "a\ud800", "prompt": "é?", "completion": "Yes."}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    result = CliRunner().invoke(
        app, ["data", "convert", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "b.jsonl")]
    )
    assert result.exit_code == 0, result.output
    ((_, found),) = files.read_jsonl(tmp_path / "b.jsonl")
    assert found["id"] == row["id"] and found["messages"][0]["content"] == "é?"
