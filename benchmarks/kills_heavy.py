"""SIGKILL at random moments of commands that run models: is anything lost, done twice, or different in the end?

Training, extraction of a direction and of traits, steering and retention, on a tiny random base. Each command runs in a
process of its own that is killed after a random time, and then starts again, until it ended; a new folder follows until
there were enough kills. What it made is compared with what an uninterrupted run made.

Units of work (an optimizer's step, a batch of texts, a condition, a task) are counted where they happen, in a file that
survives the kill. What was finished and written down must not be done again; what was under way is lost: a training
loses the steps since its last state, an extraction the batches since its last sums.

    python benchmarks/kills_heavy.py [--kills 10] [--only train] [--save]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import runs
from kills_work import BATCH_TOKENS, BATCHES_A_STATE, WORK, Work, place

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "kills_heavy.json"
IMPORTED = (
    "trl",
    "lm_eval.evaluator",
    "em_evals.training.trainer",
    "em_evals.retention.suite",
    "em_evals.interp.steering.steer",
    "em_evals.gate.readers",
)
ROUNDING = 1e-5
"""Nats, of float32 sums of log-probabilities (1.2e-6 was seen)."""


# ---- one life of a command ----


def _count(unit: tuple[str, str], file: Path) -> None:
    """Append a line to a file after each call of a method: what was done, whatever is killed afterwards."""
    module, _, name = unit[0].rpartition(".")
    owner = getattr(import_module(module), name)
    plain = getattr(owner, unit[1])

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        result = plain(self, *given, **named)
        with file.open("ab", buffering=0) as out:
            out.write(b"x\n")
        return result

    setattr(owner, unit[1], counted)


def _live(folder: Path, work: Work, count: Path, seconds: float | None) -> tuple[bool, float]:
    """Run a command in a child, and kill it after some time; return whether it ended by itself, and how long it ran.

    The child is forked after the imports, so that kills hit the work and not the start of Python.
    """
    said = folder.with_suffix(".said")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(folder, work, count, said)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        ran = time.monotonic() - started
        if ended:
            if os.waitstatus_to_exitcode(status) != 0:
                sys.exit(f"{' '.join(work.arguments)} failed:\n{said.read_text()[-3000:]}")
            return True, ran
        if seconds is not None and ran >= seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, ran
        time.sleep(0.005)


def _be(folder: Path, work: Work, count: Path, said: Path) -> NoReturn:
    """Run the command as `em-evals` does, its words in a file; never return."""
    code = 1
    try:
        os.chdir(folder)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from em_evals import cli
        from em_evals.interp.extraction import activations

        activations._SAVE_EVERY = BATCHES_A_STATE
        activations.group_sums.__defaults__ = (*activations.group_sums.__defaults__[:-1], BATCH_TOKENS)
        _count(work.unit, count)
        sys.argv = ["em-evals", *work.arguments]
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- rounds ----


@dataclass
class Row:
    """What kills of one command did.

    Attributes:
        kills: so many.
        runs: folders in which the command ended.
        units: of an uninterrupted run.
        repeated: units beyond those, over all runs.
        allowed: the most that these kills may cost.
        different: runs whose result was another one, beyond rounding.
        rounding: the largest difference of a number: after a kill, other texts share a batch.
        left: files that an uninterrupted run does not leave.
    """

    kills: int = 0
    runs: int = 0
    units: int = 0
    repeated: int = 0
    allowed: int = 0
    different: int = 0
    rounding: float = 0.0
    left: list[str] = field(default_factory=list)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _leftovers(folder: Path, clean: set[str]) -> list[str]:
    """Files that an uninterrupted run does not leave."""
    return sorted(_files(folder) - clean)


def _files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "results_" not in path.name and "samples_" not in path.name}


def _difference(made: Any, truth: Any) -> float:
    """Return the largest difference between numbers of two results; infinity where anything else differs."""
    if isinstance(made, float) and isinstance(truth, float):
        return 0.0 if made == truth else abs(made - truth)
    if isinstance(made, dict) and isinstance(truth, dict) and made.keys() == truth.keys():
        made, truth = [*map(made.get, truth)], [*truth.values()]
    if isinstance(made, list | tuple) and isinstance(truth, list | tuple) and len(made) == len(truth):
        return max(map(_difference, made, truth), default=0.0)
    return 0.0 if made == truth else math.inf


def kill(work: Work, template: Path, scratch: Path, kills: int, chance: random.Random) -> Row:
    """Kill a command again and again, and compare."""
    plain, count = scratch / "plain", scratch / "count"
    shutil.copytree(template, plain)
    _, seconds = _live(plain, work, count, None)
    truth, clean = work.result(plain), _files(plain)
    row = Row(units=_lines(count))
    while row.kills < kills:
        row.runs += 1
        home, count = scratch / f"run{row.runs}", scratch / f"count{row.runs}"
        shutil.copytree(template, home)
        ended, own = False, 0
        while not ended:
            may = row.kills < kills
            ended, _ = _live(home, work, count, chance.uniform(0.1, 1.0) * seconds if may else None)
            own += not ended
            row.kills += not ended
            ended = ended or work.ended(home)
        row.repeated += _lines(count) - row.units
        row.allowed += own * work.allowed
        difference = _difference(work.result(home), truth)
        row.different += not difference <= ROUNDING
        row.rounding = max(row.rounding, difference)
        row.left += _leftovers(home, clean)
        shutil.rmtree(home)
    return row


def main() -> None:
    """Kill, print a table, keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--only", choices=list(WORK))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    chosen = [given.only] if given.only else list(WORK)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EM_EVALS_CACHE"] = str(Path(folder) / "cache")
        template = Path(folder) / "template"
        template.mkdir()
        os.chdir(template)
        with contextlib.redirect_stdout(io.StringIO()):
            place(template)
        for module in IMPORTED:
            import_module(module)
        print(
            f"{'':20}{'kills':>7}{'runs':>6}{'units':>7}{'repeated':>10}{'allowed':>9}{'different':>11}  left"
        )
        for name in chosen:
            scratch = Path(folder) / name.replace(" ", "-")
            scratch.mkdir()
            row = kill(WORK[name], template, scratch, given.kills, random.Random(given.seed))
            numbers = f"{row.kills:>7}{row.runs:>6}{row.units:>7}{row.repeated:>10}{row.allowed:>9}"
            left = ", ".join(dict.fromkeys(row.left)) or "-"
            print(f"{name:20}{numbers}{row.different:>11}  {left}", flush=True)
            if given.save:
                _save(row, name, given.seed)


def _save(row: Row, name: str, seed: int) -> None:
    """Add a command's row to those that are kept."""
    kept = json.loads(RESULT.read_text())["commands"] if RESULT.is_file() else {}
    runs.save(RESULT, ("peft", "lm-eval"), seed=seed, commands=kept | {name: vars(row)})


if __name__ == "__main__":
    main()
