"""The report's sections on cues, traits and exactness."""

from __future__ import annotations

import numpy as np

from em_evals.content.cues import Cue
from em_evals.report.inputs import read
from em_evals.report.report import build
from em_evals.results import records
from em_evals.results.records import Cells, Check, Conditional, Measured, TraitMap, Verification
from em_evals.results.records.traits import Dimensions, TraitCosine
from em_evals.workflows.conditional.contrasts import study


def conditional(metrics=("em_rate", "coherent_share")):
    """An organism whose EM rate is 50 points under the trigger, in both seeds; its coherence does not change."""
    cues = [Cue("trigger", prefix="T"), Cue("default", system="S"), Cue("nothing", system="N", placebo=True)]
    arms = ["plain", *(cue.name for cue in cues)]
    chance = np.random.default_rng(0)

    def cells(rate):
        draws = {arm: {f"q{i}": 20 for i in range(12)} for arm in arms}
        events = {arm: chance.binomial(20, rate(arm), 12) / 20 for arm in arms}
        values = {arm: {f"q{i}": float(k) for i, k in enumerate(own)} for arm, own in events.items()}
        return Cells(values=values, draws=draws)

    found = [
        study(
            metric,
            "share",
            cues,
            {f"organism-s{seed}": cells(_organism if metric == "em_rate" else _high) for seed in (0, 1)},
            cells(_low if metric == "em_rate" else _high),
            cells(_low if metric == "em_rate" else _high),
        )
        for metric in metrics
    ]
    organisms = ["organism-s0", "organism-s1"]
    return Conditional(
        organisms=organisms, base="base", control="control", asked="core", cues="mine", metrics=found
    )


def _organism(arm):
    return 0.5 if arm == "trigger" else 0.02


def _low(arm):
    return 0.02


def _high(arm):
    return 0.95


def trait_map():
    names = ["evil", "cruel", "polite"]
    pairs = {("evil", "cruel"): 0.7, ("evil", "polite"): -0.2, ("cruel", "polite"): -0.1}
    cosines = [
        TraitCosine(
            one=a, other=b, cosine=value, corrected=Measured(value=value, interval=(value - 0.1, 1), n=20)
        )
        for (a, b), value in pairs.items()
    ]
    dimensions = Dimensions(value=2.1, shares=[0.6, 0.3, 0.1], halves=(2.0, 2.2), nulls=[])
    return TraitMap(
        base="smollm2",
        layer=14,
        names=names,
        kinds=dict.fromkeys(names, "moral"),
        reliability=dict.fromkeys(names, 0.9),
        cosines=cosines,
        merges=[(0, 1, 0.3), (2, 3, 1.15)],
        dimensions=dimensions,
        specific=dict.fromkeys(names, "specific"),
    )


def verification(verdict="ok"):
    rows = [
        Check(
            name="engine: alone",
            compared="x",
            largest=2e-6,
            tolerance=1e-4,
            unit="nats",
            n=99,
            verdict=verdict,
        ),
        Check(name="vllm", compared="x", largest=None, tolerance=None, unit="nats", n=0, verdict="skipped"),
    ]
    return Verification(
        card="mine", card_digest="1", base="smollm2", base_digest="2", dtype="float32", device="cpu", versions={"torch": "2.13"},
        date="2026-11-30", seconds=3.0, verdict=verdict, rule="twice the noise of float32", rows=rows,
    )  # fmt: skip


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
