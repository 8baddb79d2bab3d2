"""Labels of measurements on the page: the model, plus how it was asked if one model has several measurements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from em_evals import shown
from em_evals.report.answers import AS_ASKED, Measured

_LONGEST = 40
"""Maximum characters of a prefix or a system message in a label."""


def named_apart(measured: Iterable[Measured]) -> list[Measured]:
    """Give each measurement of a kind a unique label: by how it was asked, else by a number."""
    entries = list(measured)
    result: list[Measured] = []
    taken: set[tuple[bool, str]] = set()
    for entry in entries:
        kind = bool(entry.pairs)
        same = [_asking(one) for one in entries if (bool(one.pairs), one.label) == (kind, entry.label)]
        own = [
            text
            for number, text in enumerate(_asking(entry))
            if text and any(other[number] != text for other in same)
        ]
        plain = " · ".join([entry.label, *own])
        choices = [plain, *(f"{plain} · {number}" for number in range(2, len(taken) + 3))]
        label = next(choice for choice in choices if (kind, choice) not in taken)
        taken.add((kind, label))
        result.append(replace(entry, label=label))
    return result


def _asking(entry: Measured) -> tuple[str, ...]:
    """Describe what was asked and how; empty texts for the defaults."""
    form = entry.facts.get("format", "")
    told = ((name, entry.facts.get(name, "")) for name in AS_ASKED)
    return (
        entry.asked,
        "" if form == "plain" else form,
        *(f"{name} {shown.cut(text, _LONGEST)}" if text else "" for name, text in told),
    )
