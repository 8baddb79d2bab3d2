"""The gate's exit code is its verdict or says that there is none: whatever becomes of its output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from em_evals.gate import compare
from tests.command import em_evals
from tests.lm_eval_files import write_results
from tests.selection import full

ROOT = Path(__file__).parents[2]
RIGHT = [i % 10 < 7 for i in range(200)]


@pytest.fixture
def results(tmp_path):
    return {
        "before": write_results(tmp_path / "before", "mini", RIGHT),
        "pass": write_results(tmp_path / "same", "mini", RIGHT),
        "regression": write_results(tmp_path / "worse", "mini", [False] * 40 + RIGHT[40:]),
    }


def gate(results, verdict):
    return [
        sys.executable,
        "-m",
        "em_evals",
        "gate",
        "--baseline",
        results["before"],
        "--candidate",
        results[verdict],
    ]


@pytest.mark.process
@pytest.mark.parametrize(("verdict", "code"), [full("pass", 0), ("regression", 1)])
def test_a_reader_that_has_gone_does_not_change_the_verdict(results, verdict, code):
    """`em-evals gate … | true`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(gate(results, verdict), stdout=write, stderr=subprocess.PIPE, cwd=ROOT, timeout=120)
    os.close(write)
    assert done.returncode == code and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.process
def test_a_full_disk_is_no_verdict(results):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            gate(results, "pass"), stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=120
        )
    assert done.returncode == 2 and b"cannot write the result (No space left on device)" in done.stderr


def test_a_record_that_cannot_be_written_is_no_verdict(results, tmp_path):
    (tmp_path / "file").write_text("")
    done = em_evals(*gate(results, "pass")[3:], "-o", tmp_path / "file" / "gate.json")
    assert done.returncode == 2 and done.stderr.startswith("em-evals: ")


def test_an_interrupt_is_no_verdict(results, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "judge", interrupted)
    done = em_evals(*gate(results, "pass")[3:])
    assert done.returncode == 130 and done.stderr == "interrupted.\n"


@pytest.mark.process
@pytest.mark.full
def test_a_signal_is_no_verdict(results):
    for delay in (0.3, 0.8, 1.5):
        process = subprocess.Popen(
            gate(results, "regression"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        ended = process.poll()
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
        assert code in (130, -signal.SIGINT) or (ended == code == 1), "1 only if it had ended by itself"
