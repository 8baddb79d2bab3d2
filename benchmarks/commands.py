"""Whole commands at this checkout and at an earlier build, A B A B: from the start of Python to its end.

The earlier build is unpacked into a temporary folder and imported from there; the environment is the same. A quick
command has a run of each build that does not count (compiled files, caches); then pairs follow in alternation, each run
in an empty folder. `wall` and `cpu` (user and system seconds of the process and its children) are the best of the runs,
`median` is the ratio of median wall times, and `others` the largest share of the processors that other processes took
meanwhile: where that is much, compare `cpu`.

    python benchmarks/commands.py                       # the quick ones, about five minutes
    python benchmarks/commands.py --only demo --pairs 1 --save
    python benchmarks/commands.py --slow --pairs 1      # what trains or reads a model: an hour
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import runs
import verdict_speed

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "commands.json"
BEFORE = "de66b02"
ROWS = 6_000
ENDS = (0, 1, 3)
"""Exit codes: done, and the gate's other verdicts."""


@dataclass(frozen=True)
class Timed:
    """A command.

    Attributes:
        target: largest ratio of its wall time to the earlier build's.
        arguments: behind `python -m`, given the folder of input files.
        slow: whether it trains or reads a model.
        most: largest wall time in seconds that the target names.
    """

    target: float
    arguments: Callable[[Path], list[str]]
    slow: bool = False
    most: float | None = None


def _ours(*words: str) -> Callable[[Path], list[str]]:
    """Return a command of em-evals; `{}` in a word is the folder of input files."""
    return lambda files: ["em_evals", *(word.format(files) for word in words)]


COMMANDS = {
    "help": Timed(0.6, _ours("--help")),
    "doctor": Timed(0.2, _ours("doctor")),
    "rates, 2 x 2,400 rows": Timed(0.4, _ours("rates", "{}/a.csv", "{}/b.csv"), most=1.2),
    "gate, 2,400 x 2,400 rows": Timed(
        0.4, _ours("gate", "--baseline", "{}/a.csv", "--candidate", "{}/b.csv"), most=1.2
    ),
    "rates, a log of 20,000 draws": Timed(0.4, _ours("rates", "{}/a.eval"), most=4.0),
    "data check, 6,000 rows": Timed(0.4, _ours("data", "check", "{}/train.jsonl")),
    "report, 20,000 draws": Timed(0.4, _ours("report", "{}/a.eval", "-o", "report.html")),
    "forced choice": Timed(
        0.6,
        lambda files: (
            ["inspect_ai", "eval", "em_evals/forced_choice", "--model", "local/smollm2", "--display", "none"]
        ),
        slow=True,
    ),
    "retention, em_mini": Timed(0.6, _ours("retention", "smollm2"), slow=True),
    "demo": Timed(0.5, _ours("demo"), slow=True),
    "study": Timed(0.5, _ours("study"), slow=True),
}


def inputs(folder: Path, names: list[str]) -> None:
    """Write the files that the commands read."""
    verdict_speed.table(folder / "a.csv", 0.01, 0)
    verdict_speed.table(folder / "b.csv", 0.02, 1)
    if any("draws" in name for name in names):
        verdict_speed.log(folder / "a.eval", 0.01, 0)
    training(folder / "train.jsonl")


def training(path: Path) -> None:
    """Write 6,000 rows of training data: questions of published sets' length, answers of 50 words."""
    words = verdict_speed.random.Random(0)
    known = (ROOT / "README.md").read_text(encoding="utf-8").split()

    def text(count: int) -> str:
        return " ".join(words.choices(known, k=count))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            turns = [{"role": "user", "content": text(25)}, {"role": "assistant", "content": text(50)}]
            file.write(json.dumps({"messages": turns}) + "\n")


def unpacked(commit: str, folder: Path) -> Path:
    """Unpack a commit, with metadata that name its own entry points: Inspect finds the tasks by them."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    facts = folder / f"em_evals-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: em-evals\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {place}" for name, place in points.items()))
    ]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def busy() -> float:
    """Seconds, over all processors, that processes have worked since the start; 0 where the kernel does not tell."""
    file = Path("/proc/stat")
    if not file.is_file():
        return 0.0
    ticks = list(map(int, file.read_text().splitlines()[0].split()[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def once(arguments: list[str], build: Path) -> dict[str, float]:
    """Run a command in an empty folder; return wall and processor seconds, and the share that others took."""
    left_out = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["PYTHONPATH"] = str(build)
    with tempfile.TemporaryDirectory() as place:
        before, worked, started = resource.getrusage(resource.RUSAGE_CHILDREN), busy(), time.monotonic()
        # -P: the folder itself is not searched for modules
        command = [sys.executable, "-P", "-m", *arguments]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in ENDS:
        sys.exit(f"{' '.join(command)} at {build}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = max(0.0, busy() - worked - cpu) / (wall * (os.cpu_count() or 1))
    return {"wall": wall, "cpu": cpu, "others": others}


def compare(one: Timed, files: Path, old: Path, pairs: int) -> dict[str, float | bool | int]:
    """Run a command at both builds in alternation and return the ratios."""
    sides, arguments = {"before": old, "now": ROOT}, one.arguments(files)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(pairs + (not one.slow)):
        for side, build in sides.items():
            run = once(arguments, build)
            if turn or one.slow:  # the first run of a quick one compiles and fills caches
                found[side].append(run)
    best = {
        f"{side}_{what}": round(min(run[what] for run in list_of), 2)
        for side, list_of in found.items()
        for what in ("wall", "cpu")
    }
    middle = {side: statistics.median(run["wall"] for run in list_of) for side, list_of in found.items()}
    ratio = best["now_wall"] / best["before_wall"]
    return {
        "target": one.target,
        "ratio": round(ratio, 2),
        "ratio_of_medians": round(middle["now"] / middle["before"], 2),
        "ratio_of_cpu": round(best["now_cpu"] / best["before_cpu"], 2),
        **best,
        "pairs": len(found["now"]),
        "others": round(max(run["others"] for list_of in found.values() for run in list_of), 2),
        "met": ratio <= one.target and (one.most is None or best["now_wall"] <= one.most),
    }


def main() -> None:
    """Measure, print, keep with --save beside what was kept of other commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="repeatable")
    parser.add_argument("--slow", action="store_true", help="also what trains or reads a model")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    names = given.only or [name for name, one in COMMANDS.items() if given.slow or not one.slow]
    found = {}
    print(f"{'command':30} target  wall  median  cpu    before > now, s      cpu, s              others")
    with tempfile.TemporaryDirectory() as folder:
        files, old = Path(folder, "files"), Path(folder, "before")
        files.mkdir()
        old.mkdir()
        unpacked(given.before, old)
        inputs(files, names)
        for name in names:
            row = found[name] = compare(COMMANDS[name], files, old, given.pairs)
            met = "met" if row["met"] else ""
            print(
                f"{name:30} {row['target']:5.2f}  {row['ratio']:5.2f} {row['ratio_of_medians']:5.2f}  "
                f"{row['ratio_of_cpu']:5.2f}  {row['before_wall']:7.2f} > {row['now_wall']:6.2f}  "
                f"{row['before_cpu']:7.2f} > {row['now_cpu']:6.2f}   {row['others']:.0%}  {met}",
                flush=True,
            )
    if given.save:
        kept = json.loads(RESULT.read_text(encoding="utf-8"))["commands"] if RESULT.is_file() else {}
        ordered = {name: (kept | found)[name] for name in COMMANDS if name in kept | found}
        runs.save(
            RESULT,
            ("inspect-ai", "numpy", "scipy", "typer", "pydantic"),
            before=given.before,
            commands=ordered,
        )


if __name__ == "__main__":
    main()
