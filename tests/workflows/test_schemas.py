"""JSON Schemas accept what ships and refuse what the loaders refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from em_evals.content import documents
from em_evals.workflows.schemas import KINDS, schema
from tests.command import em_evals

ROOT = Path(__file__).parents[2]
_KEYS = {"pairs": "pairs", "questions": "questions", "prompt": "rubric"}


def shipped() -> list[tuple[str, Path]]:
    """Kind and file of everything that ships."""
    cards = [("card", path) for path in documents.names("adapters").values()]
    others = [path for kind in ("tasks", "scorers") for path in documents.names(kind).values()]
    traits = [("trait", path) for path in documents.names("tasks/traits").values()]
    return [*cards, *traits] + [
        (next(_KEYS[key] for key in _KEYS if key in yaml.safe_load(path.read_text("utf-8"))), path)
        for path in others
    ]


def refused(kind: str, data: Any) -> list[str]:
    checker = jsonschema.Draft202012Validator(schema(kind))
    return [error.message for error in checker.iter_errors(json.loads(json.dumps(data)))]


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_valid_and_the_command_prints_them(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    done = em_evals("schema", kind)
    assert done.returncode == 0 and json.loads(done.stdout) == schema(kind)


def test_everything_that_ships_fits_its_schema() -> None:
    found = shipped()
    assert {kind for kind, _ in found} == {"card", "questions", "pairs", "rubric", "trait"}
    for kind, path in found:
        assert refused(kind, yaml.safe_load(path.read_text("utf-8"))) == [], path


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("card", {"base": "x", "dtyp": "float32"}),
        ("card", {"description": "no base"}),
        ("card", {"base": "x", "interventions": [{"op": "ablate", "direction": "d", "layers": "twelve"}]}),
        ("rubric", {"name": "r", "version": 0, "metric": "m", "prompt": "p"}),
        ("gate", {"alpha": 0.7}),
        ("recipe", {"data": ["x"], "methd": {"rank": 1}}),
        ("sweep", {"name": "s", "models": [{"crad": "x"}]}),
        (
            "trait",
            {
                "name": "t",
                "version": 1,
                "description": "d",
                "rubric": "r",
                "positive": ["p"],
                "questions": "q",
            },
        ),
    ],
)
def test_mistakes_do_not_fit(kind: str, data: dict[str, Any]) -> None:
    assert refused(kind, data)


def test_plans_and_recipes_of_the_guide_fit() -> None:
    plan = next(
        yaml.safe_load(block)
        for block in re.findall(
            r"^```yaml\n(.*?)^```$", (ROOT / "docs/sweeps.md").read_text("utf-8"), re.M | re.S
        )
        if block.startswith("# plan.yaml")
    )
    assert refused("sweep", plan) == []
    recipe = yaml.safe_load((ROOT / "adapters/smollm2-risky.yaml").read_text("utf-8"))["train"]
    assert refused("recipe", recipe) == [] and "AdapterRecipe" not in schema("recipe")["$defs"]


def test_fields_are_explained() -> None:
    fields = schema("card")["properties"]
    assert fields["base"]["description"].startswith("Hub id, folder")
    unknown = em_evals("schema", "crad")
    assert unknown.returncode == 2 and "did you mean 'card'" in unknown.stderr
