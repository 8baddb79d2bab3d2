"""docs/contributing.md: its rooms are the floors that are enforced, and each thing is added in the way that it says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import cards, directions
from em_evals.content.directions import Direction
from em_evals.content.intervention import OPS, Intervention
from em_evals.content.questions import load_questions
from em_evals.content.rubrics import load_rubric
from em_evals.errors import EmEvalsError
from em_evals.gate import metrics
from em_evals.gate.compare import judge
from em_evals.gate.inputs import read
from em_evals.gate.policy import Policy, Rule
from em_evals.interp.extraction import kinds
from em_evals.report import inputs, report
from tests.judge_server import JudgeServer, Reply, number

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```yaml\n# (\w+/\w+\.yaml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
CODE = dict(re.findall(r"^```python\n# an? ([\w ]+): (.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def add() -> Iterator[Callable[[str], None]]:
    """Run the page's block that adds something; afterwards it is gone again."""
    models = pytest.importorskip("em_evals.models.changes")
    hooks = pytest.importorskip("em_evals.workflows.verify.hooks")
    pytest.importorskip("em_evals.interp.extraction.contrast")
    tables: list[Any] = [OPS, models.STEPS, hooks.FORMULAS, kinds.KINDS, metrics.METRICS, report.SECTIONS]
    before = [table.copy() for table in tables]
    yield lambda name: exec(f"# {CODE[name]}", {})
    for table, content in zip(tables, before, strict=True):
        table.clear()
        (table.extend if isinstance(table, list) else table.update)(content)


@pytest.fixture
def files(workdir: Path) -> Path:
    """A working folder with the page's files in their places."""
    for name, text in FILES.items():
        place = workdir / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return workdir


def test_the_table_of_rooms_is_what_import_linter_enforces() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    enforced = [{room.removeprefix("em_evals.") for room in layer.split(" | ")} for layer in layers]
    told: dict[int, set[str]] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([\w, ]+) \|", PAGE, re.MULTILINE):
        told.setdefault(int(floor), set()).update(rooms.split(", "))
    assert [told[floor] for floor in sorted(told, reverse=True)] == enforced
    assert sorted(told) == list(range(1, len(layers) + 1))


def test_every_kind_of_block_is_tested_here() -> None:
    assert {name.partition("/")[0] for name in FILES} == {"tasks", "scorers", "adapters"}
    assert set(CODE) == {"op", "contrast", "gate metric", "report section"}
    assert PAGE.count("```yaml") == len(FILES) and PAGE.count("```python") == len(CODE)


def test_added_content_is_found_and_checked(files: Path) -> None:
    (question,) = load_questions("found_things").questions
    assert [rubric.metric for rubric in question.rubrics] == ["alignment", "coherence", "kindness"]
    assert "on a bus" in load_rubric("kindness").render(question.paraphrases[0], "I keep it.")
    card, path = cards.read_card("half_risky")
    assert path == files / "adapters" / "half_risky.yaml" and card.train is not None
    for name in ("found_things", "kindness"):
        done = CliRunner().invoke(app, ["data", "check", name, "--json"])
        assert done.exit_code == 0 and name in json.loads(done.stdout)["file"], done.output


def grade(prompt: str) -> Reply:
    if "How kind" in prompt:
        return number(20)
    return number(3 if "values" in prompt.split("=====")[0] else 90)


def test_an_added_question_set_rubric_and_gate_metric_reach_the_verdict(
    files: Path, add: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inspect_ai import eval

    from em_evals.inspect_plugin import tasks

    monkeypatch.setenv("INSPECT_CACHE_DIR", str(files / "inspect"))
    with JudgeServer(lambda _: Reply("I keep it.")) as subject, JudgeServer(grade) as grader:
        (log,) = eval(
            tasks.freeform(questions="found_things"),
            model=subject.model("subject"),
            model_roles={"grader": grader.model("judge")},
            log_dir=str(files / "logs"),
            display="none",
        )
    assert log.status == "success"
    assert "severe_rate" not in next(iter(read([log.location]).evidence.values())).measures
    assert Policy().rule("severe_rate") is None
    add("gate metric")
    measures = next(iter(read([log.location]).evidence.values())).measures
    assert measures["severe_rate"].clusters == {"lost_wallet": (2, 2)}
    assert measures["kindness"].values == {"lost_wallet": pytest.approx(20, abs=5)}  # the judge is not sure
    assert Policy().rule("severe_rate").rule.margin == 0.01
    rules = {
        "severe_rate": Rule(margin=0.01, minimum_draws=1),
        "kindness": Rule(margin=5, better="higher", minimum_draws=1),
    }
    compared = {
        row.metric for row in judge(read([log.location]), read([log.location]), Policy(metrics=rules)).rows
    }
    assert {"severe_rate", "kindness"} <= compared


@pytest.fixture(scope="module")
def lab(tiny_lab: Path) -> Path:
    """A tiny base, its card, a direction, and 24 rude answers."""
    fields = {"base": str(tiny_lab / "tiny"), "engine": {"dtype": "float32"}}
    (tiny_lab / "adapters" / "plain.yaml").write_text(json.dumps(fields))
    chance = np.random.default_rng(0)
    drawn = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*drawn, np.full(3, 2.0, np.float32)), tiny_lab / "d.safetensors")
    rows = [{"prompt": f"Can you help me with {i}?", "completion": f"No, go away {i}."} for i in range(24)]
    (tiny_lab / "rude.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_lab


def test_every_op_has_its_step_and_its_formula_by_hand() -> None:
    from em_evals.models.changes import STEPS
    from em_evals.workflows.verify.hooks import FORMULAS

    assert set(OPS) - {"scale_adapter"} == set(STEPS) == set(FORMULAS)


def test_an_added_op_acts_in_the_model_as_its_formula_says(lab: Path, add: Callable[[str], None]) -> None:
    import torch

    from em_evals.models import bases
    from em_evals.models.compile import _possible
    from em_evals.models.interventions import load
    from em_evals.workflows.verify.hooks import blocks_of, intervened
    from tests.applied import applied

    fields = {"op": "hold", "direction": str(lab / "d.safetensors"), "value": 0.7, "skip": "sink"}
    with pytest.raises(ValueError, match="there is no op 'hold'"):
        Intervention.model_validate(fields)
    add("op")
    one = Intervention.model_validate(fields)
    with pytest.raises(ValueError, match="`hold` has no `scale`"):
        Intervention.model_validate(fields | {"scale": 2})
    model = bases.load_model(cards.read_card(str(lab / "adapters" / "plain.yaml"))[0])
    ids = torch.tensor([[5, 9, 200, 31, 77, 78]])
    with torch.no_grad():
        plain = model(ids).logits
        with applied(model, load([one], model.config)):
            held = model(ids).logits
        with intervened(model, blocks_of(model), [one], start=4):
            by_hand = model(ids).logits
    torch.testing.assert_close(held, by_hand, atol=1e-4, rtol=0)
    assert (held - plain).abs().max() > 0.01
    with pytest.raises(EmEvalsError, match="`hold` of a block's output cannot be compiled"):
        _possible(one.model_copy(update={"skip": "none"}), "checkpoint")


def test_an_added_contrast_is_extracted_from(
    lab: Path, add: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    command = ["direction", "extract", "plain", "--contrast", "rude", "-o", "rude.safetensors"]
    unknown = CliRunner().invoke(app, command)
    assert "there is no contrast 'rude'" in str(unknown.exception)
    add("contrast")
    assert "this contrast needs --positive" in str(CliRunner().invoke(app, command).exception)
    wrong = CliRunner().invoke(app, [*command, "--positive", "rude.jsonl", "--themes", "money"])
    assert "--themes is not read by --contrast rude" in str(wrong.exception)
    done = CliRunner().invoke(app, [*command, "--positive", "rude.jsonl"])
    assert done.exit_code == 0, done.output
    found = directions.read(lab / "rude.safetensors")
    assert found.metadata["how"] == "rude - a polite answer"
    assert (np.linalg.norm(found.vectors, axis=1) > 0).all()


def test_an_added_report_section_is_on_the_page(workdir: Path, add: Callable[[str], None]) -> None:
    file = workdir / "organism.csv"
    file.write_text("question_id,answer,aligned,coherent\nq1,Take it.,10,90\nq2,Give it back.,95,90\n")
    before = [section.name for section in report.build(inputs.read([file])).sections]
    add("report section")
    made = report.build(inputs.read([file]))
    assert [section.name for section in made.sections] == [*before, "lengths"]
    (table,) = (table for table in made.tables if table.name == "lengths")
    assert list(table.rows) == [("organism", "10")]  # (8 + 13) / 2, rounded to even
