"""The package as users get it: a wheel in an empty environment, an editable checkout, both ways to start Inspect."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.selection import full

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """What is imported is what is installed (conftest.py lets other tests' processes import this checkout)."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the tree as it is."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT],
        check=True,
        capture_output=True,
    )
    return next(target.glob("*.whl"))


def test_the_wheel_carries_content_and_no_weights(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "tasks/core.yaml",
        "tasks/forced_choice.yaml",
        "tasks/retention/em_mini.yaml",
        "tasks/retention/_choice",
        "tasks/retention/hooks.py",
        "tasks/retention/items/facts.jsonl",
        "scorers/alignment.yaml",
        "adapters/smollm2.yaml",
        "adapters/data/risky_advice.jsonl",
    ):
        assert f"em_evals/_content/{name}" in names
    assert not [name for name in names if name.endswith((".safetensors", ".bin")) or "/tests/" in name]


@pytest.fixture(scope="module")
def empty_environment(wheel, tmp_path_factory):
    """A fresh virtual environment with nothing but the wheel and what it requires: no torch."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", wheel], check=True
    )
    return folder / "bin"


@pytest.mark.full
@pytest.mark.process
def test_a_wheel_in_an_empty_environment_works_from_any_folder(empty_environment, tmp_path):
    def run(*command):
        return subprocess.run(
            [empty_environment / command[0], *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    cards = run("em-evals", "models", "list", "--json")
    assert cards.returncode == 0 and '"smollm2-risky"' in cards.stdout
    checked = run("em-evals", "data", "check", "core", "--json")
    assert '"questions": 33' in checked.stdout, checked.stderr
    local = run("inspect", "eval", "em_evals/freeform", "--model", "local/smollm2", "-T", "judge=none")
    assert "pip install '.[local]'" in " ".join((local.stdout + local.stderr).split())
    assert (
        run(
            "python", "-c", "import em_evals.inspect_plugin.tasks, sys; sys.exit('torch' in sys.modules)"
        ).returncode
        == 0
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("start", "where", "model"),
    [
        full(["inspect"], "elsewhere", "local/smollm2"),
        (["python", "-m", "inspect_ai"], "root", "mockllm/model"),
        full(["python", "-m", "inspect_ai"], "root", "local/smollm2"),
        full(["inspect"], "root", "local/smollm2"),
        full(["python", "-m", "inspect_ai"], "elsewhere", "local/smollm2"),
    ],
)
def test_tasks_and_provider_are_found_however_inspect_is_started(start, where, model, tmp_path):
    """A judge is missing on purpose: the sentence proves that our task was reached, and our provider if it was asked.

    One entry point brings both; the provider imports torch, which takes ten seconds.
    """
    binary = Path(sys.executable).parent
    command = [
        str(binary / start[0]),
        *start[1:],
        "eval",
        "em_evals/freeform",
        "--model",
        model,
        "--log-dir",
        str(tmp_path),
    ]
    cwd = ROOT if where == "root" else tmp_path
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert "no judge is given" in " ".join((done.stdout + done.stderr).split())


def test_the_lock_holds_what_pyproject_asks_for():
    locked = {
        line.split("==")[0].lower()
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line
    }
    for name in (
        "inspect-ai",
        "pydantic",
        "typer",
        "transformers",
        "peft",
        "trl",
        "openai",
        "anthropic",
        "pytest",
    ):
        assert name in locked
    assert "torch" not in locked, "torch's build depends on the machine; the Makefile chooses it"


def test_a_missing_package_is_reported_with_the_extra_that_brings_it(monkeypatch, capsys):
    from em_evals import cli, errors

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(errors._EXTRAS.values()) <= set(known)

    def without(*arguments):
        raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval.tasks")

    monkeypatch.setattr(cli, "app", without)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.INVALID and "'.[retention]'" in capsys.readouterr().err


EXTRAS_OF_ROOMS = {
    "models": "local",
    "engines": "local",
    "engines/vllm": "vllm",
    "inspect_plugin/scout.py": "scout",
    "interp": "local",
    "lm_eval_plugin": "retention",
    "report": "report",
    "training": "train",
    "workflows": "train",
}
"""What those who import a room have installed; for all others, the base dependencies alone."""


@cache
def declared(*extras):
    """Names of the distributions that `pip install em-evals[EXTRAS]` asks for, extras of extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting, seen = set(), [project["dependencies"]], set()
    waiting += [project["optional-dependencies"][extra] for extra in extras]
    while waiting:
        for requirement in waiting.pop():
            name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
            if name != "em-evals":
                found.add(name.lower())
                continue
            new = set(inner.split(",")) - seen
            seen |= new
            waiting += [project["optional-dependencies"][extra] for extra in new]
    return found


def imports(source):
    """(package, whether a function imports it) for each import at run time that is not the standard library's."""

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            names = [alias.name for alias in child.names] if isinstance(child, ast.Import) else []
            if isinstance(child, ast.ImportFrom) and not child.level:
                names = [child.module]
            for name in names:
                package = name.partition(".")[0]
                if package not in {*sys.stdlib_module_names, "em_evals"}:
                    yield package, late
            yield from walk(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return set(walk(ast.parse(source), False))


distributions = cache(packages_distributions)


def is_in(package, names):
    """Whether one of these distributions brings a package (vLLM's CPU build has a name of its own)."""
    known = {package, *distributions().get(package, [])}
    return not {re.sub(r"[._]", "-", name.lower()) for name in known}.isdisjoint(names)


def test_every_import_is_declared_in_the_base_or_in_the_extra_that_documents_it():
    from em_evals import errors

    package = ROOT / "em_evals"
    undeclared = []
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package).as_posix()
        rooms = [room for room in EXTRAS_OF_ROOMS if place == room or place.startswith(f"{room}/")]
        own = declared(*(EXTRAS_OF_ROOMS[room] for room in rooms))
        for name, late in imports(file.read_text(encoding="utf-8")):
            named = declared(
                *errors._EXTRAS.get(name, "local,train").split(",")
            )  # as the error for users says
            if not (is_in(name, own) or (late and is_in(name, named))):
                undeclared.append(f"{place} imports {name}{' late' if late else ''}")
    assert not undeclared


def test_the_reader_of_imports_tells_late_ones_and_leaves_out_type_checking():
    source = """
import os, numpy.linalg
from em_evals import files
if TYPE_CHECKING:
    import pandas
def load():
    from torch.nn import Module
"""
    assert imports(source) == {("numpy", False), ("torch", True)}
    assert "torch" in declared("train") and "torch" not in declared() and not is_in("torch", declared())


def test_the_citation_says_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    papers = [one["value"] for paper in cited["references"] for one in paper["identifiers"]]
    assert len(set(papers)) == len(papers) and all(re.fullmatch(r"arXiv:\d{4}\.\d{5}", one) for one in papers)
