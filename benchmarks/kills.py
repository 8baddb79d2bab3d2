"""Kills at random moments of writing, in simulated time: is anything lost, measured twice, or different in the end?

A kill is an exception at a chosen byte of a chosen write, after which nothing of the process runs any more: no cleanup,
no further write. Then the same command starts again, and is killed again, until it ends by itself. Three ways of
writing stand behind the commands: the journal of measured conditions (`steer`, `insight`, `study`, `conditional`), the
baseline and its anchor (`gate --update-baseline`), and records that replace one another (`-o`).

What this leaves out: trainings, extractions and other commands that run models; kills_heavy.py kills those.

    python benchmarks/kills.py [--kills 200] [--save]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import runs

from em_evals.gate import baseline
from em_evals.gate.evidence import Counts, Evidence
from em_evals.interp.resume import Finished
from em_evals.results import records
from em_evals.results.records.base import Measured

RESULT = Path(__file__).parent / "results" / "kills.json"
CONDITIONS = 40


class Killed(BaseException):
    """The process is gone."""


class Machine:
    """File writes that end after so many bytes; a rename counts as one byte.

    Attributes:
        left: bytes until the kill; None: no kill.
    """

    def __init__(self) -> None:
        self.left: int | None = None
        self._real = {
            name: getattr(Path, name) for name in ("open", "write_text", "write_bytes", "replace", "unlink")
        }

    def spend(self, size: int) -> int:
        """Return how many of so many bytes can still be written."""
        if self.left is None:
            return size
        done = min(size, self.left)
        self.left -= done
        return done

    @contextlib.contextmanager
    def running(self, left: int | None) -> Iterator[None]:
        """Let writes of this process end after `left` bytes."""
        self.left, real, machine = left, self._real, self

        def written(path: Path, data: bytes, mode: str = "wb") -> int:
            done = machine.spend(len(data))
            with real["open"](path, mode) as file:
                file.write(data[:done])
            if done < len(data):
                machine.left = 0
                raise Killed
            return done

        class Append(io.StringIO):
            def __init__(self, path: Path) -> None:
                super().__init__()
                self.path = path

            def close(self) -> None:
                if not self.closed and (text := self.getvalue()):
                    super().close()
                    written(self.path, text.encode(), "ab")
                super().close()

        def opened(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
            return Append(path) if mode == "a" else real["open"](path, mode, *rest, **named)

        def replaced(path: Path, target: Path) -> Any:
            if not machine.spend(1):
                raise Killed
            return real["replace"](path, target)

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            if machine.left != 0:  # a killed process cleans nothing
                real["unlink"](path, missing_ok=missing_ok)

        changed = {
            "open": opened,
            "write_text": lambda path, text, **_: written(path, text.encode()),
            "write_bytes": written,
            "replace": replaced,
            "unlink": unlinked,
        }
        for name, function in changed.items():
            setattr(Path, name, function)
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(Path, name, function)


def journal(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Measure conditions under kills: every finished one once, and the values of an uninterrupted run."""
    keys = [f"condition {i}" for i in range(CONDITIONS)]
    truth = {key: [i / 3, "x" * chance.randrange(200)] for i, key in enumerate(keys)}
    machine, killed, lost, repeated, study = Machine(), 0, 0, 0, 0
    while killed < kills:
        study += 1
        path, ended = folder / f"{study}.jsonl", None

        def measure(missing: list[int], path: Path = path) -> Iterator[Any]:
            nonlocal repeated
            for i in missing:
                # Whatever stands in the file as a whole line was finished.
                repeated += keys[i] in _finished(path)
                yield truth[keys[i]]

        while ended is None:
            left = chance.randrange(1, 4000) if killed < kills else None
            try:
                with machine.running(left), contextlib.redirect_stderr(io.StringIO()):
                    ended = Finished(path).measured("conditions", keys, measure)
            except Killed:
                killed += 1
        lost += sum(value != truth[key] for key, value in zip(keys, ended, strict=True))
    return {"kills": killed, "lost": lost, "repeated": repeated}


def _finished(path: Path) -> set[str]:
    found = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.add(json.loads(line)["key"])
    return found


def replaced(
    folder: Path, kills: int, chance: random.Random, write: Callable[[int], Any], read: Callable[[], int]
) -> dict[str, int]:
    """Replace a file by its next version under kills: at any moment it is a whole one, and never an older one."""
    machine, killed, lost, version = Machine(), 0, 0, 0
    write(0)
    while killed < kills:
        version += 1
        done = False
        while not done:
            try:
                with machine.running(chance.randrange(1, 3000) if killed < kills else None):
                    write(version)
                done = True
            except Killed:
                killed += 1
            lost += read() not in ({version} if done else {version - 1, version})
    return {"kills": killed, "lost": lost, "repeated": 0}


def evidence(version: int) -> list[Evidence]:
    """Return a model's evidence that names the version."""
    counts = Counts(clusters={f"q{i}": (version, 10**6) for i in range(24)})
    own = {"kind": "freeform", "name": "core", "model": f"m{version}", "identity": {"judge": "one"}}
    return [Evidence(**own, measures={"em_rate": counts})]


def baselines(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Update a baseline again and again; its anchor must stay the first version."""

    def version(path: Path) -> int:
        (found,) = baseline.read(path, json.loads(path.read_text()))
        return int(found.model.removeprefix("m"))

    def read() -> int:
        assert version(folder / "logs/baselines/m.anchor.json") == 0, "the anchor moved"
        return version(folder / "logs/baselines/m.json")

    with contextlib.chdir(folder):
        return replaced(folder, kills, chance, lambda number: baseline.write("m", evidence(number)), read)


def outputs(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Write a record again and again (`-o`)."""
    path = folder / "record.json"

    def write(version: int) -> None:
        records.write(Measured(value=float(version), interval=(0.0, 1.0), n=version), path)

    return replaced(folder, kills, chance, write, lambda: int(json.loads(path.read_text())["n"]))


def simulate(kills: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """Return kills, lost and repeated by way of writing; half of the kills hit the journal."""
    chance = random.Random(seed)
    parts = {"journal of conditions": (journal, kills // 2)}
    parts |= {
        "baseline and anchor": (baselines, kills // 4),
        "records": (outputs, kills - kills // 2 - kills // 4),
    }
    found = {}
    for name, (part, number) in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = part(Path(folder), number, chance)
    return found


def main() -> None:
    """Simulate, print a table, keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    found = simulate(given.kills)
    print(f"{'':24}{'kills':>8}{'lost':>8}{'repeated':>10}")
    for name, row in found.items():
        print(f"{name:24}{row['kills']:>8}{row['lost']:>8}{row['repeated']:>10}")
    if given.save:
        runs.save(RESULT, ("numpy",), seed=0, ways=found)


if __name__ == "__main__":
    main()
