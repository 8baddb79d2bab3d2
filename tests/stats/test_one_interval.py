"""The same items give the same interval in the gate, in retention, in the report and in studies."""

import json

import numpy as np
import pytest

from em_evals.gate import compare, evidence, inputs, rows
from em_evals.gate.policy import Policy
from em_evals.interp import effects
from em_evals.report import choice
from em_evals.report import inputs as report_inputs
from em_evals.report.answers import Measured, ScoredPair
from em_evals.report.looks import Looks
from em_evals.report.report import build
from em_evals.results import records
from em_evals.retention import scores
from em_evals.retention.compare import compare as retained
from em_evals.stats import paired
from tests.lm_eval_files import OLD, write_results

RIGHT = [i % 10 < 7 for i in range(80)]
WORSE = [(i % 10 < 7 and i not in (3, 12, 44)) or i == 8 for i in range(80)]
RNG = np.random.default_rng(0)
BEFORE = {f"p{i}": float(value) for i, value in enumerate(RNG.normal(size=30))}
AFTER = {
    pair: value + shift
    for (pair, value), shift in zip(BEFORE.items(), RNG.normal(0.2, 0.3, size=30), strict=True)
}


@pytest.fixture
def files(tmp_path):
    return [write_results(tmp_path / name, "mini", right) for name, right in (("a", RIGHT), ("b", WORSE))]


def by_gate(files):
    before, after = ([one] for one in files)
    [row] = compare.judge(inputs.read(before), inputs.read(after), Policy()).rows
    return row.difference, row.interval


def by_retention(files):
    before, after = map(scores.read, files)
    [row] = retained(before, [after]).models[0].tasks
    return row.difference, row.interval


def by_report_of_retention(files, folder):
    before, after = map(scores.read, files)
    records.write(retained(before, [after]), folder / "retention.json")
    [section] = build(report_inputs.read([folder / "retention.json"])).sections
    [row] = section.figures[0].table.rows
    return row[5].value, row[5].interval


def by_report_of_pairs():
    first, second = (
        Measured(
            name,
            name,
            "forced_choice",
            "core",
            {},
            pairs={p: ScoredPair("money", True, v) for p, v in own.items()},
        )
        for name, own in (("base", BEFORE), ("organism", AFTER))
    )
    [section] = choice.sections([first, second], Looks.of(["base", "organism"]))
    [row] = section.figures[1].table.rows
    return row[3].value, row[3].interval


def test_the_same_lm_eval_items_give_the_same_interval_in_gate_retention_and_report(files, tmp_path):
    found = paired.difference(dict(enumerate(RIGHT)), dict(enumerate(WORSE)))
    expected = found.value, found.interval
    assert found.value == pytest.approx(-2 / 80) and found.interval[0] < found.value < found.interval[1]
    assert by_gate(files) == by_retention(files) == by_report_of_retention(files, tmp_path) == expected


def test_samples_of_lm_eval_before_0_4_6_are_paired_by_gate_and_retention(files, tmp_path):
    """They name neither their filter nor their metrics."""
    old = [
        write_results(tmp_path / "old" / name, "mini", right, without=OLD)
        for name, right in (("a", RIGHT), ("b", WORSE))
    ]
    assert by_gate(old) == by_retention(old) == by_gate(files)


def test_the_same_pairs_give_the_same_interval_in_gate_report_and_studies():
    measure = {"before": BEFORE, "after": AFTER}
    items = [evidence.Items(unit="nats per token", values=own) for own in measure.values()]
    contrast = rows.contrast(*items)
    study = effects.change(BEFORE, AFTER, list(BEFORE))
    assert (
        (contrast.estimate, contrast.interval(0.025)) == by_report_of_pairs() == (study.value, study.interval)
    )


def test_without_the_one_function_gate_retention_and_report_all_fail(files, monkeypatch):
    def removed(self, alpha):
        raise NotImplementedError("removed")

    monkeypatch.setattr(paired.PairedContrast, "interval", removed)
    for printed in (lambda: by_gate(files), lambda: by_retention(files), by_report_of_pairs):
        with pytest.raises(NotImplementedError, match="removed"):
            printed()


def test_the_interval_of_right_or_wrong_items_holds_what_it_promises():
    """Over many draws of 80 items, the true difference lies inside in about 95 of 100."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        both, lost, gained = 0.5, 0.15, 0.05
        kind = rng.choice(4, size=80, p=[both, lost, gained, 1 - both - lost - gained])
        before, after = (dict(enumerate(np.isin(kind, of).astype(float))) for of in ([0, 1], [0, 2]))
        low, high = paired.difference(before, after).interval
        inside += low <= gained - lost <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_numbers_that_happen_to_be_all_zero_are_not_taken_for_wrong_answers():
    """No answer repeats itself under either condition: that is no change, not 20 wrong items."""
    zeros = dict.fromkeys(map(str, range(20)), 0.0)
    assert effects.change(zeros, zeros, list(zeros)).interval == (0, 0)
    assert paired.difference(zeros, zeros).interval[1] > 0.1


def test_a_single_item_has_a_difference_and_no_interval(tmp_path):
    one, other = (
        scores.read(write_results(tmp_path / name, "mini", [right, right]))
        for name, right in (("a", True), ("b", False))
    )
    for model in (one, other):
        model.tasks["mini"].scores.pop(next(iter(model.tasks["mini"].scores)))
    record = retained(one, [other])
    [row] = record.models[0].tasks
    assert (row.difference, row.interval, row.p) == (-1, (None, None), None)
    assert json.loads(record.model_dump_json())["models"][0]["tasks"][0]["p"] is None
