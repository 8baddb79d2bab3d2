"""docs/api.md, the notebooks and the docstrings' examples run as they stand, on a tiny base or on SmolLM2."""

import ast
import doctest
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

import em_evals as em

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MODULES = ("extras", "values", "measured", "direction", "model")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
BASES = ["tiny", pytest.param("smollm2", marks=pytest.mark.full)]


def run(source, names):
    """Execute a cell; the value of its last line is what a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.fixture(params=BASES)
def folder(request, tiny_lab, tmp_path, monkeypatch):
    """An empty working folder; where the base is tiny, `smollm2` there is a local card that wins over the shipped one."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    if request.param == "tiny":
        (tmp_path / "adapters").mkdir()
        (tmp_path / "adapters" / "smollm2.yaml").write_text(f"base: {tiny_lab / 'tiny'}\n")
    return tmp_path


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, folder):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    shown = [run("".join(cell["source"]), names) for cell in cells]
    assert any(value is not None for value in shown)
    if notebook.stem == "measure_a_model":
        assert len(cells) == 7 and shown[-1].to_dict()["layer"], "seven lines end with a chart"
    else:
        before, after = shown[-2]["before"], shown[-2]["after"]
        assert after < 1e-3 * before and shown[-1] is True


def test_notebooks_hold_no_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["find_and_ablate_a_direction", "measure_a_model"]
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None


def test_the_guide_runs(folder, capsys):
    text = (ROOT / "docs" / "api.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        run(block, names)
    assert names["verdict"].verdict == "regression" and (folder / "report.html").is_file()
    assert "nats" in capsys.readouterr().out
    methods = re.findall(r"`(\w+)\(", text.partition("| method")[2].partition("Models on one")[0])
    assert methods and all(hasattr(em.Model, name) for name in methods)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_first_lines_run(page, folder, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    run(block, names)
    assert names["direction"] is not None and capsys.readouterr().out


def examples():
    for module in MODULES:
        for test in doctest.DocTestFinder().find(importlib.import_module(f"em_evals.api.{module}")):
            if test.examples:
                loads = any("em.load" in example.source for example in test.examples)
                marks = [pytest.mark.full] if loads else []
                yield pytest.param(test, id=test.name.removeprefix("em_evals.api."), marks=marks)


@pytest.mark.parametrize("test", examples())
def test_examples_of_docstrings_run(test, workdir):
    test.globs = {"em": em}
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0


def undocumented():
    """Public names, and public methods, properties and fields of public classes, that say nothing of themselves."""
    for name in sorted(set(em.__all__) - {"__version__"}):
        one = getattr(em, name)
        if not inspect.getdoc(one):
            yield name
        if not inspect.isclass(one):
            continue
        told = " ".join(inspect.getdoc(base) or "" for base in one.__mro__ if base is not object)
        for member, value in vars(one).items():
            if member.startswith("_") or not (callable(value) or isinstance(value, property | classmethod)):
                continue
            if not inspect.getdoc(getattr(value, "fget", None) or value):
                yield f"{name}.{member}"
        for field in getattr(one, "__dataclass_fields__", ()):
            if not field.startswith("_") and f"{field}:" not in told:
                yield f"{name}.{field}"


def test_every_public_name_and_its_members_are_documented():
    assert len(em.__all__) > 8
    assert list(undocumented()) == []
