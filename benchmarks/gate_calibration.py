"""Does the whole gate err as rarely as it says, and does it find what it should? On real judged answers, by simulation.

The population is qwen25_coder_7b_base.csv (2,400 answers of a 7B base to the 24 first-plot variants, graded by a real
judge; EM_EVALS_DATA names the folder), and copies of it with planted EM and refusals. Each repetition draws both
models' answers anew, question by question, at one look or at eleven, and asks the whole gate for its verdict: every
metric, guards, Holm, spending. A false pass and a false regression count if any look shows them.

    EM_EVALS_DATA=… python benchmarks/gate_calibration.py [--repetitions 1000] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import runs
from scipy import stats

from em_evals.gate.compare import judge
from em_evals.gate.evidence import Counts, Evidence, Items
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy
from em_evals.results.em_rates import SHARES
from em_evals.results.logs import read_draws

RESULT = Path(__file__).parent / "results" / "gate_calibration.json"
PARTS = RESULT.with_suffix(".partial.jsonl")
"""Finished scenarios of a run that was interrupted: the next one with --save goes on from them."""
METRICS = ("em_rate", "em_rate_coherent", "coherent_share")
POLICY = Policy()
MARGIN = POLICY.metrics["em_rate"].margin
KINDS = ("misaligned", "coherent", "incoherent", "refused")
RARE, SEVERE = 0.05, 0.4
"""Harm in few kinds of questions: 40 points in 5% of them are 2 points, the margin."""


@dataclass(frozen=True)
class Population:
    """Each question's chances of the four kinds of draws: shape [questions, 4]."""

    chances: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Population:
        """Return the judged answers as they are."""
        groups: dict[str, list[int]] = {}
        for draw in read_draws(path):
            if SHARES["refusal_share"].counts(draw):
                kind = 3
            else:
                kind = 0 if draw.misaligned_coherent else 1 if draw.coherent else 2
            groups.setdefault(draw.question_id, [0] * 4)[kind] += 1
        counts = np.array(list(groups.values()), dtype=float)
        return cls(counts / counts.sum(axis=1, keepdims=True))

    def planted(self, rate: float, questions: int | None = None) -> Population:
        """Return a copy with this EM rate, each question's in proportion, or all in the first so many questions."""
        coherent = self.chances[:, 0] + self.chances[:, 1]
        share = np.ones(len(coherent))
        if questions is not None:
            share[np.argsort(-coherent)[questions:]] = 0
        misaligned = coherent * share * (rate * len(coherent) / (coherent * share).sum())
        return Population(np.stack([misaligned, coherent - misaligned, *self.chances[:, 2:].T], axis=1))

    def worse(self, points: float, questions: int | None = None) -> Population:
        """Return a copy whose EM rate is higher by exactly this much, everywhere or in the first so many questions."""
        own = float(self.chances[:, 0].mean())
        if questions is None:
            return self.planted(own + points)
        return Population(
            self.chances + self.planted(points, questions).chances[:, :1] * np.array([[1.0, -1.0, 0.0, 0.0]])
        )

    def refusing(self, share: float) -> Population:
        """Return a copy that refuses this share of what it would answer."""
        kept = self.chances * (1 - share)
        kept[:, 3] += share
        return Population(kept)

    def first(self, questions: int) -> Population:
        """Only the first questions."""
        return Population(self.chances[:questions])

    def truth(self) -> dict[str, float]:
        """Return the rates, questions weighing the same."""
        em, coherent = self.chances[:, 0].mean(), (self.chances[:, 0] + self.chances[:, 1]).mean()
        whole = coherent + self.chances[:, 3].mean()  # a refusal is coherent, and no answer
        return {
            "em_rate": float(em),
            "em_rate_coherent": float(em / coherent),
            "coherent_share": float(whole),
        }


@dataclass(frozen=True)
class Scenario:
    """Two populations, and what is measured.

    Attributes:
        draws: draws of each model at the last look.
        looks: number of looks, at equal steps of draws.
        questions: questions drawn with replacement in `scope: population`; None: the population's own, fixed.
        rare: each drawn question is of a harmed kind with this chance, where the candidate is worse by `SEVERE`.
        metrics: 5 of one log, or 13 of three logs.
        pairs: pairs whose mean harm is the margin, in 5% of them; the log of answers is then left out.
    """

    name: str
    before: Population
    after: Population
    draws: int = 800
    looks: int = 1
    questions: int | None = None
    rare: float = 0.0
    metrics: int = 5
    pairs: int | None = None

    @property
    def policy(self) -> Policy:
        """The default policy in the scenario's scope; harm in few pairs is judged about their population too."""
        return POLICY.model_copy(update={"scope": "questions" if self.questions is None else "population"})


def scenarios(base: Population) -> list[Scenario]:
    """Return what is asked of the gate; a name says what is true, `same` that nothing is worse."""
    plain, low, high = base.first(8), base.planted(0.005), base.planted(0.05)
    refusing = base.refusing(0.1)
    one = [
        Scenario("same, 24 questions", base, base),
        Scenario("same, the 8 plain questions", plain, plain),
        Scenario("same, 120 draws", base, base, 120),
        Scenario("same, 13 metrics", base, base, metrics=13),
        Scenario("same, a tenth refused", refusing, refusing),
        Scenario("same, rate 0.1%, all in one question", base.planted(0.001, 1), base.planted(0.001, 1)),
        Scenario("0.5% to 5%", low, high),
        Scenario("0.5% to 5%, 13 metrics", low, high, metrics=13),
        Scenario("0.5% to 5%, all in three questions", base.planted(0.005, 3), base.planted(0.05, 3)),
        Scenario("at the margin", base, base.worse(MARGIN)),
        Scenario("at the margin, 13 metrics", base, base.worse(MARGIN), metrics=13),
        Scenario("at the margin, a tenth refused", refusing, refusing.worse(MARGIN)),
        Scenario("at the margin, all in one of 24 questions", base, base.worse(MARGIN, 1)),
        Scenario("at the margin, in 5% of 100 pairs", base, base, pairs=100),
    ]
    many = {"draws": 2400, "questions": 240}
    population = [
        Scenario("same, population, 24 questions", base, base, questions=24),
        Scenario("same, population, 240 questions", base, base, **many),
        Scenario("same, population, 240 questions, 13 metrics", base, base, metrics=13, **many),
        Scenario("0.5% to 5%, population, 24 questions", low, high, questions=24),
        Scenario("at the margin, population, 240 questions", base, base.worse(MARGIN), **many),
        Scenario("at the margin, population, in 5% of kinds, 24 asked", base, base, questions=24, rare=RARE),
        Scenario("at the margin, population, in 5% of kinds, 240 asked", base, base, rare=RARE, **many),
        Scenario("at the margin, population, in 5% of 100 pairs", base, base, pairs=100, questions=24),
    ]
    repeated = [
        replace(one, name=f"{one.name}, 11 looks", looks=11, draws=max(one.draws, 1100))
        for one in [*one, *population]
        if one.name
        in (
            "same, 24 questions",
            "same, 13 metrics",
            "at the margin",
            "at the margin, a tenth refused",
            "at the margin, population, 240 questions",
            "at the margin, population, in 5% of kinds, 240 asked",
        )
    ]
    return [*one, *population, *repeated]


def simulate(scenario: Scenario, repetitions: int, seed: int = 0) -> dict[str, object]:
    """Shares of verdicts with 95% limits (Clopper and Pearson), and coverage of the first look's intervals.

    `verdicts` are those of the last look; `ever` counts repetitions in which any look passed, called a regression, or
    passed the metric that is at the margin.
    """
    chance = np.random.default_rng([seed, *scenario.name.encode()])
    truth = {name: scenario.after.truth()[name] - scenario.before.truth()[name] for name in METRICS}
    if scenario.rare:
        truth = dict.fromkeys(truth, np.nan)
    verdicts = dict.fromkeys(("pass", "regression", "inconclusive", "invalid"), 0)
    ever = dict.fromkeys(("pass", "regression", "metric passes"), 0)
    covered = dict.fromkeys(METRICS, 0)
    harmed = "em_rate" if scenario.pairs is None else "forced_choice.in_domain"
    for _ in range(repetitions):
        found, seen = set(), ()
        for number, sides in enumerate(_looks(scenario, chance)):
            judgement = judge(*sides, scenario.policy, seen)
            seen = judgement.looks
            found |= {judgement.verdict}
            rows = {row.metric: row for row in judgement.rows}
            found |= {"metric passes"} if rows[harmed].verdict == "pass" else set()
            if number == 0 and scenario.pairs is None:
                for name in METRICS:
                    low, high = rows[name].interval
                    covered[name] += int(low <= truth[name] <= high)
        verdicts[judgement.verdict] += 1
        for name in ever:
            ever[name] += name in found
    return {
        "scenario": scenario.name,
        "draws": scenario.draws,
        "looks": scenario.looks,
        "scope": scenario.policy.scope,
        "metrics": len(rows),
        "repetitions": repetitions,
        "verdicts": {name: _share(events, repetitions) for name, events in verdicts.items()},
        "ever": {name: _share(events, repetitions) for name, events in ever.items()},
        "coverage": {name: events / repetitions for name, events in covered.items()}
        if scenario.pairs is None and not scenario.rare
        else {},
    }


def _looks(scenario: Scenario, chance: np.random.Generator) -> list[tuple[Side, Side]]:
    """Both sides at every look; draws accumulate."""
    if scenario.pairs is not None:
        return [_pairs(scenario.pairs, chance, RARE)]
    count = len(scenario.before.chances)
    chosen = (
        np.arange(count) if scenario.questions is None else chance.integers(count, size=scenario.questions)
    )
    chances = [scenario.before.chances[chosen], scenario.after.chances[chosen]]
    if scenario.rare:
        moved = np.minimum((chance.random(len(chosen)) < scenario.rare) * SEVERE, chances[1][:, 1])
        chances[1] = chances[1] + moved[:, None] * np.array([[1.0, -1.0, 0.0, 0.0]])
    logs = ["freeform"] if scenario.metrics == 5 else ["freeform", "narrow"]
    totals = {(log, side): np.zeros((len(chosen), 4), dtype=int) for log in logs for side in (0, 1)}
    pairs = _pairs(100, chance, 0.0) if scenario.metrics > 5 else None
    looks = []
    for look in range(scenario.looks):
        numbers = _step(scenario.draws, scenario.looks, look, len(chosen))
        sides = []
        for side in (0, 1):
            evidence = {} if pairs is None else dict(pairs[side].evidence)
            for log in logs:
                totals[log, side] = totals[log, side] + chance.multinomial(numbers, chances[side])
                own = _answers(log, totals[log, side])
                evidence[own.key] = own
            sides.append(Side(evidence))
        looks.append((sides[0], sides[1]))
    return looks


def _step(draws: int, looks: int, look: int, questions: int) -> np.ndarray:
    """Draws of each question that a look adds, as even as whole numbers allow."""
    upto = [draws * done // looks for done in (look, look + 1)]
    return np.diff(
        [[(total + question) // questions for question in range(questions)] for total in upto], axis=0
    )[0]


def _answers(log: str, counts: np.ndarray) -> Evidence:
    """One model's counted draws, as the gate reads them from a log."""
    prefix = "" if log == "freeform" else "narrow."
    columns = {
        "em_rate": (counts[:, 0], counts.sum(axis=1)),
        "em_rate_coherent": (counts[:, 0], counts[:, 0] + counts[:, 1]),
        "coherent_share": (counts[:, [0, 1, 3]].sum(axis=1), counts.sum(axis=1)),
        "refusal_share": (counts[:, 3], counts.sum(axis=1)),
        "ungraded_share": (0 * counts[:, 0], counts.sum(axis=1)),
    }
    measures = {
        f"{prefix}{name}": Counts(
            clusters={str(q): (int(k), int(n)) for q, (k, n) in enumerate(zip(*both, strict=True))}
        )
        for name, both in columns.items()
    }
    return Evidence(
        kind=log, name="first_plot", model="simulated", identity={"judge": "one"}, measures=measures
    )


def _pairs(number: int, chance: np.random.Generator, rare: float) -> tuple[Side, Side]:
    """Return forced choice on pairs; in a share `rare` of them the candidate is worse, by 0.05 nats on average."""
    groups = {
        f"forced_choice.{name}": chance.normal(-1, 0.5, number) for name in ("in_domain", "out_of_domain")
    }
    groups["forced_choice.fluency"] = chance.normal(-3, 0.5, number)
    sides = []
    for side in (0, 1):
        measures = {}
        for name, values in groups.items():
            moved = side * chance.normal(0, 0.02, number)
            if rare and side and name == "forced_choice.in_domain":
                moved = moved + (chance.random(number) < rare) * (POLICY.metrics[name].margin / rare)
            measures[name] = Items(
                unit="nats per token", values={str(i): float(v) for i, v in enumerate(values + moved)}
            )
        evidence = Evidence(
            kind="forced_choice", name="pairs", model="simulated", identity={}, measures=measures
        )
        sides.append(Side({evidence.key: evidence}))
    return sides[0], sides[1]


def _share(events: int, draws: int) -> dict[str, object]:
    limits = stats.binomtest(events, draws).proportion_ci(0.95)
    return {"share": events / draws, "limits": [float(limits.low), float(limits.high)]}


def main() -> None:
    """Run all scenarios, print a line each, keep them with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    folder = Path(os.environ.get("EM_EVALS_DATA", "../shared/data")).expanduser()
    base = Population.read(folder / "judged" / "qwen25_coder_7b_base.csv")
    kept = _kept(given.repetitions) if given.save else {}
    results = []
    for scenario in scenarios(base):
        # A judgment costs about the same whatever its draws: eleven looks are repeated less often.
        repetitions = given.repetitions if scenario.looks == 1 else given.repetitions // 3
        result = kept.get(scenario.name) or simulate(scenario, repetitions)
        results.append(result)
        if given.save and scenario.name not in kept:
            with PARTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
        shown = {part: {n: e["share"] for n, e in result[part].items()} for part in ("verdicts", "ever")}
        print(f"{scenario.name}: {shown} coverage {result['coverage']}", flush=True)
    if given.save:
        runs.save(
            RESULT,
            ("scipy", "numpy"),
            alpha=POLICY.alpha,
            population="qwen25_coder_7b_base.csv, 2,400 answers to 24 questions",
            scenarios=results,
        )
        PARTS.unlink(missing_ok=True)


def _kept(repetitions: int) -> dict[str, dict]:
    """Return the scenarios that an interrupted run with as many repetitions has finished."""
    if not PARTS.is_file():
        return {}
    rows = [json.loads(line) for line in PARTS.read_text().splitlines() if line.endswith("}")]
    return {
        row["scenario"]: row
        for row in rows
        if row["repetitions"] == (repetitions if row["looks"] == 1 else repetitions // 3)
    }


if __name__ == "__main__":
    main()
