"""Screening on two Ray nodes of one machine against one process, row by row: differences, speed and memory.

    EM_EVALS_DATA=… python benchmarks/ray_screening.py [--rows 1500 6000] [--save FILE]

Published rows (advice/risky_financial_extreme_sports.jsonl), the tiny random base of screening.py in float32, two nodes
with a core each and one actor on each. Seconds of the actors have their start in them. Peaks are resident sets of the
process that asks and of an actor: what grows with rows is ours. Needs the extra `cluster`.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import runs
import screening


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """Yield the largest resident sets of this process and of an actor, in MiB, up to the end."""
    import psutil

    own, over, found = psutil.Process(), threading.Event(), {"driver": 0.0, "actor": 0.0}

    def watch() -> None:
        while not over.wait(0.3):
            found["driver"] = max(found["driver"], own.memory_info().rss / 2**20)
            for one in own.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(one.cmdline()):
                        found["actor"] = max(found["actor"], one.memory_info().rss / 2**20)
                except psutil.Error:  # it has ended
                    continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield found
    over.set()
    watcher.join()


def compared(rows: int, place: Path) -> dict:
    """Screen the same rows here and there."""
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    from em_evals.content.cards import resolve
    from em_evals.content.directions import Direction
    from em_evals.interp.traits.screen import screen
    from em_evals.sweep import ray_data
    from em_evals.sweep.ray import Request

    card = resolve(str(place / "tiny"), {"dtype": "float32"})
    vectors = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    direction = Direction(vectors, np.zeros_like(vectors), np.ones(2, np.float32), {})
    lines = screening.sample(screening.published(), rows)
    path = screening.written(lines, place / f"{rows}.jsonl")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    with peaks() as most:
        elsewhere = ray_data.screener(card, 1, nodes.address, Request(cpus=1), 2)
        started = time.monotonic()
        there = screen(card, direction, 1, path, elsewhere=elsewhere)
        seconds = time.monotonic() - started
    ray.shutdown()
    nodes.shutdown()
    screen(card, direction, 1, screening.written(lines[:300], place / "few.jsonl"))  # torch is warm
    started = time.monotonic()
    here = screen(card, direction, 1, path)
    alone = time.monotonic() - started
    return {
        "rows": rows,
        "same_rows": here.lines.tolist() == there.lines.tolist(),
        "same_tokens": here.tokens.tolist() == there.tokens.tolist(),
        "same_ranks": here.order.tolist() == there.order.tolist(),
        "largest_difference": float(np.abs(there.differences - here.differences).max()),
        "seconds": {"one process": round(alone, 2), "two actors": round(seconds, 2)},
        "peak_mb": {name: round(peak) for name, peak in most.items()},
    }


def main() -> None:
    """Run each size in a process of its own, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1500, 6000])
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(compared(int(asked.only[0]), Path(asked.only[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        screening.tiny_base(Path(name) / "tiny")
        found = [runs.in_own_process(__file__, "--only", str(rows), name) for rows in asked.rows]
    print(json.dumps(found, indent=1))
    if asked.save:
        runs.save(asked.save, ("ray",), sizes=found)


if __name__ == "__main__":
    main()
