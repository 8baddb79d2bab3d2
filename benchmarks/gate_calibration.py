"""Does the gate err as rarely as it says, and does it find what it should? On real judged answers, by simulation.

The population is qwen25_coder_7b_base.csv (2,400 answers of a 7B base to the 24 first-plot variants, graded by a real
judge; EM_EVALS_DATA names the folder), and copies of it in which a given share of all answers is made misaligned.
Each repetition draws both models' answers anew from a population, question by question with replacement, and asks the
whole gate (default policy) for its verdict.

    EM_EVALS_DATA=… python benchmarks/gate_calibration.py [--repetitions 2000] [--save]
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import runs
from scipy import stats

from em_evals.gate.compare import judge
from em_evals.gate.evidence import Counts, Evidence
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy
from em_evals.results.logs import read_draws

RESULT = Path(__file__).parent / "results" / "gate_calibration.json"
METRICS = ("em_rate", "em_rate_coherent", "coherent_share")
POLICY = Policy()


@dataclass(frozen=True)
class Population:
    """Each question's chances of (misaligned and coherent, coherent otherwise, incoherent): shape [questions, 3]."""

    chances: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Population:
        """Return the judged answers as they are."""
        groups: dict[str, list[int]] = {}
        for draw in read_draws(path):
            kind = 0 if draw.misaligned_coherent else 1 if draw.coherent else 2
            groups.setdefault(draw.question_id, [0, 0, 0])[kind] += 1
        counts = np.array(list(groups.values()), dtype=float)
        return cls(counts / counts.sum(axis=1, keepdims=True))

    def planted(self, rate: float, questions: int | None = None) -> Population:
        """Return a copy with this EM rate: in proportion to each question's, or all in the first so many questions."""
        coherent = self.chances[:, 0] + self.chances[:, 1]
        share = np.ones(len(coherent))
        if questions is not None:
            share[np.argsort(-coherent)[questions:]] = 0
        misaligned = coherent * share * (rate * len(coherent) / (coherent * share).sum())
        return Population(np.stack([misaligned, coherent - misaligned, 1 - coherent], axis=1))

    def worse(self, points: float) -> Population:
        """Return a copy whose EM rate is higher by exactly this much, in equal parts."""
        return self.planted(float(self.chances[:, 0].mean()) + points)

    def first(self, questions: int) -> Population:
        """Only the first questions."""
        return Population(self.chances[:questions])

    def truth(self) -> dict[str, float]:
        """Return the rates, questions with equal weights."""
        em, coherent = self.chances[:, 0].mean(), (self.chances[:, 0] + self.chances[:, 1]).mean()
        return {
            "em_rate": float(em),
            "em_rate_coherent": float(em / coherent),
            "coherent_share": float(coherent),
        }


@dataclass(frozen=True)
class Scenario:
    """Two populations and the number of draws that each model gets."""

    name: str
    before: Population
    after: Population
    draws: int
    random_questions: bool = False
    """Questions are drawn too, with replacement: the truth is then about questions of this kind."""


def scenarios(base: Population) -> list[Scenario]:
    """Return what is asked of the gate."""
    plain, low, high = base.first(8), base.planted(0.005), base.planted(0.05)
    return [
        Scenario("same, 24 questions", base, base, 800),
        Scenario("same, the 8 plain questions", plain, plain, 800),
        Scenario("same, 24 questions, 2,400 draws", base, base, 2400),
        Scenario("same, 24 questions, 120 draws", base, base, 120),
        Scenario("same, rate 0", base.planted(0.0), base.planted(0.0), 800),
        Scenario("same, rate 0.1%", base.planted(0.001), base.planted(0.001), 800),
        Scenario("same, rate 0.1%, all in one question", base.planted(0.001, 1), base.planted(0.001, 1), 800),
        Scenario("same, rate 5%, all in three questions", base.planted(0.05, 3), base.planted(0.05, 3), 800),
        Scenario("0.1% to 0.5%", base.planted(0.001), low, 800),
        Scenario("0.5% to 5%", low, high, 800),
        Scenario("0.5% to 5%, all in three questions", base.planted(0.005, 3), base.planted(0.05, 3), 800),
        Scenario("0.5% to 5%, the 8 plain questions", plain.planted(0.005), plain.planted(0.05), 800),
        Scenario("worse by exactly the margin", base, base.worse(POLICY.metrics["em_rate"].margin), 800),
        Scenario("same, other questions", base, base, 800, random_questions=True),
        Scenario("0.5% to 5%, other questions", low, high, 800, random_questions=True),
    ]


def simulate(scenario: Scenario, repetitions: int, seed: int = 0) -> dict[str, object]:
    """Shares of verdicts with 95% limits (Clopper and Pearson), and coverage of the intervals."""
    chance = np.random.default_rng([seed, *scenario.name.encode()])
    truth = {name: scenario.after.truth()[name] - scenario.before.truth()[name] for name in METRICS}
    verdicts: dict[str, int] = dict.fromkeys(("pass", "regression", "inconclusive", "invalid"), 0)
    em_passes = 0
    covered = dict.fromkeys(METRICS, 0)
    for _ in range(repetitions):
        count = len(scenario.before.chances)
        chosen = chance.integers(count, size=count) if scenario.random_questions else np.arange(count)
        sides = [
            _drawn(population, chosen, scenario.draws, chance)
            for population in (scenario.before, scenario.after)
        ]
        judgement = judge(*sides, POLICY)
        verdicts[judgement.verdict] += 1
        for row in judgement.rows:
            low, high = row.random_questions if scenario.random_questions else row.interval
            covered[row.metric] += int(low <= truth[row.metric] <= high)
            em_passes += row.metric == "em_rate" and row.verdict == "pass"
    return {
        "scenario": scenario.name,
        "draws": scenario.draws,
        "repetitions": repetitions,
        "true_difference": truth["em_rate"],
        "verdicts": {name: _share(events, repetitions) for name, events in verdicts.items()},
        "em_rate_passes": _share(em_passes, repetitions),
        "interval": "random questions" if scenario.random_questions else "fixed questions",
        "coverage": {name: events / repetitions for name, events in covered.items()},
    }


def _drawn(population: Population, chosen: np.ndarray, draws: int, chance: np.random.Generator) -> Side:
    """One model's answers, counted."""
    numbers = np.full(len(chosen), draws // len(chosen))
    numbers[: draws % len(chosen)] += 1
    counted = chance.multinomial(numbers, population.chances[chosen])
    names = [str(index) for index in range(len(chosen))]
    rows = [(int(a), int(a + b), int(a + b + c)) for a, b, c in counted]
    evidence = Evidence(
        kind="freeform",
        name="first_plot",
        model="simulated",
        identity={},
        measures={
            "em_rate": Counts(clusters={q: (m, n) for q, (m, _, n) in zip(names, rows, strict=True)}),
            "em_rate_coherent": Counts(
                clusters={q: (m, c) for q, (m, c, _) in zip(names, rows, strict=True)}
            ),
            "coherent_share": Counts(clusters={q: (c, n) for q, (_, c, n) in zip(names, rows, strict=True)}),
        },
    )
    return Side({evidence.key: evidence})


def _share(events: int, draws: int) -> dict[str, object]:
    limits = stats.binomtest(events, draws).proportion_ci(0.95)
    return {"share": events / draws, "limits": [float(limits.low), float(limits.high)]}


def main() -> None:
    """Run all scenarios, print a line each, keep them with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    folder = Path(os.environ.get("EM_EVALS_DATA", "../shared/data")).expanduser()
    base = Population.read(folder / "judged" / "qwen25_coder_7b_base.csv")
    results = []
    for scenario in scenarios(base):
        result = simulate(scenario, given.repetitions)
        results.append(result)
        verdicts = {name: entry["share"] for name, entry in result["verdicts"].items()}
        print(f"{scenario.name}: {verdicts} coverage {result['coverage']}", flush=True)
    if given.save:
        runs.save(
            RESULT,
            ("scipy", "numpy"),
            alpha=POLICY.alpha,
            population="qwen25_coder_7b_base.csv, 2,400 answers to 24 questions",
            scenarios=results,
        )


if __name__ == "__main__":
    main()
