"""`em-evals insight same`: whether two things are one."""

from __future__ import annotations

from em_evals.cli.output import Json, echo, print_json


def same(one: str, other: str, as_json: Json = False) -> None:
    """Tell whether two adapters, logs or data files are identical, a copy, a reseed, or different."""
    from em_evals.interp import provenance

    found = provenance.same(one, other)
    if as_json:
        print_json(found.as_json())
        return
    echo(f"{found.verdict}: {found.sentence}")
    for name, value in found.facts.items():
        echo(f"  {name}: {value}")
