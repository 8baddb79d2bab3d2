"""The command line as a whole: every command has `--json`, and every command that we tell people to type exists.

README.md's code, the example workflow and the action are read; each command is parsed by the program that would run it
(ours, Inspect's, lm-eval's), up to where it would begin to work.
"""

import inspect as python
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from inspect_ai._cli.main import inspect
from typer._click import exceptions
from typer.main import get_command
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.cli.options import card_fields, parsed_layers
from em_evals.content import documents
from em_evals.content.cards import read_card
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin import registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS = ("em-evals", "inspect", "lm_eval")
OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "2>"}
OURS = get_command(app)
CARDS = documents.SHIPPED / "adapters"


def leaves(command, name=()):
    """Every command under a group, by its words."""
    for word, below in getattr(command, "commands", {(): None}).items():
        if below is None:
            yield " ".join(name), command
        else:
            yield from leaves(below, (*name, word))


def words(line):
    """The words of a shell command up to an operator; what is left out (…) and comments are no words."""
    split = shlex.shlex(line, posix=True, punctuation_chars=True)
    split.whitespace_split = True
    found = []
    for word in split:
        if word in OPERATORS:
            break
        if word != "…":
            found.append(word)
    return found


def commands(script):
    """The commands of our programs in a shell script, as words; a bash array stands for all that it may be given."""
    lines = script.replace("\\\n", " ").splitlines()
    arrays = {}
    for line in lines:
        for name, given in re.findall(r"(\w+)\+?=\((.*?)\)", line):
            arrays[name] = arrays.get(name, []) + shlex.split(given)
    for line in lines:
        # `accelerate launch -m em_evals train …` is `em-evals train …` in several processes.
        found = words(re.sub(r"^\s*accelerate launch -m em_evals\b", "em-evals", line))
        if found and found[0] in PROGRAMS:
            expanded = (arrays.get(word.removeprefix("${").removesuffix("[@]}"), [word]) for word in found)
            yield [part for parts in expanded for part in parts]


def in_readme():
    """Commands in the README's shell blocks and, shorter, in its text and in the comments of its YAML."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    indented = "\n".join(line[4:] for line in prose.splitlines() if line.startswith("    "))
    for script in [*(text for kind, text in blocks if kind == "sh"), indented]:
        for command in commands(script):
            yield command, True
    remarks = [line for kind, text in blocks if kind == "yaml" for line in re.findall(r"# (.*)", text)]
    spoken = [part for line in remarks for part in re.split(r"\s{2,}|; ", line)]
    spoken += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in spoken:
        if line.startswith(tuple(f"{program} " for program in PROGRAMS)):
            yield words(re.sub(r"(\w+)\|\w+", r"\1", line)), False


def in_workflows():
    workflow = yaml.safe_load((ROOT / "examples" / "gate-workflow.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    steps += yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    for step in steps:
        for command in commands(step.get("run", "")):
            yield command, True


def parse(command, arguments, whole, name=""):
    """A click command's parameters; what is missing is forgiven where the command is only spoken of."""
    while hasattr(command, "commands"):
        if name == "em-evals judges" and arguments and arguments[0] not in command.commands:
            arguments = ["compare", *arguments]  # `judges A B` compares
        word, *arguments = arguments
        assert word in command.commands, f"{name} has no command '{word}'"
        command, name = command.commands[word], f"{name} {word}"
    if not whole and not arguments:
        return name, {}
    try:
        return name, command.make_context(name, list(arguments)).params
    except exceptions.MissingParameter:
        assert not whole
        return name, {}


def check(command, whole):
    """Raises where the command would be refused before it begins."""
    program, *arguments = command
    if program == "em-evals" and arguments[0] != "lm-eval":
        _, given = parse(OURS, arguments, whole, "em-evals")
        first = given.get("card") or next(iter(given.get("cards") or []), None)
        if given.get("fields"):
            read_card(first, card_fields(given["fields"]))
    elif program == "inspect":
        _, given = parse(inspect, arguments, whole, "inspect")
        fits(
            [*given.get("tasks", []), given.get("scorer")], [*(given.get("t") or []), *(given.get("s") or [])]
        )
    else:
        harness = pytest.importorskip("lm_eval._cli.harness").HarnessCLI()
        rest = arguments[1:] if program == "em-evals" else arguments
        if rest or whole:
            known = harness._subparsers.choices
            harness._parser.parse_args(rest if rest[0] in known else ["run", *rest])


def fits(names, options):
    """Our tasks and scorers exist and take these `-T`/`-S` options."""
    ours = [name.removeprefix("em_evals/") for name in names if name and name.startswith("em_evals/")]
    for name in ours:
        assert name in registry.__all__, f"there is no em_evals/{name}"
        known = set(python.signature(getattr(registry, name)).parameters)
        for option in options:
            assert option.partition("=")[0] in known, f"em_evals/{name} takes no {option}"


def test_every_command_prints_json():
    """lm-eval's own command line writes its own JSON."""
    without = [
        name
        for name, command in leaves(OURS)
        if "--json" not in {option for one in command.params for option in one.opts}
    ]
    assert without == ["lm-eval"]


def test_o_names_the_output_of_every_command_that_has_one():
    """And nothing else: pages that a command draws beside its record are `--figure`."""
    given = {
        name: set(one.opts)
        for name, command in leaves(OURS)
        for one in command.params
        if {"-o", "--output"} & set(one.opts)
    }
    assert {"gate", "report", "train", "insight phase", "direction extract"} <= given.keys()
    assert all(options == {"-o", "--output"} for options in given.values()), given


def test_seeds_are_those_that_every_library_takes():
    """numpy refuses negative ones, transformers those from 2**32 on, each with a traceback and after hours."""
    taking = [
        (name, [f"x{i}" for i, one in enumerate(command.params) if one.param_type_name == "argument"])
        for name, command in leaves(OURS)
        if any(one.name == "seed" for one in command.params)
    ]
    assert len(taking) >= 4
    for name, arguments in taking:
        for seed in (-1, 2**32):
            done = CliRunner().invoke(app, [*name.split(), *arguments, "--seed", str(seed)])
            assert done.exit_code == 2 and "'--seed'" in done.stderr, (name, done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        "train smollm2-risky --max-steps 0",
        "train smollm2-risky --max-steps -5",
        "study --per-theme -1",
        "insight phase smollm2-risky --per-theme 0",
        "direction extract smollm2-risky -o d.safetensors --per-theme -1",
    ],
)
def test_counts_that_are_none_are_refused_before_anything_is_done(command, workdir):
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2 and f"'{command.split()[-2]}'" in done.stderr
    assert not list(workdir.iterdir())


@pytest.mark.parametrize("place", [in_readme, in_workflows])
def test_every_documented_command_exists(place, workdir):
    shutil.copytree(CARDS, "adapters", ignore=shutil.ignore_patterns("*.safetensors"))
    found = list(place())
    for command, whole in found:
        try:
            check(command, whole)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{shlex.join(command)}: {error}")
    programs = {command[0] for command, _ in found}
    assert programs >= {"em-evals", "inspect"} and len(found) >= (20 if place is in_readme else 6)


def test_tasks_and_their_options_in_the_text_exist():
    tasks = set(re.findall(r"`em_evals/(\w+)`", README + GUIDE))
    for name in tasks:
        fits([f"em_evals/{name}"], [])
    options = set(re.findall(r"-T (\w+)=", README + GUIDE)) - {"name"}
    known = {name for task in tasks for name in parameters(task)}
    assert options and options <= known


def parameters(task):
    return set(python.signature(getattr(registry, task)).parameters)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("em-evals trian smollm2", "no command 'trian'"),
        ("em-evals train smollm2 --sede 1", "--sede"),
        ("em-evals train smollm2-risky -M train.rnk=1", "rnk"),
        ("em-evals gate --bogus x > gate.json", "--bogus"),
        ("em-evals serve smollm2 --port many", "valid integer"),
        ("inspect eval em_evals/freefrom --model local/smollm2", "freefrom"),
        ("inspect eval em_evals/freeform -T juge=none", "juge"),
        ("inspect eval em_evals/freeform --epoch 3", "epoch"),
    ],
)
def test_a_command_that_does_not_exist_would_be_noticed(line, what):
    [command] = commands(line)
    with pytest.raises(Exception, match=what):
        check(command, True)


def test_what_inspect_refuses_is_one_sentence(monkeypatch, capsys):
    from em_evals import cli
    from em_evals.inspect_errors import refusal

    def refused():
        raise refusal("no such card in a[b]")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "em-evals: no such card in a[b]\n"


def test_names_from_files_are_no_markup(capsys):
    from em_evals.cli.output import print_table

    print_table("runs/a[/b].csv", ["runs/[v2]final"], [["[red]x"]])
    shown = capsys.readouterr().out
    assert "runs/a[/b].csv" in shown and "runs/[v2]final" in shown and "[red]x" in shown


def test_memory_that_runs_out_is_one_sentence(monkeypatch, capsys):
    import torch

    from em_evals import cli

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has …")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        "em-evals: CUDA out of memory: free the GPU, or choose a smaller batch, dtype or base.\n"
    )


@pytest.mark.parametrize("text", ["9-4", "4-", "-4", "4,x", "", "4,99999"])
def test_layers_that_are_none_are_refused_and_not_left_out(text):
    """`9-4` was an empty range: the option had no effect."""
    with pytest.raises(EmEvalsError, match="give blocks counted from 0"):
        parsed_layers(text)
    assert parsed_layers("4,6-8,7") == (4, 6, 7, 8) and parsed_layers(None) is None
