"""How often do the intervals of a rate hold the truth? Over questions, draws, rates and intra-question correlations.

Each repetition draws the questions' own rates from a beta distribution with the given mean (the rate) and correlation
rho, then their draws. Two truths, two intervals: new draws for these same questions (the mean of their own rates;
Wilson's interval), and other questions of this kind (the beta distribution's mean; the beta-binomial posterior with its
running maximum).

    python benchmarks/interval_coverage.py [--repetitions 2000] [--save]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import runs

from em_evals.stats import intervals

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
QUESTIONS, DRAWS = (8, 24, 33), (10, 100)
RATES, CORRELATIONS = (0.005, 0.02, 0.1, 0.4), (0.05, 0.1, 0.3)
AIM = (0.93, 0.985)


def cell(questions: int, draws: int, rate: float, correlation: float, repetitions: int) -> dict:
    """Return the coverage of both intervals in one design, with how often they lie above and below the truth."""
    # A seed of its own: a cell gives the same numbers alone and in the grid.
    random = np.random.default_rng([questions, draws, round(1000 * rate), round(100 * correlation)])
    spread = (1 - correlation) / correlation
    own = random.beta(rate * spread, (1 - rate) * spread, size=(repetitions, questions))
    events = np.sort(random.binomial(draws, own), axis=1)
    # Designs with rare events repeat: each different one is computed once.
    kinds, which = np.unique(events, axis=0, return_inverse=True)
    ends = np.array(intervals.random_questions_each([[(int(k), draws) for k in row] for row in kinds]))[which]
    total = questions * draws
    wilson = np.array([intervals.fixed_questions(k, total) for k in range(total + 1)])[events.sum(axis=1)]
    return {
        "questions": questions,
        "draws": draws,
        "rate": rate,
        "correlation": correlation,
        "fixed": summary(wilson, own.mean(axis=1)),
        "random": summary(ends, np.full(repetitions, rate)),
    }


def summary(ends: np.ndarray, truth: np.ndarray) -> dict:
    """Return the share of intervals that hold the truth, that lie above and below it, and their mean width."""
    above, below = float((ends[:, 0] > truth).mean()), float((ends[:, 1] < truth).mean())
    return {
        "coverage": round(1 - above - below, 4),
        "above": round(above, 4),
        "below": round(below, 4),
        "width": round(float((ends[:, 1] - ends[:, 0]).mean()), 5),
    }


def grid(repetitions: int) -> Iterator[dict]:
    """Yield every cell."""
    for design in product(QUESTIONS, DRAWS, RATES, CORRELATIONS):
        yield cell(*design, repetitions)


def main() -> None:
    """Print every cell; mark those outside the aim."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    cells = []
    for one in grid(arguments.repetitions):
        cells.append(one)
        marks = {
            scope: "" if AIM[0] <= one[scope]["coverage"] <= AIM[1] else " !" for scope in ("fixed", "random")
        }
        print(
            f"{one['questions']:3} x {one['draws']:3}  rate {one['rate']:.3f}  rho {one['correlation']:.2f}  "
            + "  ".join(
                f"{scope} {one[scope]['coverage']:.3f} "
                f"(above {one[scope]['above']:.3f}, below {one[scope]['below']:.3f}){mark}"
                for scope, mark in marks.items()
            ),
            flush=True,
        )
    if arguments.save:
        runs.save(RESULT, ("scipy", "numpy"), repetitions=arguments.repetitions, aim=AIM, cells=cells)


if __name__ == "__main__":
    main()
