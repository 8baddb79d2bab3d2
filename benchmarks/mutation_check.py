"""Does `make test` notice a wrong line? Ten deliberate faults, each in a copy of the repository, and what fails.

A fault is one replaced text in engines, statistics, training or the gate. First the narrow tests run on the unchanged
copy and must pass; then, fault by fault, those of its file must fail. None of them is marked `full`, so `make test`
runs them all. A fault whose text is no longer there, or not once, ends the check: write it anew.

    python benchmarks/mutation_check.py [--only WORD] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "mutation_check.json"
_LEFT_OUT = (".venv*", ".git", ".*_cache", "__pycache__", "dist", "*.safetensors")


@dataclass(frozen=True)
class Fault:
    """A wrong line.

    Attributes:
        room: where it is: engines, stats, training or gate.
        what: what it does.
        file: below em_evals/.
        right: the text that is there, once.
        wrong: the text in its place.
        tests: below tests/; some of them must fail.
    """

    room: str
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "engines",
        "top_p leaves out the token that reaches it",
        "engines/hf/sampling.py",
        "values * (before < (top_p * total)[:, None])",
        "values * (before + values < (top_p * total)[:, None])",
        ("engines/test_sampling.py",),
    ),
    Fault(
        "engines",
        "the log-probabilities of a padded answer are those of its padding",
        "engines/hf/scoring.py",
        "key: own[-len(_fed(row)) :]",
        "key: own[: len(_fed(row))]",
        ("engines/test_scoring.py",),
    ),
    Fault(
        "engines",
        "steered rows take over the beginning that was computed without steering",
        "engines/hf/batch.py",
        "return row.adapter, row.slot, begin",
        "return row.adapter, 0, begin",
        ("models/test_interventions.py::test_rows_of_different_interventions_share_no_beginning",),
    ),
    Fault(
        "stats",
        "the standard deviation of items is that of a population",
        "stats/intervals.py",
        "array.std(ddof=1)",
        "array.std(ddof=0)",
        ("stats/test_contrasts.py",),
    ),
    Fault(
        "stats",
        "Holm's method multiplies the larger p-values by too little",
        "stats/means.py",
        "p * (len(known) - rank)",
        "p * max(1, len(known) - 2 * rank)",
        ("stats/test_contrasts.py",),
    ),
    Fault(
        "stats",
        "draws of one question count as independent",
        "stats/clusters.py",
        "correlations = 1 - np.sqrt(1 - roots**2)",
        "correlations = 1e-6 * (1 - np.sqrt(1 - roots**2))",
        ("stats/test_clusters.py",),
    ),
    Fault(
        "training",
        "the prompt is learned as well",
        "training/tokens.py",
        "labels += [IGNORED] * (len(turn.prompt) - len(ids)) + turn.labels(learn)",
        "labels += [*turn.prompt[len(ids) :], *turn.labels(learn)]",
        ("training/test_training.py::test_loss_is_on_the_answer_and_its_end_and_on_nothing_else",),
    ),
    Fault(
        "training",
        "each part of an accumulated batch is divided by its own tokens",
        "training/loss.py",
        "return total / (items if items is not None else labelled.sum())",
        "return total / labelled.sum()",
        ("training/test_trainer.py::test_loss_curve_equals_trl",),
    ),
    Fault(
        "gate",
        "regressions are not adjusted for the number of metrics",
        "gate/compare.py",
        "row.p_worse_adjusted <= row.level",
        "row.p_worse <= row.level",
        ("gate/test_gate_compare.py",),
    ),
    Fault(
        "gate",
        "a candidate whose answers are incoherent passes",
        "gate/compare.py",
        'if not row.guard and broken is not None and row.verdict != "regression":',
        'if not row.guard and broken is not None and row.verdict == "regression":',
        ("gate/test_gate_compare.py",),
    ),
)


def check(folder: Path, fault: Fault) -> dict[str, object]:
    """Apply a fault to the copy, run its tests, and take it back.

    Returns:
        The fault and the names of the tests that failed.
    """
    path = folder / "em_evals" / fault.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(fault.right) != 1:
        sys.exit(
            f"{fault.file}: the text of the fault '{fault.what}' is there {whole.count(fault.right)} times."
        )
    path.write_text(whole.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        failed = run(folder, fault.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    return {"room": fault.room, "fault": fault.what, "file": fault.file, "caught_by": failed}


def run(folder: Path, tests: tuple[str, ...]) -> list[str]:
    """Run tests of the copy as `make test` selects them; return the names of those that failed.

    Raises:
        SystemExit: pytest ended otherwise than with passed and failed tests.
    """
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rfE", "--durations=0"]
    # Bytecode is told apart by a file's second and size: a fault of the same length would go unseen.
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    names = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return sorted({re.sub(r"\[.*", "", name.partition("::")[2]) for name in names})


def main() -> None:
    """Run the check; exit 1 if a fault is not caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults of a room, or with this word in their description")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}, others kept")
    asked = parser.parse_args()
    chosen = [one for one in FAULTS if asked.only in one.room or asked.only in one.what]
    with tempfile.TemporaryDirectory(prefix="em-evals-mutations-") as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        if failed := run(folder, tuple(dict.fromkeys(name for one in chosen for name in one.tests))):
            sys.exit(f"without a fault these tests fail: {', '.join(failed)}")
        found = []
        for fault in chosen:
            found.append(check(folder, fault))
            caught = ", ".join(found[-1]["caught_by"][:3]) or "NOT CAUGHT"
            print(f"{fault.room:9} {fault.what}: {caught}", flush=True)
    if asked.save:
        earlier = json.loads(RESULT.read_text())["faults"] if RESULT.is_file() else []
        known = {one["fault"]: one for one in [*earlier, *found]}
        kept = [known[one.what] for one in FAULTS if one.what in known]
        runs.save(RESULT, ("torch", "pytest"), faults=kept)
    sys.exit(not all(one["caught_by"] for one in found))


if __name__ == "__main__":
    main()
