"""The report's sections on lens, diff mining and forecast, from records."""

import pytest

from em_evals.report.inputs import read
from em_evals.report.report import build
from em_evals.results import records
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim, Null
from em_evals.results.records.diff import Diff, DiffCluster, DiffContext, DiffToken
from em_evals.results.records.forecast import Forecast, ForecastScore, RankedQuestion
from em_evals.results.records.lens import (
    Lens,
    LensCosine,
    LensModel,
    LensNorm,
    LensReading,
    LensSample,
    LensToken,
)


def model(name, role):
    claim = Claim(
        measure="largest |z|",
        value=9.0,
        layer=1,
        nulls=[Null(name="random", draws=99, high=5.0, p=0.01)],
        verdict="specific",
    )
    tokens = [LensToken(token=" money", z=9.0)]
    norms = [
        LensNorm(layer=layer, positions=pool, norm=2.0 + layer, base_norm=10.0, halves=0.9)
        for pool in ("first", "after the first")
        for layer in range(2)
    ]
    reading = LensReading(layer=1, positions="after the first", up=tokens, down=tokens)
    return LensModel(name=name, role=role, norms=norms, readings=[reading], claims=[claim])


def lens():
    return Lens(
        card="mine",
        base="base",
        dtype="float32",
        texts=8,
        positions=3,
        layers=[1],
        models=[model("mine", "organism"), model("theirs", "control")],
        cosines=[LensCosine(one="mine", other="theirs", positions="first", by_layer=[0.5, None])],
        steered_at=1,
        samples=[LensSample(arm="mine", scale=0.5, question="Why?", text="Money.", share=1.0)],
    )


def diff():
    measured = Measured(value=0.5, interval=(0.4, 0.6), n=8)
    token = DiffToken(
        token=" money", gain=0.1, probability=0.2, base_probability=0.1, control_gain=0.05, p=0.01
    )
    context = DiffContext(before="a", next="b", kl=0.5, control_kl=None, realized=-0.1, tokens=[" money"])
    cluster = DiffCluster(tokens=[" money"], contexts=["a"], weight=1.0)
    return Diff(
        card="mine", control=None, base="base", dtype="float32", texts=8, positions=80, kl=measured, control_kl=None,
        realized=measured, up=[token], down=[token], contexts=[context], clusters=[cluster],
    )  # fmt: skip


def forecast():
    ranked = [RankedQuestion(id="q", rank=1, distance=0.1, topic=0.2, tokens=5.0, outcome=0.3)]
    score = ForecastScore(predictor="closeness", value=0.9, interval=(0.7, 0.95), p=0.001, n=24)
    return Forecast(
        base="base", data="training", rows=40, questions="asked", layer=1, position="last_prompt", metric="cosine",
        reliability=0.99, paraphrases=None, ranked=ranked, first=1, measure="EM rate", scores=[score], advantages=[],
    )  # fmt: skip


@pytest.mark.parametrize("record", [lens(), diff(), forecast()], ids=lambda record: record.kind)
def test_a_record_becomes_a_section_with_its_numbers(record, tmp_path):
    path = tmp_path / "record.json"
    records.write(record, path)
    assert records.read(path) == record
    (section,) = build(read([path])).sections
    assert section.name.startswith(record.kind)
    cells = [str(cell) for table in section.tables for row in table.rows for cell in row]
    assert any("money" in cell or "0.900" in cell for cell in cells)
    for figure in section.figures:
        assert figure.chart.to_dict()["layer"]
        assert figure.table.rows[0][:3] == ("mine", 0, "first")
    if record.kind == "lens":
        assert "mine: specific: largest |z| 9 at layer 1" in section.notes[0]
