"""Docstrings below fields describe them in JSON Schemas as pydantic's own option does, without its cost at import."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from em_evals.content.documented import Documented


class Part(Documented, BaseModel):
    """A part."""

    size: int = 1
    """Its size,
    in bytes."""
    plain: str = ""


class Whole(Part):
    """A whole of parts."""

    size: int = 2
    """Of all its parts."""
    part: Part | None = None
    """One of them."""
    told: Annotated[int, Field(description="Said otherwise.")] = 3
    """Not shown."""


class PydanticPart(BaseModel):
    """A part."""

    model_config = ConfigDict(use_attribute_docstrings=True, title="Part")
    size: int = 1
    """Its size,
    in bytes."""
    plain: str = ""


class PydanticWhole(PydanticPart):
    """A whole of parts."""

    model_config = ConfigDict(title="Whole")
    size: int = 2
    """Of all its parts."""
    part: PydanticPart | None = None
    """One of them."""
    told: Annotated[int, Field(description="Said otherwise.")] = 3
    """Not shown."""


def test_descriptions_are_those_of_pydantics_option():
    ours, theirs = Whole.model_json_schema(), PydanticWhole.model_json_schema()
    assert ours["properties"]["size"]["description"] == "Of all its parts."
    assert str(ours) == str(theirs).replace("PydanticPart", "Part")


def test_our_models_describe_their_fields():
    from em_evals.content.card_schema import ModelCard
    from em_evals.gate.policy import Policy

    for model in (ModelCard, Policy):
        assert "use_attribute_docstrings" not in model.model_config
    described = [one for one in Policy.model_json_schema()["properties"].values() if "description" in one]
    assert described
