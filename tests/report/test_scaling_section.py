"""The report's section on EM rates against size."""

from em_evals.interp import scaling as analysis
from em_evals.report.inputs import Inputs
from em_evals.report.report import build
from em_evals.results import scaling as tables


def test_the_section_shows_each_base_the_slopes_and_what_cannot_be_told():
    sizes = tables.read_bases(tables.published("bases"))
    table = tables.read(tables.published("em_rates"), sizes, source="zroe1")
    report = build(Inputs(studies=[analysis.study(table, sizes, "published rates")]))
    (section,) = report.sections
    assert [figure.name for figure in section.figures] == [
        "scaling-published-rates-parameters",
        "scaling-published-rates-per-token",
    ]
    drawn = section.figures[0].chart.to_dict()
    assert drawn["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"
    assert len(section.figures[0].table.rows) == 8
    assert [row[0] for row in section.tables[0].rows] == ["log P", "log T", "log P/T"]
    assert "cannot tell whether P, T or P/T" in " ".join(section.notes)
