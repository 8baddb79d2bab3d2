"""No command overwrites what it reads, whatever the command."""

import json
import os
import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.cli.overwriting import WRITTEN
from tests.cli.test_lazy import entries


def command_of(path):
    command = get_command(app)
    for word in path:
        command = command.commands[word]
    return command


def writers():
    """Every command with an output."""
    for path, _ in entries():
        if "output" in {param.name for param in getattr(command_of(path), "params", [])}:
            yield path


def call(path, name, output):
    """Return a call that reads one file and writes another."""
    words = list(path)
    for param in command_of(path).params:
        if param.name == "output":
            words += [param.opts[-1], output]
        elif param.param_type_name == "argument":
            words.append(name)
        elif param.required or (path == ("gate",) and param.name == "candidate"):
            words += [param.opts[-1], name]
    return words


@pytest.mark.parametrize("path", writers(), ids=" ".join)
def test_a_command_does_not_overwrite_what_it_reads(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text("kept")
    Path("link.json").symlink_to("a.json")
    for output in ("a.json", "link.json", str(tmp_path / "a.json")):
        done = CliRunner().invoke(app, call(path, "a.json", output))
        assert "this is one of the inputs" in str(done.exception), (output, done.output)
    assert Path("a.json").read_text() == "kept" and Path("link.json").is_symlink()


@pytest.mark.parametrize("place", ["pipe", "elsewhere"])
def test_an_output_that_cannot_be_one_is_refused_before_the_command_begins(place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.mkfifo("pipe")
    (tmp_path / "there").write_text("kept")
    Path("elsewhere").symlink_to(tmp_path / "there")
    done = CliRunner().invoke(app, ["insight", "phase", "none", "-o", place])
    assert "not a regular file" in str(done.exception) or "this is a link to" in str(done.exception)
    assert (tmp_path / "there").read_text() == "kept"


def test_a_weighted_direction_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.safetensors").write_text("kept")
    done = CliRunner().invoke(app, ["direction", "combine", "2*d.safetensors", "-o", "d.safetensors"])
    assert "this is one of the inputs" in str(done.exception)


def test_an_output_of_an_earlier_call_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}]}
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    for _ in range(2):
        assert CliRunner().invoke(app, ["data", "convert", "a.jsonl", "-o", "b.jsonl"]).exit_code == 0
    assert json.loads(Path("b.jsonl").read_text()) == row


def test_every_file_that_a_command_writes_is_checked():
    """Options whose help says which kind of file they write are in `WRITTEN`."""
    found = {
        param.name
        for path, _ in entries()
        for param in getattr(command_of(path), "params", [])
        if re.match(r"Write [^.]*\((CSV|HTML|JSONL?)", getattr(param, "help", None) or "")
    }
    assert found == WRITTEN
