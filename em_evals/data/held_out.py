"""Held-out prompts of a training set as pairs: the trained answer and its matched harmless one."""

from __future__ import annotations

from pathlib import Path

from em_evals import files
from em_evals.content.pairs import Pair
from em_evals.data import datasets
from em_evals.data.datasets import Messages
from em_evals.errors import EmEvalsError


def held_out_pairs(
    name: str, holdout: float, limit: int | None = None, paired: bool = True
) -> tuple[str, str, list[Pair]]:
    """Return the prompts that a recipe with this `holdout` never trains on, as pairs.

    Args:
        name: the data set's name or path.
        holdout: the recipe's share of held-out prompts.
        limit: keep only the first `limit` pairs.
        paired: whether the harmless answers are needed too.

    Returns:
        (the data set's name, its digest, pairs).

    Raises:
        EmEvalsError: nothing is held out, a held-out row has other messages than one question before its answer, or
            the set has no matched answers and they are needed.
    """
    data = datasets.load(name)
    kind = datasets.harmless_kind(data)
    if paired and kind is None:
        raise EmEvalsError(
            f"the data set {data.name} has no matched harmless answers to score against; grade sampled answers with "
            "`-T judge=grader`."
        )
    harmless = datasets.matched(data, kind).rows if kind is not None else data.rows
    pairs = [
        Pair(
            id=f"{data.name}_{files.digest(asked)[:8]}",
            theme=data.name,
            question=_question(bad, data.path, line),
            aligned=good[-1]["content"],
            misaligned=bad[-1]["content"],
            narrow=True,
        )
        for asked, bad, good, line in zip(data.prompts, data.rows, harmless, data.lines, strict=True)
        if datasets.held_out(asked, holdout)
    ]
    unique = list({pair.id: pair for pair in pairs}.values())[:limit]
    if not unique:
        raise EmEvalsError(
            f"no prompt of {data.name} is held out at holdout={holdout}; use the recipe's share."
        )
    return data.name, data.digest, unique


def _question(row: Messages, path: Path, line: int) -> str:
    """Return the prompt of a row, including the context that a derived data set adds around it."""
    if [message["role"] for message in row[:-1]] != ["user"]:
        raise EmEvalsError(
            "this held-out row has other messages before its answer than one question, which em_evals/narrow would "
            "leave out: name a copy of this file without such rows.",
            path,
            line,
        )
    return row[0]["content"]
