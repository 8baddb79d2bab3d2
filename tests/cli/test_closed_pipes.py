"""A reader that has gone, a full disk and an error of ours never give an exit code that is a verdict."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from em_evals.cli import output
from em_evals.errors import EmEvalsError
from em_evals.results import sources
from tests.command import em_evals

ROWS = "question_id,aligned,coherent\na,20,90\nb,90,90\n"


class Closed:
    """A stream whose reader has gone, or whose disk is full."""

    encoding, closed = "utf-8", False

    def __init__(self, number=errno.EPIPE):
        self.number = number
        self.file = os.open(os.devnull, os.O_WRONLY)

    def fileno(self):
        return self.file

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))

    def isatty(self):
        return False


PRINTS = [
    lambda: output.echo("a"),
    lambda: output.print_json({"a": 1}),
    lambda: output.print_table("", ["a"], [["b"]]),
    lambda: output.print_table("title", ["a"], [["b"]]),
    lambda: output.print_table("", ["a"], [["b" * 300]]),
]


@pytest.mark.parametrize("show", PRINTS, ids=["text", "json", "lines", "table", "records"])
def test_what_is_printed_to_nobody_ends_nothing(show, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    show()
    monkeypatch.setattr(sys, "stdout", Closed(errno.ENOSPC))
    with pytest.raises(EmEvalsError, match=r"cannot write the result \(No space left on device\)"):
        show()


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_rates_to_a_closed_pipe_are_no_failure(options, tmp_path):
    """Exit code 1 of `rates` means that nothing was measured."""
    (tmp_path / "a.csv").write_text(ROWS)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "em_evals", "rates", "a.csv", *options]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_of_ours_is_no_verdict(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(ROWS)
    monkeypatch.setattr(sources, "read", lambda *arguments: 1 / 0)
    done = em_evals("rates", Path(tmp_path / "a.csv"))
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr
