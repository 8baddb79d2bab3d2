"""JSON Schemas of the files that people write, from the models that validate them: for editors and the reference pages.

A schema is what a form can check. Rules across fields (a layer that the base lacks, a direction of another base) are
checked by `em-evals data check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from em_evals.content import pairs, questions, rubrics, sweep_plans, traits
from em_evals.content.card_schema import ModelCard
from em_evals.errors import EmEvalsError, nearest
from em_evals.gate.policy import Policy

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Written(GenerateJsonSchema):
    """Schemas of what can be written in a file: values that exist only in memory accept nothing."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {"not": {}}


def _of_model(model: type[BaseModel]) -> Callable[[], dict[str, Any]]:
    return lambda: model.model_json_schema(schema_generator=_Written)


def _of_list(file: type[BaseModel], row: type[BaseModel], key: str) -> Callable[[], dict[str, Any]]:
    """Return the schema of a file whose rows are validated one by one, so that an error names its line."""

    def made() -> dict[str, Any]:
        schema = file.model_json_schema(schema_generator=_Written)
        one = row.model_json_schema(schema_generator=_Written)
        schema.setdefault("$defs", {}).update(one.pop("$defs", {}))
        schema["properties"][key]["items"] = one
        return schema

    return made


def _card() -> dict[str, Any]:
    """Cards have short forms: a layer or a range in place of a list, a data set's name in place of its fields."""
    schema = _of_model(ModelCard)()
    layers = [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^(all|\d+(-\d+)?)$"}]
    for name in ("Intervention", "Method"):
        schema["$defs"][name]["properties"]["layers"]["anyOf"] += layers
    schema["$defs"]["DataSource"] = {"anyOf": [{"type": "string"}, schema["$defs"]["DataSource"]]}
    # A card that extends another has what it does not say from there.
    del schema["required"], schema["$defs"]["AdapterRecipe"]["required"]
    schema["anyOf"] = [{"required": [key]} for key in ("base", "extends", "control_of")]
    return schema


def _recipe() -> dict[str, Any]:
    """Return the schema of a card's `train:` alone, as a sweep's plan and `-M train.…` set its fields."""
    card = _card()
    definitions = card["$defs"]
    return {**definitions.pop("AdapterRecipe"), "$defs": definitions}


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "card": _card,
    "recipe": _recipe,
    "questions": _of_list(questions.OwnFile, questions.OwnQuestion, "questions"),
    "pairs": _of_list(pairs.PairFile, pairs.PairRow, "pairs"),
    "rubric": _of_model(rubrics.RubricFile),
    "trait": _of_model(traits.TraitFile),
    "gate": _of_model(Policy),
    "sweep": _of_model(sweep_plans.PlanFile),
}
"""Kind of file -> its JSON Schema."""


def schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of file.

    Raises:
        EmEvalsError: there is no such kind.

    Example:
        >>> schema("gate")["properties"]["alpha"]["default"]
        0.025
    """
    if kind not in KINDS:
        raise EmEvalsError(f"there is no schema of '{kind}'; {nearest(kind, KINDS)}")
    return {"$schema": _DIALECT, **KINDS[kind]()}
