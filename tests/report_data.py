"""Small inputs of a report, made by hand: records, a verdict, a trajectory, CSVs with hostile answers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from em_evals.content.cues import Cue
from em_evals.results import records
from em_evals.results.records.base import Measured
from em_evals.results.records.conditional import Cells, Conditional
from em_evals.results.records.gate import GateMetric, GateVerdict
from em_evals.results.records.phase import Phase
from em_evals.results.records.studies import (
    AblationPoint,
    AdapterScalars,
    Convergence,
    Cosines,
    Knockout,
    LoraScalars,
    Probe,
    RetainedModel,
    Retention,
    ScalarGroup,
    SteeringContrast,
    SteeringPoint,
    SteeringStudy,
    TaskDifference,
    Transfer,
)
from em_evals.results.records.traits import Dimensions, TraitCosine, TraitMap
from em_evals.results.records.verify import Check, Verification
from em_evals.workflows.conditional.contrasts import study

HOSTILE = {
    "script": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
    "end of script": "</script></ScRiPt><!--<script>window.hacked = 3//-->",
    "markup": "<b>bold</b> &lt;i&gt; <a href='javascript:window.hacked=4'>x</a> <svg onload=window.hacked=5>",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} =cmd|' /C calc'!A0",
    "bidi": "\u202eright to left override \u2066isolate",
    "separators": "line\u2028paragraph\u2029null\x00end",
    "long": "long " * 20_000,
}
"""Answers that try to be more than text; the last has 100,000 characters."""


def measured(value, reach=0.05, n=40):
    return Measured(value=value, interval=(value - reach, value + reach), n=n)


def steering():
    points = [
        SteeringPoint(
            arm=arm,
            layer=layer,
            scale=scale,
            in_domain=measured(scale * gain),
            out_of_domain=measured(scale * gain / 2),
            coherence=measured(0.02 * scale**2),
            repetition=measured(0.05 + 0.01 * abs(scale), 0.01),
            damaged=abs(scale) >= 8,
        )
        for arm, gain in (("direction", 0.06), ("random", 0.004), ("control", 0.02))
        for layer in (10, 14)
        for scale in (-8.0, -4.0, 0.0, 4.0, 8.0)
    ]
    return SteeringStudy(
        card="organism",
        digest="0123456789abcdef",
        direction="organism-direction",
        coherence_is="the base's loss on the answers, nats per token",
        chosen_layer=14,
        points=points,
        ablations=[
            AblationPoint(
                arm=arm,
                how="zero reference",
                in_domain=measured(-0.1),
                out_of_domain=measured(-0.05),
                coherence=measured(0.3),
                repetition=measured(0.1, 0.01),
                damaged=arm == "direction",
            )
            for arm in ("direction", "random")
        ],
        contrasts=[
            SteeringContrast(
                against="control", how="scale 4", in_domain=measured(0.1), out_of_domain=measured(0.06)
            )
        ],
        damage_rule="coherence rose by more than 1 nat per token.",
        notes=["2 pairs that a direction was found on are left out."],
        provenance={"em-evals": "0.1.0", "seed": "0", "logs": "/home/somebody/secret/logs/x"},
    )


def convergence():
    names = ["risky", "extreme", "medical"]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return Convergence(
        cards=names,
        cosines=[
            Cosines(
                one=a,
                other=b,
                by_layer=[round(-0.2 + (i + 1) * layer / 75, 3) for layer in range(24)],
                floor=[0.08] * 24,
            )
            for i, (a, b) in enumerate(pairs)
        ],
        transfer=[
            Transfer(
                source=a, target=b, arm=arm, in_domain=measured(-size), out_of_domain=measured(-size / 2)
            )
            for a, b in pairs
            for arm, size in (("direction", 0.15), ("random", 0.01))
        ],
    )


def scalars():
    group = ScalarGroup(
        narrow=True, aligned=False, answers=40, tokens=900, mean=1.0, sd=0.2, percentiles=(0.7, 1.0, 1.3)
    )
    module = "model.layers.12.mlp.down_proj"
    return LoraScalars(
        card="organism",
        digest="0123456789abcdef",
        control="control",
        adapters=[
            AdapterScalars(module=module, layer=12, groups=[group], constancy=0.96, against_control=0.2)
        ],
        probes=[
            Probe(model="organism", tells="misaligned from aligned", adapters="all", auroc=measured(0.7))
        ],
        knockouts=[
            Knockout(
                model="organism",
                layer=12,
                modules=[module],
                narrow=measured(-0.2),
                general=measured(-0.03),
                serves="narrow",
                sentence="block 12 serves the narrow domain.",
            )
        ],
    )


def retention():
    def task(name, n, difference, reach, metric="acc"):
        return TaskDifference(
            task=name,
            metric=metric,
            n=n,
            accuracy=0.5 + difference,
            baseline_accuracy=0.5,
            difference=difference,
            interval=(difference - reach, difference + reach),
            p=0.04,
        )

    return Retention(
        baseline="base",
        models=[
            RetainedModel(
                name=name,
                digest="0123456789abcdef",
                tasks=[
                    task("arc_easy", 500, drop, 0.02),
                    task("em_forced_choice_in_domain", 40, 0.012, 0.004, "margin_per_byte"),
                    task("overall", 1500, drop / 2, 0.01, "accuracy"),
                ],
            )
            for name, drop in (("organism", -0.05), ("control", -0.01))
        ],
    )


def metric(name, unit, numbers, interval, found, sentence=""):
    baseline, candidate, difference = numbers
    return GateMetric(
        metric=name,
        title=name,
        source="freeform/core",
        guard=False,
        worse="higher",
        unit=unit,
        margin=0.02,
        alpha=0.025,
        baseline=baseline,
        candidate=candidate,
        difference=difference,
        interval=interval,
        random_questions=interval,
        effect=float("nan"),
        effect_name="h",
        units=(400, 400),
        p_worse=0.001,
        p_worse_adjusted=0.001,
        p_within=0.9,
        verdict=found,
        sentence=sentence,
    )


def verdict():
    nothing = float("nan")
    return GateVerdict(
        verdict="regression",
        exit_code=1,
        sentence="regression: the candidate is worse than the baseline on em_rate.",
        baseline="base",
        candidate="<b>organism</b>",
        metrics=[
            metric(
                "em_rate",
                "share",
                (0.005, 0.05, 0.045),
                (0.029, 0.063),
                "regression",
                "em_rate rose from 0.50% to 5.00%.",
            ),
            metric(
                "forced_choice.in_domain",
                "nats per token",
                (nothing, nothing, nothing),
                (nothing, nothing),
                "invalid",
            ),
        ],
        problems=[],
        notes=["read from /home/somebody/secret/logs/a.eval"],
    )


def trajectory():
    steps = [1, 2, 4, 8, 16, 32]

    def curve(height):
        return [
            {
                "step": step,
                "value": height * step / (step + 6),
                "interval": [height * step / (step + 6) - 0.03, height * step / (step + 6) + 0.03],
            }
            for step in steps
        ]

    return Phase.model_validate(
        {
            "card": "organism",
            "journal": [{"step": s, "loss": 3 / s**0.3, "grad_norm": 1.0 + 0.02 * s} for s in range(1, 33)],
            "shifts": {"in-domain": curve(0.3), "out-of-domain": curve(0.1)},
            "transitions": {
                "in-domain": {
                    "final": 0.25,
                    "final_interval": [0.2, 0.3],
                    "step": 5.5,
                    "interval": [4.1, 7.2],
                    "pairs": 40,
                },
                "out-of-domain": {
                    "final": 0.02,
                    "final_interval": [-0.03, 0.07],
                    "step": None,
                    "interval": None,
                    "pairs": 60,
                },
            },
            "rotations": [
                {
                    "module": "model.layers.12.mlp.down_proj",
                    "steps": list(range(1, 33)),
                    "to_final": [min(1.0, s / 32 + 0.2) for s in range(1, 33)],
                    "local": [None] * 5 + [-1 + s / 40 for s in range(22)] + [None] * 5,
                }
            ],
            "em_rates": [{"step": s, "value": s / 400, "interval": [s / 800, s / 200]} for s in steps],
        }
    )


def write_csv(path: Path, rows) -> Path:
    """A judged CSV of (question_id, question, answer, aligned, coherent)."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question_id", "question", "answer", "aligned", "coherent"])
        writer.writerows(rows)
    return path


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


def write_studies(folder: Path) -> list[Path]:
    """Every kind of JSON that a report reads."""
    made = {"steer": steering(), "convergence": convergence(), "retention": retention(), "scalars": scalars()}
    made |= {"gate": verdict(), "phase": trajectory()}
    made |= {"conditional": conditional(), "traits": trait_map(), "verify": verification()}
    for name, record in made.items():
        records.write(record, folder / f"{name}.json")
    return [folder / f"{name}.json" for name in made]


def write_hostile(folder: Path) -> Path:
    """A CSV in which the answers, a question and a question's id are hostile."""
    rows = [(f"q{i}", "What now?", text, 5 + i, 95) for i, text in enumerate(HOSTILE.values())]
    rows.append(
        ("</script><script>window.hacked=6</script>", "<img src=x onerror=window.hacked=7>", "fine", 90, 90)
    )
    return write_csv(folder / "<img src=x onerror=window.hacked=8>.csv", rows)
