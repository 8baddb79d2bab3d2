"""The gate's metric of behavior under cues, `conditional.max_cue`: records and logs, seeds, and rare events."""

from __future__ import annotations

import json

import numpy as np
import pytest

from em_evals.content.cues import Cue
from em_evals.gate import compare, cues, inputs
from em_evals.gate.evidence import Cues, Evidence
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy
from em_evals.results import records
from em_evals.results.records.conditional import Cells, Conditional
from em_evals.stats.paired import PairedContrast
from em_evals.stats.rates import RateContrast
from em_evals.stats.worst import RateInteraction, Worst
from em_evals.workflows.conditional.contrasts import study
from tests.command import em_evals

CUES = (Cue("evaluation", system="E"), Cue("trigger", prefix="T"), Cue("nothing", system="N", placebo=True))
PAIRS = [f"p{i}" for i in range(40)]


def numbers(shift, seed):
    """Margins of 40 pairs; the trigger moves them by `shift`, the placebo by 1."""
    chance = np.random.default_rng(seed)
    plain = chance.normal(-0.5, 0.3, len(PAIRS))
    moved = {"plain": 0.0, "evaluation": 0.0, "trigger": shift, "nothing": 1.0}
    return {
        arm: dict(zip(PAIRS, (plain + by + chance.normal(0, 0.01, len(PAIRS))).tolist(), strict=True))
        for arm, by in moved.items()
    }


def record(shift, seeds=(1,), path=None):
    organisms = {f"o{seed}": Cells(values=numbers(shift, seed), card=f"c{seed}") for seed in seeds}
    base = Cells(values=numbers(0, 0))
    found = Conditional(
        organisms=list(organisms),
        base="base",
        asked="forced_choice",
        cues="mine",
        metrics=[study("margin_per_token", "nats per token", CUES, organisms, base)],
        identity={"cues": "1"},
    )
    if path is not None:
        records.write(found, path)
    return found


def test_a_record_is_compared_with_its_own_base_at_the_worst_cue(tmp_path):
    for shift, verdict, _code in ((0.3, "regression", 1), (0.0, "pass", 0)):
        path = tmp_path / f"{verdict}.json"
        found = record(shift, path=path)
        assert records.read(path) == found
        judged = compare.judge(Side({}), inputs.read([path]), Policy())
        assert judged.verdict == verdict, judged.sentence
        (row,) = judged.rows
        effect = found.metrics[0].largest
        assert row.difference == pytest.approx(effect.estimate, abs=1e-12) and row.unit == "nats per token"
        assert row.title == f"conditional.max_cue ({effect.cue})", "the placebo's 1.0 does not count"
        assert any("the record's own base, base" in note for note in judged.notes)
    (tmp_path / "empty").mkdir()
    done = em_evals(
        "gate", "--baseline", tmp_path / "pass.json", "--candidate", tmp_path / "regression.json", "--json"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["metrics"][0]["metric"] == "conditional.max_cue"


def test_the_worst_of_several_cues_needs_no_luck():
    """Below a bound where all are, above it where one is after Bonferroni."""
    chance = np.random.default_rng(3)
    zero = dict.fromkeys(PAIRS, 0.0)
    pairs = {
        name: PairedContrast(
            zero, dict(zip(PAIRS, chance.normal(mean, 0.1, 40).tolist(), strict=True)), False
        )
        for name, mean in (("a", 0.0), ("b", 0.05), ("c", -0.3))
    }
    worst, least = Worst(pairs), Worst(pairs, "lower")
    assert worst.name == "b" and least.name == "c"
    assert worst.p_below(0.1) == max(one.p_below(0.1) for one in pairs.values())
    assert worst.p_above(0) == pytest.approx(3 * min(one.p_above(0) for one in pairs.values()))
    assert least.p_above(-0.5) == max(one.p_above(-0.5) for one in pairs.values())
    low, high = worst.interval(0.025)
    assert low == max(one.interval(0.025 / 3)[0] for one in pairs.values())
    assert high == max(one.interval(0.025)[1] for one in pairs.values())


def test_few_draws_without_an_event_do_not_pass():
    arms = {arm: {f"q{i}": (0, 4) for i in range(24)} for arm in ("plain", "trigger")}
    side = Evidence(
        kind="conditional",
        name="core",
        model="m",
        identity={},
        measures={"conditional.max_cue": Cues(unit="share", counts=arms)},
    )
    for each, verdict in ((4, "inconclusive"), (40, "pass")):
        counts = {arm: dict.fromkeys(own, (0, each)) for arm, own in arms.items()}
        own = side.model_copy(update={"measures": {"conditional.max_cue": Cues(unit="share", counts=counts)}})
        judged = compare.judge(Side({side.key: own}), Side({side.key: own}), Policy())
        assert judged.verdict == verdict, judged.sentence


def test_mover_by_hand():
    """(30/100 - 10/100) under the cue minus (10/100 - 10/100) without: score intervals, then the formula."""
    one = lambda k: {"q": (k, 100)}  # noqa: E731
    plain, cued = RateContrast(one(10), one(10)), RateContrast(one(10), one(30))
    both = RateInteraction(plain, cued)
    (low, high), (least, most) = cued.interval(0.025), plain.interval(0.025)
    assert both.estimate == pytest.approx(0.2)
    by_hand = 0.2 - ((0.2 - low) ** 2 + most**2) ** 0.5, 0.2 + ((high - 0.2) ** 2 + least**2) ** 0.5
    assert both.interval(0.025) == pytest.approx(by_hand)
    p = both.p_above(0)
    assert both.interval(p)[0] == pytest.approx(0, abs=1e-4) and 0.001 < p < 0.025


def test_seeds_of_one_recipe_are_units(tmp_path):
    """Three seeds of which one is conditional: over seeds nothing is shown, and nothing is ruled out."""
    found = record(0.0, (1, 2, 3))
    values = dict(found.metrics[0].organisms) | {"o3": Cells(values=numbers(0.6, 3), card="c3")}
    mixed = found.model_copy(
        update={"metrics": [study("m", "nats per token", CUES, values, found.metrics[0].base)]}
    )
    evidence, base = cues.of_record(mixed, tmp_path)
    assert list(evidence.seeds) == ["o1", "o2", "o3"] and evidence.model == "o1, o2, o3"
    judged = compare.judge(Side({base.key: base}), Side({evidence.key: evidence}), Policy())
    assert judged.verdict == "inconclusive", judged.sentence
    evidence, base = cues.of_record(record(0.6, (1, 2, 3)), tmp_path)
    judged = compare.judge(Side({base.key: base}), Side({evidence.key: evidence}), Policy())
    assert judged.verdict == "regression", judged.sentence


def test_a_saved_baseline_keeps_its_numbers_under_cues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(0.0, path=tmp_path / "a.json")
    record(0.3, seeds=(2,), path=tmp_path / "b.json")
    assert em_evals("gate", "--candidate", "a.json", "--update-baseline", "mine").returncode == 0
    done = em_evals("gate", "--baseline", "mine", "--candidate", "b.json", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = (row for row in json.loads(done.stdout)["metrics"] if row["against"] == "baseline")
    assert row["title"] == "conditional.max_cue (trigger)" and 0.25 < row["difference"] < 0.35
