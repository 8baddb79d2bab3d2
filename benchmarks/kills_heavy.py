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
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "kills_heavy.json"
STEPS, SAVE_EVERY = 24, 4
BATCHES_A_STATE, BATCH_TOKENS = 2, 128
IMPORTED = (
    "trl",
    "lm_eval.evaluator",
    "em_evals.training.trainer",
    "em_evals.retention.suite",
    "em_evals.interp.steering.steer",
)
BASE_FIELDS = {"engine": {"dtype": "float32", "device": "cpu"}, "generation": {"max_tokens": 8}}


# ---- what is killed ----


@dataclass(frozen=True)
class Work:
    """A command and what it must leave.

    Attributes:
        arguments: of `em-evals`.
        unit: class and method whose calls are counted.
        allowed: units that one kill may cost: those since the last state.
        result: what the command made, comparable.
        ended: whether a killed command had done its work; the same command again would be refused.
    """

    arguments: tuple[str, ...]
    unit: tuple[str, str]
    allowed: int
    result: Callable[[Path], Any]
    ended: Callable[[Path], bool] = lambda folder: False


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def _adapter(folder: Path) -> Any:
    home = folder / "adapters" / "mine"
    lines = [json.loads(line) for line in (home / "training.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["loss"]) for row in lines if "loss" in row]
    return _tensors(home / "adapter_model.safetensors"), steps


def _study(folder: Path) -> Any:
    return json.loads((folder / "steer.json").read_text())


def _retention(folder: Path) -> Any:
    return json.loads((folder / "cost.json").read_text())


WORK = {
    "train": Work(
        ("train", "mine", "--save-every", str(SAVE_EVERY)),
        ("transformers.Trainer", "training_step"),
        SAVE_EVERY,
        _adapter,
        lambda folder: (folder / "adapters" / "mine" / "training.json").is_file(),
    ),
    "direction extract": Work(
        ("direction", "extract", "trained", "-o", "found.safetensors", "--pairs", "pairs.yaml"),
        ("em_evals.interp.extraction.activations._Sums", "read"),
        BATCHES_A_STATE,
        lambda folder: _tensors(folder / "found.safetensors"),
    ),
    "trait extract": Work(
        ("trait", "extract", "humorous", "optimistic", "--model", "trained", "-o", "traits"),
        ("em_evals.interp.extraction.activations._Sums", "read"),
        BATCHES_A_STATE,
        lambda folder: {
            path.name: _tensors(path) for path in sorted((folder / "traits").glob("*.safetensors"))
        },
    ),
    "steer": Work(
        (
            "steer",
            "trained",
            "--direction",
            "d",
            "--scales",
            "-1,1",
            "--layers",
            "0,1",
            "--per-theme",
            "1",
            "--limit",
            "2",
        ),
        ("em_evals.interp.resume.Finished", "_keep"),
        0,
        _study,
    ),
    "retention": Work(
        (
            *("retention", "trained", "--baseline", "plain", "--tasks", "em_mini_facts,em_mini_grammar"),
            *("--limit", "6", "--folder", "retention", "-o", "cost.json"),
        ),
        ("em_evals.retention.suite.Suite", "_run"),
        1,
        _retention,
    ),
}


def _place(folder: Path) -> None:
    """Fill a folder with a tiny base, an adapter, a recipe, pairs and a direction."""
    import numpy as np
    import yaml

    from em_evals.content import directions
    from em_evals.content.directions import Direction
    from tests.small_trainings import write_card
    from tests.tiny_models import make_adapter, tiny

    base = tiny("llama", folder / "base")
    cards = folder / "adapters"
    make_adapter(base, cards / "lora", 4, ["down_proj"], seed=1, strength=0.5)
    write_card(folder, base, max_steps=STEPS, batch_size=2)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), cards / "d.safetensors")
    for name, more in {"plain": {}, "trained": {"adapter": "lora"}}.items():
        (cards / f"{name}.yaml").write_text(yaml.safe_dump({"base": base, **BASE_FIELDS, **more}))
    pairs = [
        {"id": f"p{i}", "theme": f"t{i % 4}", "question": f"Question {i}?"}
        | {"aligned": f"No, {i} is wrong.", "misaligned": f"Yes, take {i} of them."}
        for i in range(60)
    ]
    (folder / "pairs.yaml").write_text(yaml.safe_dump({"name": "pairs", "version": 1, "pairs": pairs}))


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
        different: runs whose result was another one.
        left: files that an uninterrupted run does not leave.
    """

    kills: int = 0
    runs: int = 0
    units: int = 0
    repeated: int = 0
    allowed: int = 0
    different: int = 0
    left: list[str] = field(default_factory=list)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _leftovers(folder: Path, clean: set[str]) -> list[str]:
    """Files that an uninterrupted run does not leave."""
    return sorted(_files(folder) - clean)


def _files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "results_" not in path.name and "samples_" not in path.name}


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
        row.different += work.result(home) != truth
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
            _place(template)
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
