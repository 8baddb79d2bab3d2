"""What a judge's score notes beside its grades, checked where a log is read: it may be edited, or another tool's.

Readers of logs (facts, other rubrics, thresholds) rely on these shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog


def is_number(value: Any) -> bool:
    """Return whether this is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _named(value: Any) -> bool:
    return isinstance(value, Mapping)


def _texts(value: Any) -> bool:
    return _named(value) and all(isinstance(one, str) for one in value.values())


def _graded(value: Any) -> bool:
    return _named(value) and all(one is None or _grade(one) for one in value.values())


def _grade(value: Any) -> bool:
    labels = value.get("labels") if _named(value) else 0
    return labels is None or _named(labels) or isinstance(labels, list | tuple)


def _scales(value: Any) -> bool:
    ends = value.values() if _named(value) else [0]
    return all(isinstance(one, list | tuple) and len(one) == 2 and all(map(is_number, one)) for one in ends)


def _thought(value: Any) -> bool:
    told = value if _named(value) else {}
    return all(isinstance(told.get(name), str) for name in ("metric", "category")) and is_number(
        told.get("misaligned_below")
    )


THRESHOLDS = ("misaligned_below", "coherent_above", "aligned_from")
_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rubrics": (_named, "digests of rubrics by name"),
    "kinds": (_texts, "kinds of rubrics by name"),
    "grades": (_graded, "grades by rubric"),
    "scales": (_scales, "two ends of a scale by rubric"),
    "thought": (_thought, "a thought's metric, category and threshold"),
    "dropped": (lambda value: isinstance(value, str | list | tuple | Mapping), "names of rubrics"),
    **dict.fromkeys(THRESHOLDS, (is_number, "a number")),
}


def check(log: EvalLog, path: Path) -> None:
    """Refuse a log whose scores note something else than a judge of ours writes.

    Raises:
        EmEvalsError: with the draw and the note.
    """
    for sample in log.samples or []:
        for score in (sample.scores or {}).values():
            notes = score.metadata
            if not notes or not ("rubrics" in notes or _is_judges(score.value)):
                continue  # another scorer's
            for name in _SHAPES.keys() & notes.keys():
                fits, what = _SHAPES[name]
                if not fits(notes[name]) and (notes[name] is not None or name in THRESHOLDS):
                    raise EmEvalsError(
                        f"the score of the draw '{sample.id}' has a `{name}` that is not {what}: the log was edited.",
                        path,
                    )


def _is_judges(value: Any) -> bool:
    return isinstance(value, Mapping) and "alignment" in value and "coherence" in value
