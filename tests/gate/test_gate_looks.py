"""Looks at a candidate are counted in the gate's record, and each further one is tested at a smaller level."""

import json
from pathlib import Path

import pytest

from em_evals.errors import EmEvalsError
from em_evals.gate import looks, outputs
from em_evals.gate.compare import judge
from em_evals.gate.policy import Policy
from em_evals.results import records
from tests.command import em_evals
from tests.gate.test_gate_compare import freeform, side

BASE = side(freeform(0.01, draws=800))


def judged(candidate, record, policy=None, baseline=BASE):
    """As `em-evals gate -o RECORD` does it."""
    found = judge(baseline, side(candidate), policy or Policy(), looks.read(record))
    outputs.write(found, record)
    return found


def numbers(record):
    return [look.number for look in records.read(record).looks]


def test_more_draws_of_one_candidate_are_a_further_look_at_a_smaller_level(tmp_path):
    record = tmp_path / "gate.json"
    first = judged(freeform(0.01, draws=104), record)
    assert first.rows[0].level == pytest.approx(0.02) and first.looks[-1].draws == (800, 104)
    second = judged(freeform(0.01, draws=208), record)
    assert numbers(record) == [1, 2] and second.rows[0].level == pytest.approx(0.0025)
    (note,) = [note for note in second.notes if "look" in note]
    assert note.startswith("look 2 at this candidate: tests are at one-sided 0.0025; with this look 0.0225")
    for draws in range(312, 1248, 104):
        judged(freeform(0.01, draws=draws), record)
    assert numbers(record) == list(range(1, 12))


def test_the_same_numbers_again_are_the_same_look(tmp_path):
    record = tmp_path / "gate.json"
    first = judged(freeform(0.01, draws=104), record)
    judged(freeform(0.01, draws=208), record)
    again = judged(freeform(0.01, draws=104), record)
    assert again.rows == first.rows and sorted(numbers(record)) == [1, 2]


def test_another_candidate_starts_over_and_the_first_ones_looks_stay(tmp_path):
    record = tmp_path / "gate.json"
    judged(freeform(0.01, draws=104), record)
    other = freeform(0.01, draws=208).model_copy(update={"model": "local/other", "card_digest": "0123"})
    assert judged(other, record).looks[-1].number == 1
    renamed = freeform(0.01, draws=312).model_copy(update={"model": "local/renamed", "card_digest": "0123"})
    assert judged(renamed, record).looks[-1].number == 2, "the digest says who it is"
    assert judged(freeform(0.01, draws=416), record).looks[-1].number == 2


def test_more_draws_of_the_baseline_are_a_look_too(tmp_path):
    record = tmp_path / "gate.json"
    judged(freeform(0.01, draws=104), record)
    found = judged(freeform(0.01, draws=104), record, baseline=side(freeform(0.01, draws=1600)))
    assert found.looks[-1].number == 2


def test_looks_beyond_the_plan_decide_nothing(tmp_path):
    record, policy = tmp_path / "gate.json", Policy(looks=2)
    assert judged(freeform(0.01, draws=104), record, policy).rows[0].level == 0.0125
    assert judged(freeform(0.01, draws=800), record, policy).verdict == "pass"
    third = judged(freeform(0.01, draws=1600), record, policy)
    assert (
        third.verdict == "invalid"
        and "this is look 3 at the candidate and the policy plans 2" in third.sentence
    )


def test_one_planned_look_is_tested_at_the_whole_alpha():
    assert judge(BASE, side(freeform(0.01)), Policy(looks=1)).rows[0].level == 0.025


def test_what_is_no_record_is_not_overwritten(tmp_path):
    (tmp_path / "gate.json").write_text("{}")
    with pytest.raises(EmEvalsError, match="looks at the candidate cannot be counted"):
        looks.read(tmp_path / "gate.json")


def test_csvs_of_a_growing_candidate_are_looks_on_the_command_line(workdir):
    def write(name, draws):
        rows = [
            "question_id,aligned,coherent",
            *(f"q{i % 8},{5 if i % 100 == 0 else 95},95" for i in range(draws)),
        ]
        Path(name).write_text("\n".join(rows) + "\n", encoding="utf-8")
        return name

    base = write("base.csv", 800)
    for draws in (160, 320, 480):
        candidate = write(f"new-{draws}.csv", draws)
        em_evals("gate", "--baseline", base, "--candidate", candidate, "-o", "out/gate.json")
    told = json.loads(Path("out/gate.json").read_text())
    assert [look["number"] for look in told["looks"]] == [1, 2, 3]
    assert told["metrics"][0]["level"] == pytest.approx(0.025 * 0.2 / 6)
