"""What a sweep adds to a step: 1,000 trivial commands as a plan, against the same commands called in one process.

Run: python benchmarks/sweep_overhead.py [--steps 1000]. Prints milliseconds a step and their difference; the target is
50 ms. Two runs of each, in alternation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import yaml

from em_evals.cli import main as command
from em_evals.content import sweep_plans
from em_evals.sweep import graph, run
from em_evals.sweep.workers import Here, local

WORDS = ["em-evals", "schema", "card"]


def in_one_process(steps: int) -> float:
    """Return the seconds that the commands take when they are only called."""
    before, sys.argv = sys.argv, WORDS
    began = time.monotonic()
    for _ in range(steps):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            command()
    sys.argv = before
    return time.monotonic() - began


def as_a_plan(steps: int, where: str) -> float:
    """Return the seconds that the same commands take as a sweep, from the plan's file to the last record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text("{}")
        plan = {
            "name": "trivial",
            "models": [{"card": str(folder / "base")}],
            "measures": [{"name": f"one-{number}", "run": " ".join(WORDS)} for number in range(steps)],
        }
        path = folder / "plan.yaml"
        path.write_text(yaml.safe_dump(plan))
        began = time.monotonic()
        made = graph.build(sweep_plans.load(path))
        outcome = run.run(made, folder / "run", [Here()] if where == "here" else local(1))
        seconds = time.monotonic() - began
        assert len(outcome.done) == steps, outcome.failed[:1]
        return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    os.environ["COLUMNS"] = "100"
    in_one_process(1)
    for number in range(2):
        plain = in_one_process(steps)
        for where in ("here", "local"):
            found = as_a_plan(steps, where)
            print(
                f"run {number + 1}: called {plain / steps * 1e3:.1f} ms a step; "
                f"--on {where} {found / steps * 1e3:.1f} ms; added {(found - plain) / steps * 1e3:.1f} ms"
            )


if __name__ == "__main__":
    main()
