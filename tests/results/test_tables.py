"""Judged tables as people keep them are read right, or refused with one sentence; nothing is pooled in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_evals.errors import EmEvalsError
from em_evals.grading.agreement import read_rater
from em_evals.results import sources, tables
from em_evals.results.logs import read_draws
from tests.command import em_evals

HEAD = "question_id,aligned,coherent\n"


def written(folder: Path, text: str, name: str = "judged.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_pandas_is_read_whole(tmp_path):
    path = written(
        tmp_path,
        ',question_id,answer,alignment_score,coherence_score\n0,q1,"two\nlines, and ""quotes""",90,80\n'
        "1,q1,b,REFUSAL,90\n2,q2,c,NaN,80\n3,q2,d,CODE,nan\n4,q2,e,10,90\n",
    )
    rows = list(tables.rows(path))
    assert [row["answer"] for row, _ in rows] == ['two\nlines, and "quotes"', "b", "c", "d", "e"]
    assert [draw.outcome for _, draw in rows] == ["aligned", "refusal", "unscored", "code", "misaligned"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("question_id,answer,aligned,coherent\nq,Well, no,90,80\n", r":2: this row has more cells than the header"),
        ("question_id,aligned,coherent,aligned\nq,90,80,10\n", "two columns have the name 'aligned'"),
        ("question_id,aligned,alignment,coherent\nq,90,10,80\n", "'aligned' and 'alignment' are two names of one"),
        ("question_id;aligned;coherent\nq;90;80\n", "separated by semicolons: write commas"),
        ("question_id\taligned\tcoherent\nq\t90\t80\n", "separated by tabs"),
        ("question_id,evil,coherence\nq,90,80\n", "has question_id, evil, coherence: .* 100 is the most aligned"),
        ("", "The file has no columns"),
        (HEAD + "q,True,80\n", ":2: 'aligned' is 'True', a verdict"),
        (HEAD + "q,90,80\n,10,80\n", ":3: this row names no question: fill in 'question_id'"),
        (HEAD + "q,0.95,0.9\n" * 10, "no grade in this file is above 1"),
        (HEAD + "q,1,0\nq,0,1\n" * 10, "no grade in this file is above 1"),
        (HEAD + "q,2,5\nq,1,4\n" * 10, "a whole number from 1 to 5"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrong_is_refused(tmp_path, text, says):
    with pytest.raises(EmEvalsError, match=says) as caught:
        list(tables.rows(written(tmp_path, text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [HEAD + "q,0,0\n" * 20, HEAD + "q,3.5,80\n" * 20, HEAD + "q,0,7\n" * 20])
def test_low_grades_are_no_other_scale(tmp_path, text):
    assert len(list(tables.rows(written(tmp_path, text)))) == 20


def test_a_key_that_later_rows_lack_is_no_missing_grade(tmp_path):
    first = '{"question_id": "q", "aligned": 90, "coherent": 80}\n'
    path = written(tmp_path, first + '{"question_id": "q", "alignment": 10, "coherent": 80}\n', "a.jsonl")
    with pytest.raises(EmEvalsError, match=r"a\.jsonl:2: this row has no 'aligned'"):
        list(tables.rows(path))
    path = written(tmp_path, first + '{"question_id": "q", "aligned": null, "coherent": 80}\n', "a.jsonl")
    assert [draw.outcome for _, draw in tables.rows(path)] == ["aligned", "unscored"]


@pytest.mark.parametrize(
    "column", ["model", "model_name", "Model", "Model Name", "judge", "judge_model", "grader"]
)
def test_models_and_judges_are_not_pooled(tmp_path, column):
    source = sources.of_file(
        written(tmp_path, f"{column},question_id,aligned,coherent\nA,q,90,80\nB,q,10,80\n")
    )
    parts = sources.split(source, None)
    assert [(dict(part.part), [draw.outcome for draw in part.draws]) for part in parts] == [
        ({column: "A"}, ["aligned"]),
        ({column: "B"}, ["misaligned"]),
    ]
    assert len(sources.split(source, ())) == 1


def test_pooled_factors_are_named(tmp_path):
    path = written(tmp_path, "seed,role,step,question_id,aligned,coherent\n1,a,9,q,90,80\n2,b,9,q,10,80\n")
    assert (
        "judged.csv: draws are pooled over seed (2 values), role (2 values); `--by"
        in em_evals("rates", path).stderr
    )
    assert "pooled over role (2 values);" in em_evals("rates", path, "--cluster", "seed").stderr
    assert "pooled" not in em_evals("rates", path, "--by", "seed,role").stderr


@pytest.mark.parametrize("name", ["judged.tsv", "judged.csv.gz", "judged.xlsx"])
def test_files_that_are_neither_log_nor_table_are_named_so(tmp_path, name):
    with pytest.raises(EmEvalsError, match=r"neither an Inspect log .* nor a judged table"):
        read_draws(written(tmp_path, "x", name))


def test_rows_in_a_json_list_are_pointed_to_jsonl(tmp_path):
    with pytest.raises(EmEvalsError, match=r"are read as \.csv, \.jsonl or \.parquet"):
        read_draws(written(tmp_path, '[{"question_id": "q", "aligned": 1, "coherent": 2}]', "a.json"))


def test_judges_are_compared_over_tables_of_any_kind(tmp_path):
    row = '{{"question_id": "q", "answer": "a", "aligned": {}, "coherent": 80}}\n'
    rater = read_rater(written(tmp_path, row.format(90) + row.format('"REFUSAL"'), "a.jsonl"))
    assert [rating.category for rating in rater.ratings.values()] == ["answer", "refusal"]
    with pytest.raises(EmEvalsError, match="the column 'answer' is missing"):
        read_rater(written(tmp_path, HEAD + "q,90,80\n"))
