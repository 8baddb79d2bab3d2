"""Looks: how often a candidate was judged. They stand in the gate's record; stats/spending.py turns them into levels.

Every judgment of new numbers of the same candidate is a look, whatever its verdict; the same numbers again are the
same look. A candidate is known by its card digest, else by its model's name. A CSV names no model: all CSVs that are
judged with one record count as one candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from em_evals import characters, files
from em_evals.errors import EmEvalsError
from em_evals.gate.evidence import Evidence
from em_evals.gate.inputs import Side
from em_evals.results.records.gate import GateVerdict, Look


def read(path: Path) -> tuple[Look, ...]:
    """Return the looks that a record holds; none if there is no such file.

    Raises:
        EmEvalsError: the file is not a record of the gate: overwriting it would lose it, or its looks.
    """
    if not path.exists():
        return ()
    try:
        return tuple(GateVerdict.model_validate_json(files.read_text(path)).looks)
    except ValidationError:
        raise EmEvalsError(
            "this is not a record of the gate, so the looks at the candidate cannot be counted; name another file "
            "with -o, or delete this one.",
            path,
        ) from None


def following(looks: Sequence[Look], baseline: Side, candidate: Side) -> Look:
    """Return the look that judging these two sides is, without its verdict."""
    identities = _identities(candidate.evidence.values())
    own = [look for look in looks if {*look.candidate} & {*identities}]
    digest = _digest([*baseline.evidence.values()], [*candidate.evidence.values()])
    known = next((look for look in own if look.evidence == digest), None)
    if known is not None:
        return known
    draws = _draws(baseline), _draws(candidate)
    return Look(max((look.number for look in own), default=0) + 1, identities, digest, draws)


def with_look(looks: Sequence[Look], look: Look) -> tuple[Look, ...]:
    """Return the looks with this one, in place of an earlier record of the same numbers."""
    kept = [one for one in looks if (one.evidence, one.candidate) != (look.evidence, look.candidate)]
    return (*kept, look)


def _identities(evidence: Iterable[Evidence]) -> list[str]:
    return sorted({_identity(one) for one in evidence})


def _identity(evidence: Evidence) -> str:
    if evidence.card_digest:
        return f"card {evidence.card_digest}"
    return evidence.kind if evidence.kind == "csv" else evidence.model


def _digest(*sides: list[Evidence]) -> str:
    """Return a digest of the numbers of both sides, whatever order their files were read in."""
    return files.digest(
        *(
            json.dumps(
                sorted(
                    (
                        one.key,
                        sorted((name, characters.model_json(own)) for name, own in one.measures.items()),
                    )
                    for one in side
                )
            ).encode()
            for side in sides
        )
    )


def _draws(side: Side) -> int:
    """Return the number of draws and items of a side."""
    return sum(
        max(one.draws(name) for name in one.measures) for one in side.evidence.values() if one.measures
    )
