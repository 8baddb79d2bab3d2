"""Options that several commands have, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from em_evals import parsing
from em_evals.content.base_shape import MOST_BLOCKS
from em_evals.errors import EmEvalsError
from em_evals.parsing import step_of

Fields = Annotated[
    list[str],
    typer.Option("-M", metavar="KEY=VALUE", help="Override a card field, e.g. dtype=float32 (repeatable)."),
]
"""Read with `card_fields`."""
ControlCard = Annotated[str | None, typer.Option(help="The matched control's card.")]
Group = Annotated[
    list[str],
    typer.Option(metavar="NAME=a,b,c", help="Models of one recipe that differ by their seed (repeatable)."),
]
Pairs = Annotated[str, typer.Option(help="Forced-choice pairs.")]
PerTheme = Annotated[int, typer.Option(help="Number of first pairs per theme; 0 for all.", min=0)]
FirstPairs = Annotated[int | None, typer.Option(help="Use only the first pairs of each theme.", min=1)]
Split = Annotated[bool, typer.Option(help="Extract from half of the questions, test on the other.")]
Layer = Annotated[
    int | None, typer.Option(help="Decoder block (default: the direction's most reliable one).", min=0)
]
NullDraws = Annotated[int, typer.Option(help="Draws of each null distribution.", min=0)]
NullSeed = Annotated[int, typer.Option(help="Seed of the null draws.", min=0, max=2**32 - 1)]
DirectionName = Annotated[str, typer.Option(help="A direction's name or file.")]
DirectionFile = Annotated[Path, typer.Option("--output", "-o", help="The direction file (.safetensors).")]
Record = Annotated[Path, typer.Option("--output", "-o", help="Write the record (JSON).")]
Figure = Annotated[Path | None, typer.Option(help="Write a page of figures (HTML).")]
"""Written by `output.draw`."""


def card_fields(pairs: list[str]) -> dict[str, Any]:
    """Parse `train.seed=1` as {"train": {"seed": 1}}; values are YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise EmEvalsError(f"-M {pair}: expected KEY=VALUE.")
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise EmEvalsError(
                    f"-M {pair}: '{parent}' was already given as a value; give one or the other."
                )
        try:
            place[last] = parsing.yaml_value(value)
        except EmEvalsError as error:
            raise EmEvalsError(f"-M {pair}: {error}") from None
    return result


def parsed_layers(text: str | None) -> tuple[int, ...] | None:
    """Parse `4,8` or `4-9` as layers."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        start, end = step_of(first), step_of(last if dash else first)
        if start is None or end is None or start > end or end >= MOST_BLOCKS:
            raise EmEvalsError(f"--layers {text[:60]}: give blocks counted from 0, as 4,8,12 or 4-9.")
        found += range(start, end + 1)
    return tuple(dict.fromkeys(found))


def numbers_of(text: str, option: str = "--scales") -> tuple[float, ...]:
    """Parse `-1,1` as numbers."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise EmEvalsError(f"{option} {text}: give numbers, as -2,-1,1,2.") from None
