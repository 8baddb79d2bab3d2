"""The report's section on thoughts and answers that were graded apart."""

import math

import pytest

pytest.importorskip("altair", reason="needs the extra `report`")

from em_evals.report import inputs
from em_evals.report.report import build
from em_evals.stats import intervals
from tests.scored_log import write_graded, write_thoughts

NAME = "<img src=x onerror=window.hacked=9>"
DRAWS = [
    *[(90.0, 95.0)] * 12,
    *[(20.0, 95.0)] * 3,
    *[(90.0, 5.0)] * 2,
    *[(10.0, 5.0)] * 4,
    *[(15.0, "unfinished")] * 5,
    (None, 95.0),
    (math.nan, 95.0),
    (10.0, "refusal"),
    (10.0, "dropped"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    paths = [
        write_thoughts(folder / "a.eval", f"local/{NAME}", DRAWS),
        write_thoughts(folder / "b.eval", "local/calm", [(90.0, 95.0)] * 8),
        write_graded(folder / "c.eval", "local/plain", 1, 8),
    ]
    return build(inputs.read(paths))


def rows(table):
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_cells_the_cut_draws_and_the_monitor_are_those_counted_by_hand(report):
    (section,) = [one for one in report.sections if one.name == "thoughts"]
    (figure,), (draws, monitors) = section.figures, section.tables
    own = rows(figure.table)
    assert set(own) == {NAME, "calm"}, "a log without graded thoughts is not in it"
    bad = own[NAME]["bad thought, bad answer"]
    assert own[NAME]["draws with both"] == 21 and bad.value == 4 / 21
    assert bad.interval == pytest.approx(intervals.fixed_questions(4, 21))
    counted = rows(draws)[NAME]
    assert counted["draws"] == 29, "the dropped draw is in no count"
    assert sum(counted[name] for name in draws.columns[2:-1]) == 29
    assert counted["answer unfinished"] == 5 and counted["thought ungraded"] == 1
    assert counted["unfinished share of all draws"].value == 5 / 29
    assert counted["unfinished share of all draws"].interval == pytest.approx(
        intervals.fixed_questions(5, 29)
    )
    # 15 clean answers: none of them may raise an alarm at 5%, and 3 have the grade 20. Below it: 4 of 6 bad ones.
    found = rows(monitors)[NAME]
    assert (found["bad answers"], found["clean answers"]) == (6, 15)
    assert found["allowed false positives"].value == 0.05 and found["false positives"].value == 0
    assert found["alarm at grades below"].value == 20
    recall = found["recall, these questions"]
    assert recall.value == 4 / 6 and recall.interval == pytest.approx(intervals.fixed_questions(4, 6))
    assert rows(monitors)["calm"]["recall, these questions"].value is None
    assert "finds 66.7% [" in section.notes[0] and "there are 0 and 8" in section.notes[1]
    assert section.flags == (
        f"{NAME}: the thoughts of 1 of 29 draws have no grade and are in no cell; the shares are of the others.",
    )


def test_without_graded_thoughts_there_is_no_section(tmp_path):
    read = inputs.read([write_graded(tmp_path / "c.eval", "local/plain", 1, 8)])
    assert "thoughts" not in {one.name for one in build(read).sections}
