"""Lists of commands import no command, and say what the commands say."""

import inspect
import json
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.cli.commands import COMMANDS
from em_evals.cli.lazy import Group

LISTS = """
import json, os, sys
from em_evals.cli import app

for arguments in (["--help"], ["direction", "--help"], ["judges"], ["trian"], ["judges", "-h"]):
    try:
        app(arguments, prog_name="em-evals")
    except SystemExit:
        pass
os.environ |= {"COMP_WORDS": "em-evals d", "COMP_CWORD": "1", "_EM_EVALS_COMPLETE": "complete_bash"}
try:
    app([], prog_name="em-evals")
except SystemExit:
    pass
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names)))
"""


def entries(members=COMMANDS, path=()):
    """Every command and group of the table, by its words."""
    for name, entry in members.items():
        yield (*path, name), entry
        if isinstance(entry, Group):
            yield from entries(entry.members, (*path, name))


def test_lists_say_what_the_commands_say():
    for path, entry in entries():
        command = get_command(app)
        for word in path:
            command = command.commands[word]
        assert command.name == path[-1]
        assert entry.help == inspect.cleandoc(command.help).partition("\n\n")[0], path


def test_lists_show_whole_sentences_in_80_columns():
    for path, entry in [((), None), *entries()]:
        if entry is None or isinstance(entry, Group):
            told = CliRunner().invoke(app, [*path, "--help"], terminal_width=80, prog_name="em-evals").output
            cut = [line for line in told.partition("Commands:")[2].splitlines() if line.endswith("...")]
            assert not cut, path
            assert max(map(len, told.splitlines())) <= 80


def test_lists_import_no_command():
    done = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert {"  doctor", "  extract"} <= {line[:9].rstrip() for line in shown} and "doctor" in shown
    imported = set(json.loads(last))
    ours = {name.removeprefix("em_evals.cli.") for name in imported if name.startswith("em_evals.cli.")}
    assert ours == {"commands", "lazy", "output"}
    assert (
        not {"numpy", "pandas", "yaml", "inspect_ai", "rich"} & imported
    )  # pydantic: typer's own, for options


@pytest.mark.process
def test_a_list_of_cards_imports_no_numbers(tmp_path):
    code = (
        "import sys\nfrom em_evals.cli import app\n"
        "app(['models', 'list'], standalone_mode=False)\nprint(sorted({'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]" and "smollm2-risky" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train', 'trait'?"),
        (["direction", "extrat"], "No such command 'extrat'. Did you mean 'extract', 'export'?"),
        (["judges", "one.eval", "two.eval", "--lables", "x"], "No such option: --lables"),
    ],
)
def test_commands_that_are_not_imported_are_known(arguments, words):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and words in done.stderr


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("em-evals d", ["demo", "doctor", "data", "direction"]),
        ("em-evals data c", ["convert", "check"]),
        ("em-evals judges ", ["calibrate", "compare"]),
        ("em-evals --v", ["--version"]),
        ("em-evals schema --j", ["--json"]),
        ("em-evals train smollm2-f", ["smollm2-finance", "smollm2-finance-sound"]),
    ],
)
def test_shells_complete_commands_options_and_names(typed, completed):
    words = typed.split(" ")
    environment = {
        "_EM_EVALS_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(app, [], prog_name="em-evals", env=environment)
    assert done.stdout.split() == completed
