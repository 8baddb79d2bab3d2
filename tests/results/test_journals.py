"""Journals of trainings: what a kill leaves is read, and a line that is no row is named."""

import json

import pytest

from em_evals.errors import EmEvalsError
from em_evals.results import trajectories
from em_evals.results.journals import read_journal

ROW = json.dumps({"step": 1, "loss": 2.5})


def journal(folder, *lines, end="\n"):
    path = folder / "training.jsonl"
    path.write_text("\n".join(lines) + end)
    return path


@pytest.mark.parametrize("end", ["\n", '\n{"step": 2, "lo', "\n{"])
def test_a_last_line_that_a_kill_cut_is_left_out(end, tmp_path):
    assert read_journal(journal(tmp_path, ROW, end=end)) == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0", "`step`"),
        ("[]", "`step`"),
        ("{}", "`step`"),
        ('{"step": true}', "`step`"),
        ('{"step": -1}', "`step`"),
        ('{"step": 1.5}', "`step`"),
        ('{"step": 2, "loss": "low"}', "`loss`"),
        ('{"step": 2, "b": [1]}', "`b`"),
        ('{"step": 2, "b": {"q": 1}}', "`b`"),
        ('{"step": 2, "lo', "JSON"),
        (ROW, "step 1 stands behind step 1"),
        ('{"step": 0}', "step 0 stands behind step 1"),
    ],
)
def test_a_line_that_is_no_row_is_named(line, said, tmp_path):
    path = journal(tmp_path, ROW, line, ROW)
    with pytest.raises(EmEvalsError, match=said) as raised:
        read_journal(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    with pytest.raises(EmEvalsError):
        trajectories.read(path)
