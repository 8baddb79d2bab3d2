"""How much of a trait models show after training: judged answers to its test questions, or a table of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.content.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.results import tables
from em_evals.results.em_rates import rates
from em_evals.results.logs import draws_of_log, facts, graded, named, no_such_score, number, read_log

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

EM_RATE = "em_rate"


@dataclass(frozen=True)
class Expressed:
    """One model's score.

    Attributes:
        models: what a card may be named, and its digests.
        trait: the trait; empty for a score that counts for every trait.
        value: the mean over questions.
        source: the file.
    """

    models: frozenset[str]
    trait: str
    value: float
    source: Path


def read(path: Path, score: str | None = None) -> list[Expressed]:
    """Read a log, or a CSV with the columns `card`, `value` and, where they are of several traits, `trait`.

    Args:
        path: a graded log of `em_evals/trait` with `part=test`, any other graded log, or a CSV.
        score: the score of a log; None: the log's own trait. `em_rate` is the share of misaligned, coherent draws.

    Raises:
        EmEvalsError: the file is neither, a number is missing, or the log has no such score.
    """
    if path.suffix.lower() == ".csv":
        return _of_table(path)
    log = read_log(path)
    trait = str((log.eval.metadata or {}).get("trait") or "")
    if trait and (log.eval.metadata or {}).get("part") == "extract":
        raise EmEvalsError(
            "these are answers under the trait's own system prompts, which say nothing of the model: take a log with "
            "-T part=test.",
            path,
        )
    if score is None and not trait:
        raise EmEvalsError("this log is not of `em_evals/trait`: name its score with --score.", path)
    own = facts(log)
    models = {named(log.eval.model).removeprefix("local/"), *own.cards}
    value = rates(draws_of_log(log)).em_rate.value if score == EM_RATE else _mean(log, score or trait, path)
    return [Expressed(frozenset(models), trait if score is None else "", value, path)]


def of_cards(cards: Sequence[ResolvedCard], trait: str, found: Sequence[Expressed]) -> dict[str, float]:
    """Return each card's score of a trait.

    Raises:
        EmEvalsError: a card has no score, or two.
    """
    scores: dict[str, float] = {}
    for card in cards:
        own = [one for one in found if one.models & {card.name, card.digest} and one.trait in ("", trait)]
        if not own:
            raise EmEvalsError(
                f"there is no score of {card.name} for {trait}: give the log of `inspect eval em_evals/trait -T "
                f"trait={trait} -T part=test --model local/{card.name}`, a CSV, or --judge."
            )
        if len(own) > 1:
            raise EmEvalsError(
                f"{card.name} has two scores for {trait}, in {own[0].source.name} and {own[1].source.name}: give one."
            )
        scores[card.name] = own[0].value
    return scores


def grouped(values: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the units of a correlation: each group of seeds is one, each other model too.

    Raises:
        EmEvalsError: a group lists a model that is not among these.
    """
    for name, listed in groups.items():
        if missing := [model for model in listed if model not in values]:
            raise EmEvalsError(f"the group {name} lists '{missing[0]}', which is not among the cards given.")
    inside = {model for listed in groups.values() for model in listed}
    return {name: list(listed) for name, listed in groups.items()} | {
        name: [name] for name in values if name not in inside
    }


def _mean(log: EvalLog, score: str, path: Path) -> float:
    """Return the mean of a score over the questions' means.

    Raises:
        EmEvalsError: no sample has it.
    """
    by_question: dict[str, list[float]] = {}
    known: set[str] = set()
    for sample in log.samples or []:
        found = graded(sample)
        value = found.value if found is not None and isinstance(found.value, dict) else {}
        known |= value.keys()
        if not math.isnan(one := number(value.get(score))):
            by_question.setdefault(str(sample.metadata.get("question_id") or sample.id), []).append(one)
    if not by_question:
        raise no_such_score(score, known, path)
    means = [sum(own) / len(own) for own in by_question.values()]
    return sum(means) / len(means)


def numbers(path: Path, column: str) -> dict[str, float]:
    """Return name -> value of a CSV with a column of names and the column `value`.

    Raises:
        EmEvalsError: a column is missing, a value is not a number, or a name stands there twice.
    """
    found: dict[str, float] = {}
    for line, row, value in _valued(path, column):
        if row[column] in found:
            raise EmEvalsError(f"'{row[column]}' is listed twice.", path, line)
        found[row[column]] = value
    return found


def _of_table(path: Path) -> list[Expressed]:
    return [
        Expressed(frozenset({row["card"]}), row.get("trait") or "", value, path)
        for _, row, value in _valued(path, "card")
    ]


def _valued(path: Path, column: str) -> Iterator[tuple[int, dict[str, str], float]]:
    """Yield (line, row, value) of a table of scores."""
    for line, row in tables.csv_rows(path, (column, "value")):
        try:
            value = float(row["value"])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not row[column]:
            raise EmEvalsError(f"'{row['value']}' is not a score of '{row[column]}'.", path, line)
        yield line, row, value
