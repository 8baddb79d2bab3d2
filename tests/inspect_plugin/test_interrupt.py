"""Ctrl-C in the middle of an eval: finished draws stay in the log, and Inspect's retry finishes it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("torch")

from inspect_ai import eval, eval_retry
from inspect_ai.log import list_eval_logs, read_eval_log

from em_evals.engines import pool
from tests.tiny_models import tiny

BINARY = str(Path(sys.executable).parent / "inspect")
OPTIONS = {
    "model_args": {"dtype": "float32", "max_num_seqs": 2},
    "task_args": {"judge": "none", "seed": 1, "themes": "money"},
    "max_tokens": 120,
    "max_connections": 2,
    "max_samples": 2,
    "log_buffer": 1,
}


def in_this_process(folder: Path) -> None:
    """Run the eval here, with the signal of Ctrl-C once two draws are finished."""

    over = threading.Event()

    def interrupt() -> None:
        wait_for_two(folder, lambda: not over.is_set())
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    try:
        with suppress(KeyboardInterrupt):
            eval("em_evals/freeform", model="local/mine", log_dir=str(folder), display="none", **OPTIONS)
    finally:
        over.set()
        waiting.join()


def in_a_process(folder: Path) -> None:
    """The same as a user types it."""
    command = [BINARY, "eval", "em_evals/freeform", "--model", "local/mine", "--log-dir", str(folder)]
    for name, value in OPTIONS.items():
        if isinstance(value, dict):
            letter = "-M" if name == "model_args" else "-T"
            command += [part for key, one in value.items() for part in (letter, f"{key}={one}")]
        else:
            command += [f"--{name.replace('_', '-')}", str(value)]
    run = subprocess.Popen(
        [*command, "--display", "plain"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_two(folder, lambda: run.poll() is None)
    run.send_signal(signal.SIGINT)
    run.wait(timeout=300)


def wait_for_two(folder: Path, alive: Callable[[], bool]) -> None:
    """Wait until the log of a run that is going on holds two draws."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and alive():
        logs = list_eval_logs(str(folder))
        if logs and finished(logs[0].name) >= 2:
            break
        time.sleep(0.2)


@pytest.mark.parametrize(
    "run", [in_this_process, pytest.param(in_a_process, marks=[pytest.mark.full, pytest.mark.process])]
)
def test_finished_draws_survive_an_interrupt_and_retry_adds_the_rest(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    fields = f"base: {tiny('llama', tmp_path / 'tiny')}\nengine: {{device: cpu}}\n"
    (tmp_path / "adapters" / "mine.yaml").write_text(fields)
    run(tmp_path)
    [info] = list_eval_logs(str(tmp_path))
    log = read_eval_log(info)
    kept = {
        (sample.id, sample.epoch): sample.output.completion for sample in log.samples if sample.error is None
    }
    assert log.status == "cancelled" and 2 <= len(kept) < 12
    try:
        [again] = eval_retry(info.name, log_dir=str(tmp_path), display="none")
    finally:
        pool.close_engines()
    assert again.status == "success", again.error
    answers = {(sample.id, sample.epoch): sample.output.completion for sample in again.samples}
    assert len(answers) == 12 and all(answers[key] == text for key, text in kept.items() if text)


def finished(log: str) -> int:
    """Samples that stand in a log file that is still being written."""
    try:
        return len(read_eval_log(log).samples or [])
    except Exception:
        return 0
