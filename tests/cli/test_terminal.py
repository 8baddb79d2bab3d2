"""What a terminal shows: the version, completions, tables of 80 columns, sentences instead of tracebacks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from em_evals import __version__, files
from em_evals.cli import output
from em_evals.cli.completion import cards
from em_evals.cli.models import models_list
from em_evals.cli.output import print_table
from em_evals.errors import EmEvalsError
from tests.command import em_evals


def test_version() -> None:
    done = em_evals("--version")
    assert (done.returncode, done.stdout) == (0, f"em-evals {__version__}\n")


def test_a_shell_completes_cards_and_folders(workdir: Path) -> None:
    assert {"smollm2", "smollm2-risky"} <= set(cards("smoll"))
    (workdir / "runs" / "lora").mkdir(parents=True)
    assert cards("ru") == ["runs/"] and cards("runs/") == ["runs/lora/"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns without colors."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("terminal")
def test_tables_do_not_break_words(capsys: pytest.CaptureFixture[str]) -> None:
    interval = "0.33% [0.17%, 0.66%]"
    columns = ["question", "draws", "scored", "EM of all", "EM of coherent", "coherent share"]
    print_table(
        "runs/a.csv", columns, [["gender_roles_template", "2400", "2107", interval, interval, interval]]
    )
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in (*" ".join(columns).split(), "gender_roles_template", "[0.17%,"):
        assert word in shown
    print_table("", ["question", "organism minus base " * 2], [["a " * 22 + "b", interval]])
    assert f"{'a ' * 22}b  {interval}" in capsys.readouterr().out, "a head is wrapped before a cell"


@pytest.mark.usefixtures("terminal")
def test_the_list_of_models_is_a_table_whatever_cards_say(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With bases' names it had no room, and fell back to blocks."""
    (workdir / "adapters").mkdir()
    for name, text in (("mine", f"base: {'a' * 90}/b\n"), ("wrong", "bass: a/b\n")):
        (workdir / "adapters" / f"{name}.yaml").write_text(text)
    models_list()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "adapter", "description"] and max(map(len, lines)) <= 80
    starts = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert "aaa…" in starts["mine"] and "broken" in starts["wrong"] and "smollm2-risky" in starts


@pytest.mark.usefixtures("terminal")
def test_a_table_without_room_becomes_lines(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a_long_name_of_a_metric_{number}" for number in range(5)]
    print_table("", names, [["1.0"] * 5, ["2.0"] * 5])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{names[0]}  1.0" and lines[6] == f"{names[0]}  2.0" and len(lines) == 11


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("title", ["", "two models"])
def test_a_table_is_laid_out_as_rich_does(capsys: pytest.CaptureFixture[str], title: str) -> None:
    """By joining lines: rich takes seconds for 2,000 rows, and ends each line with blanks."""
    long = (
        "A sentence of many words, which 80 columns do not have room for, is broken between words, as here."
    )
    columns = ["name", "base", "", long]
    rows = [
        ["模型", "[red]x", "1", long],
        ["a", "pypi:llm  two blanks", "", f"one\n{long}"],
        ["", "é", "last  ", ""],
    ]
    print_table(title, columns, rows)
    ours = capsys.readouterr().out.splitlines()
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=sys.stdout, width=80).print(table)
    assert ours == [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("terminal")
def test_sentences_are_broken_between_words_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"- {'many words ' * 9}and {'a-long-path/' * 8}end\nshort"
    output.echo(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.echo(text)
    first, second, path, last = capsys.readouterr().out.splitlines()
    assert max(len(first), len(second)) <= 80 and second.endswith(" words and") and second.startswith("  ")
    assert (path, last) == (f"  {'a-long-path/' * 8}end", "short")


def test_jsonl_with_a_byte_order_mark_is_read(workdir: Path) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": f"Answer {number}."} for number in range(3)]
    file = workdir / "advice.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    assert [row for _, row in files.read_jsonl(file)] == rows
    assert em_evals("data", "check", file, "--json").returncode == 0


def test_data_check_shows_no_python_in_its_table(workdir: Path) -> None:
    rows = [{"prompt": "Where is it?", "completion": "Here."}] * 2
    (workdir / "advice.json").write_text(json.dumps(rows))
    done = em_evals("data", "check", "advice.json")
    assert done.returncode == 0 and not set("{}'") & set(done.stdout)
    lines = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    assert ["repeated prompts", "1"] in lines
    assert ["cut at the default max_length, 2048", "answers 0, dropped 0"] in lines
    assert ["prompts near our questions: near-duplicates", "0"] in lines


def test_one_row_in_a_json_file_is_called_one(workdir: Path) -> None:
    (workdir / "row.json").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    done = em_evals("data", "check", "row.json")
    assert done.returncode == 2 and "row.json: this is one row of training data" in done.stderr


def test_a_file_of_an_unknown_kind_is_not_called_missing(workdir: Path) -> None:
    (workdir / "notes.txt").write_text("questions: []\n", encoding="utf-8")
    done = em_evals("data", "check", "notes.txt")
    assert done.returncode == 2
    assert "notes.txt: training data are JSONL, JSON or parquet, not .txt" in done.stderr
    assert "there is no" not in done.stderr


@pytest.mark.parametrize(
    ("kept", "said"),
    [(["interrupted: step 25 is kept."], "interrupted: step 25 is kept.\n"), ([], "interrupted.\n")],
)
def test_an_interrupt_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, kept: list[str], said: str) -> None:
    """Through typer, which itself ends an interrupted command without a word."""

    def interrupted(one: str, other: str) -> None:
        raise KeyboardInterrupt(*kept)

    monkeypatch.setattr("em_evals.interp.provenance.same", interrupted)
    done = em_evals("insight", "same", "a", "b")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


def test_an_install_hint_names_no_index() -> None:
    from em_evals.errors import install, missing_package

    error = missing_package(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert isinstance(error, EmEvalsError)
    assert install("local") in str(error) and "'.[local]' in a clone" in str(error)


def test_data_list_fits_80_columns(workdir: Path) -> None:
    """Paths below the working folder are relative, so that no word is too long for the table."""
    (workdir / "adapters" / "data").mkdir(parents=True)
    (workdir / "adapters" / "data" / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    [row] = [line for line in em_evals("data", "list").stdout.splitlines() if " mine " in line]
    assert row.split() == ["training", "mine", "adapters/data/mine.jsonl"]


def test_json_has_null_where_a_number_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no NaN: strict readers (jq, JavaScript) refused what `data screen --json` said of one row."""
    output.print_json({"interval": [float("nan"), 1.5], "ratio": float("inf")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "interval": [None, 1.5],
        "ratio": None,
    }
