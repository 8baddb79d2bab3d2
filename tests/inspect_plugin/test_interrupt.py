"""Ctrl-C in the middle of an eval: finished draws stay in the log, and Inspect's retry finishes it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from inspect_ai import eval_retry
from inspect_ai.log import list_eval_logs, read_eval_log

from em_evals.engines import pool
from tests.tiny_models import tiny

BINARY = str(Path(sys.executable).parent / "inspect")
FP32 = ["-M", "dtype=float32", "-M", "max_num_seqs=2"]


@pytest.mark.process
def test_finished_draws_survive_an_interrupt_and_retry_adds_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    fields = f"base: {tiny('llama', tmp_path / 'tiny')}\nengine: {{device: cpu}}\n"
    (tmp_path / "adapters" / "mine.yaml").write_text(fields)
    command = [
        BINARY,
        "eval",
        "em_evals/freeform",
        "--model",
        "local/mine",
        *FP32,
        "-T",
        "judge=none",
        "-T",
        "seed=1",
    ]
    command += ["-T", "themes=money", "--max-tokens", "300", "--max-connections", "2", "--max-samples", "2"]
    command += ["--log-dir", str(tmp_path), "--log-buffer", "1", "--display", "plain"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        logs = list_eval_logs(str(tmp_path))
        if logs and finished(logs[0].name) >= 2:
            break
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    run.wait(timeout=300)
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
