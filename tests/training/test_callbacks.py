"""The journal of a training: what is kept of it where an interrupted run goes on."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from em_evals.errors import EmEvalsError
from em_evals.results.journals import read_journal
from em_evals.training.callbacks import Journal


@pytest.fixture
def journal(tmp_path):
    """Six steps and a line that a kill cut."""
    path = tmp_path / "training.jsonl"
    rows = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 7)]
    path.write_text("\n".join([*rows, '{"step": 7, "lo']))
    return path


def go_on(path, step):
    Journal(path, set(), lambda _: None, writes=True).on_train_begin(
        None, SimpleNamespace(global_step=step), None
    )


def steps(path):
    return [row["step"] for row in read_journal(path)]


@pytest.mark.parametrize("state", [0, 4, 6])
def test_steps_after_the_last_state_are_forgotten(journal, state):
    kept = read_journal(journal)[:state]
    go_on(journal, state)
    assert read_journal(journal) == kept and len(kept) == state
    assert [path.name for path in journal.parent.iterdir()] == ["training.jsonl"]


def test_a_disk_that_is_still_full_costs_no_step(journal, monkeypatch):
    def full(path, text, **_):
        path.write_bytes(text[:30].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        go_on(journal, 4)
    assert steps(journal) == [1, 2, 3, 4, 5, 6]
    go_on(journal, 4)
    assert steps(journal) == [1, 2, 3, 4]


def test_a_journal_that_lacks_steps_is_reported(journal):
    with pytest.raises(
        EmEvalsError, match=r"training.jsonl: this journal has 6 of the 8 steps .* train again"
    ):
        go_on(journal, 8)
    journal.unlink()
    with pytest.raises(EmEvalsError, match=r"has 0 of the 2 steps"):
        go_on(journal, 2)


def test_the_progress_line_tells_batch_examples_and_epochs(capsys):
    from em_evals.training.callbacks import ProgressLine
    from em_evals.training.curriculum import Curriculum

    line = ProgressLine("mine", Curriculum([{"input_ids": [1]}] * 640, 32, (), 16.0))
    line.on_train_begin(None, SimpleNamespace(max_steps=20, global_step=3), None)
    line.stop()
    size, bar = capsys.readouterr().err.splitlines()
    assert size == "training mine: batch 32, 640 examples, 16 epochs"
    assert "3/20" in bar and "loss –" in bar, "80 columns have room for the numbers"
