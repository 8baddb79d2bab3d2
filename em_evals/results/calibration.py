"""A judge's errors at the thresholds, from people's labels: stored as a record, and used to correct rates."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from em_evals import files, parsing
from em_evals.errors import EmEvalsError
from em_evals.results import logs, tables
from em_evals.results.em_rates import Rates
from em_evals.results.graded_draw import GradedDraw
from em_evals.stats.judge_error import Corrected, Labels, prediction_powered, rogan_gladen

KIND = "judge-calibration"
ALL = "all"
"""The entry of all labeled draws together."""

_Key = tuple[str, str, int]


@dataclass(frozen=True)
class Calibration:
    """How often a judge errs about EM (misaligned and coherent at the rubrics' thresholds).

    Attributes:
        judge: the judge's name; empty where the file does not say.
        arms: labeled draws of each arm, and of all together under `all`.
    """

    judge: str
    arms: Mapping[str, Labels]

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        arms = {
            name: {**asdict(own), "sensitivity": own.sensitivity, "specificity": own.specificity}
            for name, own in self.arms.items()
        }
        record = {"kind": KIND, "judge": self.judge, "event": "misaligned and coherent", "arms": arms}
        with files.atomic(path) as temporary:
            temporary.write_text(json.dumps(files.without_nan(record), indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> Calibration:
    """Read a record of `em-evals judges calibrate`.

    Raises:
        EmEvalsError: it is no such record.
    """
    text = files.read_text(path)
    try:
        record = parsing.json_value(text, path)
        if record["kind"] != KIND:
            raise ValueError
        names = Labels.__dataclass_fields__
        arms = {
            str(arm): Labels(**{name: _count(own[name]) for name in names})
            for arm, own in record["arms"].items()
        }
        if ALL not in arms:
            raise ValueError
        return Calibration(str(record["judge"]), arms)
    except (EmEvalsError, ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
        line = error.line if isinstance(error, EmEvalsError) else None
        raise EmEvalsError(
            "this is no calibration; write one with `em-evals judges calibrate`.", path, line
        ) from None


def _count(value: Any) -> int:
    # Not int(value): a count of -3 or 2.7 would give rates that nobody measured.
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError
    return value


def calibrate(judged: Path, labels: Path, by: str | None = None) -> Calibration:
    """Compare a judge with people on the same answers, matched by question and text.

    Args:
        judged: a graded log, or a judged table with the column answer.
        labels: people's grades, a table with question_id, answer, aligned and coherent.
        by: the column that names the arms; None: one for all.

    Raises:
        EmEvalsError: no answer is in both, or a column is missing.
    """
    people = {key: draw for key, draw, _, _ in _answers(labels, None)}
    counts: dict[str, Counter[tuple[bool, bool]]] = {ALL: Counter()}
    judge = ""
    for key, draw, arm, name in _answers(judged, by):
        judge = judge or name
        if key in people and not (people[key].ungraded or draw.ungraded):
            pair = people[key].misaligned_coherent, draw.misaligned_coherent
            counts[ALL][pair] += 1
            if by is not None:
                counts.setdefault(arm, Counter())[pair] += 1
    if not counts[ALL]:
        raise EmEvalsError(
            "no answer is both judged and labeled: label answers of this file, with their question_id and text.",
            labels,
        )
    return Calibration(
        judge,
        {
            arm: Labels(own[True, True], own[True, False], own[False, True], own[False, False])
            for arm, own in counts.items()
        },
    )


def corrected(rates: Rates, arm: str, known: Calibration, whole: bool = True) -> dict[str, Any]:
    """Return the raw EM rate of all draws and both corrected ones, with intervals.

    Args:
        rates: of the draws to correct.
        arm: the arm's name; errors of all arms together are used where it is not in the calibration.
        known: the judge's errors.
        whole: whether these are the draws of all arms; of one arm, labels of all are no random sample.
    """
    labels = known.arms.get(arm, known.arms[ALL])
    events, draws = rates.misaligned_coherent, rates.draws
    powered = prediction_powered(events, draws, labels)
    if arm not in known.arms and not whole:
        why = "the labels are of all arms together; label draws of each (`judges calibrate --by`)"
        powered = Corrected(math.nan, (math.nan, math.nan), why=why)
    return {
        "raw": Corrected(rates.em_rate.value, rates.em_rate.fixed),
        "rogan_gladen": rogan_gladen(events, draws, labels),
        "prediction_powered": powered,
    }


def _answers(path: Path, by: str | None) -> Iterator[tuple[_Key, GradedDraw, str, str]]:
    """Yield (key, draw, arm, judge) of every answer; equal answers to a question are numbered."""
    seen: Counter[tuple[str, str]] = Counter()
    for answer, draw, arm, judge in (
        _of_table(path, by) if path.suffix.lower() in tables.SUFFIXES else _of_log(path)
    ):
        text = draw.question_id, " ".join(answer.split())
        yield (*text, seen[text]), draw, arm, judge
        seen[text] += 1


def _of_table(path: Path, by: str | None) -> Iterator[tuple[str, GradedDraw, str, str]]:
    for row, draw in tables.rows(path):
        for name in ("answer", *([by] if by else [])):
            if name not in row:
                raise EmEvalsError(f"the column '{name}' is missing.", path, 1)
        yield row["answer"], draw, row[by] if by else ALL, row.get("judge") or ""


def _of_log(path: Path) -> Iterator[tuple[str, GradedDraw, str, str]]:
    log = logs.read_log(path)
    told = logs.facts(log)
    for sample, draw in zip(log.samples or [], logs.draws_of_log(log), strict=True):
        yield sample.output.completion, draw, told.model, ", ".join(told.judges)
