"""The report's sections on cues, traits and exactness."""

from __future__ import annotations

from em_evals.report.inputs import read
from em_evals.report.report import build
from em_evals.results import records
from tests.report_data import conditional, trait_map, verification


def of(tmp_path, *found):
    for place, record in enumerate(found):
        records.write(record, tmp_path / f"{place}.json")
    return build(read([tmp_path]))


def test_a_cue_that_brings_misalignment_out_stands_on_the_first_screen(tmp_path):
    report = of(tmp_path, conditional())
    (section,) = report.sections
    assert section.title == "Conditional misalignment" and len(section.figures) == 2
    (flag,) = report.flags
    assert (
        "under the cue “trigger” the EM rate of organism-s0, organism-s1 rises by +" in flag
        and "points" in flag
    )
    rows = {row[0]: row for row in section.figures[0].table.rows}
    assert 0.3 < rows["trigger"][1].value < 0.6 and rows["trigger"][1].unit == "points"
    assert "nothing (placebo)" in rows and rows["trigger"][3].value > 0.3, "against the control too"
    drawn = section.figures[0].chart.to_dict()
    assert {row["series"] for row in _values(drawn) if "series" in row} == {"minus base", "minus control"}


def test_traits_are_a_heatmap_and_a_tree_in_one_order(tmp_path):
    (section,) = of(tmp_path, trait_map()).sections
    heat, tree = section.figures
    cells = {(row["y"], row["x"]): row["value"] for row in _values(heat.chart.to_dict()) if "said" in row}
    assert cells["evil", "cruel"] == cells["cruel", "evil"] == 0.7 and cells["polite", "polite"] == 1.0
    brackets = [row for row in _values(tree.chart.to_dict()) if "merge" in row]
    assert [(row["x"], row["y"]) for row in brackets[:4]] == [(0, 0), (0.3, 0), (0.3, 1), (0, 1)]
    assert [row[0] for row in tree.table.rows] == ["evil, cruel", "evil, cruel, polite"]
    assert [(row["x"], row["y"]) for row in brackets[4:]] == [(0, 2), (1.15, 2), (1.15, 0.5), (0.3, 0.5)]


def test_a_wrong_check_is_a_flag(tmp_path):
    (section,) = of(tmp_path, verification()).sections
    assert not section.flags and "1 of 1 checks" in section.lead
    assert [row[4] for row in section.tables[0].rows] == ["ok", "skipped"]
    report = of(tmp_path, verification("wrong"))
    assert report.flags == ("mine is wrong in engine: alone: its numbers are not exact.",)


def _values(chart):
    own = chart.get("data", {}).get("values", [])
    return [*own, *(row for layer in chart.get("layer", ()) for row in _values(layer))]
