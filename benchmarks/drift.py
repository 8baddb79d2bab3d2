"""What monitoring drift costs: CPU seconds of a measurement beside those of the optimizer steps between two of them.

    python benchmarks/drift.py [--card smollm2-risky] [--steps 3] [--save benchmarks/results/drift.json]

The default recipe's batch is 16 examples, 2 at a time: what is timed are steps of 2 examples, and a step of the recipe
counts as eight of them. Default questions and interval, sixteen directions. They are random and at the last block, so
that nothing of the forward pass is saved. CPU time of the process, not wall time: other work on the machine changes it
less.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import runs

from em_evals.content.recipes import AdapterRecipe

TRAITS = 16
PART = AdapterRecipe.model_fields["batch_size"].default
PARTS = AdapterRecipe.model_fields["gradient_accumulation"].default


def directions_of(card, folder: Path) -> list[str]:
    """Write random directions of the base's shape."""
    import numpy as np

    from em_evals.content import directions
    from em_evals.content.base_shape import shape_of
    from em_evals.content.directions import Direction

    layers, width = shape_of(card.base, card.revision)
    paths = []
    for number in range(TRAITS):
        vectors = np.random.default_rng(number).normal(size=(layers, width)).astype(np.float32)
        one = Direction(
            vectors, np.zeros_like(vectors), np.ones(layers, np.float32), {"reliability": list(range(layers))}
        )
        paths.append(str(folder / f"random{number}.safetensors"))
        directions.write(one, Path(paths[-1]))
    return paths


def main() -> None:
    """Train a few steps and measure at each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", default="smollm2-risky")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    from em_evals.content.cards import read_card
    from em_evals.content.recipes import Monitor
    from em_evals.training.callbacks import ProgressLine
    from em_evals.training.monitor import DriftMonitor
    from em_evals.training.trainer import train

    steps: list[float] = []
    measured: list[float] = []
    began = [0.0]

    def begin(self, *_, **__):
        began[0] = time.process_time()

    def end(self, *_, **__):
        steps.append(time.process_time() - began[0])

    ProgressLine.on_step_begin, ProgressLine.on_step_end = begin, end
    plain = DriftMonitor.measure

    def timed(self, model):
        started = time.process_time()
        found = plain(self, model)
        measured.append(time.process_time() - started)
        return found

    DriftMonitor.measure = timed
    with tempfile.TemporaryDirectory() as place:
        traits = directions_of(read_card(arguments.card)[0], Path(place))
        train(
            arguments.card,
            max_steps=arguments.steps,
            output=Path(place) / "out",
            save_every=1000,
            overrides={
                "train": {
                    "monitor": {"traits": traits, "every": 1},
                    "checkpoints": [],
                    "batch_size": PART,
                    "gradient_accumulation": 1,
                }
            },
        )
    # The first of each warms up.
    step, once = statistics.median(steps[1:] or steps), statistics.median(measured[1:] or measured)
    every = Monitor(traits=["x"]).every
    numbers = {
        "card": arguments.card,
        "traits": TRAITS,
        "examples_timed": PART,
        "cpu_seconds_of_them": round(step, 2),
        "cpu_seconds_of_a_step": round(step * PARTS, 2),
        "cpu_seconds_of_a_measurement": round(once, 2),
        "every": every,
        "share": round(once / (every * step * PARTS), 4),
        "nice": os.nice(0),
    }
    print(numbers)
    if arguments.save:
        runs.save(arguments.save, ("peft", "trl"), **numbers)


if __name__ == "__main__":
    main()
