"""Names, answers and errors of others, wherever they are printed: harmless, and still readable."""

import json

import pytest
from typer.testing import CliRunner

from em_evals import shown
from em_evals.cli import app
from em_evals.cli.output import echo, print_json, print_table
from em_evals.errors import EmEvalsError
from em_evals.grading.failures import one_line
from em_evals.inspect_errors import refusal, said
from em_evals.report.tables import Table

HOSTILE = [
    "\x1b[2J\x1b[1;32mpass\x1b[0m",
    "\x1b]8;;http://x\x07click\x1b]8;;\x07",
    "\x9b31m",
    "a\rpass",
    "::error file=a::made up",
    "a\n::set-output name=x::y",
    "##[error]x",
    "x ##vso[task.setvariable variable=a]b",
    "##teamcity[buildStatus]",
    "\u202epass\u202c",
    "pa\u200bss",
    "\U000e0041",
    "\ud800",
]


def harmless(printed):
    assert not any((ord(one) < 32 and one not in "\n\t") or 127 <= ord(one) < 160 for one in printed)
    assert not any(one in printed for one in "\u202e\u202c\u200b\u2028\ufeff\U000e0041\ud800")
    lines = [line.lstrip() for line in printed.splitlines()]
    assert not any(line.startswith(("::", "##[")) for line in lines)
    assert "##vso[" not in printed and "##teamcity[" not in printed


@pytest.mark.parametrize("raw", HOSTILE)
def test_nothing_that_a_terminal_or_a_ci_runner_obeys_is_printed(raw, capsys):
    echo(raw)
    print_table(raw, [raw, "b"], [[raw, raw]])
    harmless(capsys.readouterr().out)
    harmless(shown.line(raw)), harmless(one_line(raw)), harmless(said(refusal(raw)))


@pytest.mark.parametrize("raw", HOSTILE)
def test_json_holds_the_same_value_and_nothing_that_a_terminal_obeys(raw, capsys):
    print_json({"name": raw})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": raw}
    harmless(printed.replace("##", "# #"))  # JSON's own quote stands before it in the line


def test_readable_text_is_unchanged(capsys):
    for text in ("naïve – 日本語 🙂 é", "a::b c::d", "# heading ## two", "tab\tand\nline", "50% [0.1, 0.2]"):
        assert shown.text(text) == text
    assert shown.text("::error::x") == "\\::error::x" and shown.text("\x1b[31m") == "\\x1b[31m"


@pytest.mark.parametrize("raw", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", " =1", "|calc", "%0a", "\n=1"])
def test_cells_that_a_spreadsheet_would_compute_are_text(raw, tmp_path):
    assert shown.cell(raw) == f"'{raw}"
    path = Table("t", "caption", ("model", "value"), [(raw, raw)]).write(tmp_path)
    assert f"'{raw}" in path.read_bytes().decode()


@pytest.mark.parametrize("raw", ["-1.5", "+3", "1e-5", "-inf", "-", "a=b", "em_rate", "50%", ""])
def test_numbers_and_words_stay_as_they_are_in_cells(raw):
    assert shown.cell(raw) == raw


def test_a_commands_error_is_harmless(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "\x1b[31mred.yaml").write_text(
        'base: a/b\ndescription: "x\\e[2J\\n::error::y"\n'
    )
    (tmp_path / "adapters" / "bad.yaml").write_text('base: a/b\n"\\n::warning::x": 1\n')
    found = CliRunner().invoke(app, ["models", "list"])
    assert found.exit_code == 0 and "red" in found.output
    harmless(found.output)


@pytest.mark.parametrize("raw", [*HOSTILE, "a\nb", "a\tb\r\n"])
def test_an_error_is_one_line_whatever_it_quotes(raw):
    for error in (EmEvalsError(f"no model '{raw}'"), EmEvalsError("no", f"{raw}.yaml", 3)):
        harmless(str(error))
        assert "\n" not in str(error) and str(EmEvalsError(str(error))) == str(error)
    assert str(EmEvalsError("naïve – 日本語\u00a0🙂")) == "naïve – 日本語\u00a0🙂"
