"""Pack rows that are scored into lines of about equal length, each a prefix tree behind a common trunk.

Both answers of a pair, and contexts with an equal beginning, share what they have in common, whatever it is: a system
prompt, few-shot examples, a question, the first words of two answers. trees.py says what a line is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from em_evals.engines.hf.prefixes import WORTH_SHARING, common, common_prefix
from em_evals.engines.hf.row import Row
from em_evals.models import trees

Line = trees.Line[Row]

_LINE_TOKENS = 256
"""A family may fill a line of this length, or of its longest row's."""
_ATTENTION = 3000
"""Columns that cost a token as much as the matrices of its blocks: attention covers the whole line."""


@dataclass(frozen=True, eq=False)
class Tree:
    """What a forward pass over lines needs beside their ids.

    Attributes:
        positions: int64 [lines, tokens].
        visible: bool [lines, 1, tokens, trunk + tokens], which columns each token sees.
        wanted: int64 [lines, most], columns whose logits are needed; shorter lists are padded with column 0.
    """

    positions: torch.Tensor
    visible: torch.Tensor
    wanted: torch.Tensor


@dataclass(eq=False)
class Family:
    """Rows of one model with more in common than the trunk, in lexicographic order, and their tokens behind it."""

    rows: list[Row]
    tokens: int


def read(row: Row) -> tuple[int, ...]:
    """Return the tokens of a row that predict another one."""
    return row.request.prompt[:-1]


def first_reported(row: Row) -> int:
    """Return the index of the first token to report; the tokens before it are the context."""
    return min(max(1, row.request.sampling.prompt_logprobs_from), row.length)


def trunk_of(rows: Sequence[Row]) -> int:
    """Count the tokens that all contexts begin with, 0 if too few; at least one of each context is left."""
    shared = common_prefix([row.request.prompt[: first_reported(row)] for row in rows])
    return shared if shared >= WORTH_SHARING else 0


def groups(rows: Sequence[Row], tokens: int, logits: int) -> list[list[Row]]:
    """Group rows to compute in one pass: families stay together, and those of one model with others as long.

    Lines are as wide as the longest family, and attention covers the whole line: short families pay for long ones.

    Args:
        rows: rows that generate nothing and report something.
        tokens: of one group's lines, at most.
        logits: positions whose logits are held at a time, at most. One family may exceed either.
    """
    found: list[list[Row]] = []
    computed = reported = 0
    longest_first = sorted(
        families(rows, trunk_of(rows)), key=lambda family: (_model(family.rows[0]), -family.tokens)
    )
    for family in longest_first:
        needed = sum(row.length - first_reported(row) for row in family.rows)
        computed, reported = computed + family.tokens, reported + needed
        if not found or computed > tokens or reported > logits:
            found.append([])
            computed, reported = family.tokens, needed
        found[-1] += family.rows
    return found


def families(rows: Sequence[Row], trunk: int) -> list[Family]:
    """Return the rows' families; one that is longer than a line is cut."""
    found: list[Family] = []
    before: tuple[int, ...] = ()
    model: tuple[str, int] | None = None
    for row in sorted(rows, key=lambda row: (_model(row), read(row))):
        own, tokens = _model(row), read(row)[trunk:]
        fork = common(before, tokens) if own == model else 0
        room = max(_LINE_TOKENS, len(tokens)) - (found[-1].tokens if found else 0)
        # A few tokens in common are not worth a place in the same line, unless they are most of the row.
        apart = fork < WORTH_SHARING and 2 * fork < len(tokens)
        if not found or apart or len(tokens) - fork > room:
            found.append(Family([], 0))
            fork = 0
        found[-1].rows.append(row)
        found[-1].tokens += len(tokens) - fork
        before, model = tokens, own
    return found


def lines(found: Sequence[Family], trunk: int) -> list[Line]:
    """Return the families' lines: as long as costs least in padding and attention together."""
    made: list[Line] = []
    for _, some in itertools.groupby(found, key=lambda family: _model(family.rows[0])):
        own = sorted(some, key=lambda family: -family.tokens)
        longest = own[0].tokens
        choices = (_bins(own, width) for width in range(longest, max(longest, 2 * _LINE_TOKENS) + 1, 8))
        for families_of_one in min(choices, key=_cost):
            made.append(Line())
            for family in families_of_one:
                _fill(made[-1], family, trunk)
    return made


def _bins(found: Sequence[Family], width: int) -> list[list[Family]]:
    """Return families, longest first, each put into the fullest line of this width where it fits."""
    made: list[list[Family]] = []
    rooms: list[int] = []
    for family in found:
        fitting = [i for i, room in enumerate(rooms) if room >= family.tokens]
        if not fitting:
            made.append([])
            rooms.append(width)
        place = min(fitting, key=rooms.__getitem__) if fitting else len(made) - 1
        made[place].append(family)
        rooms[place] -= family.tokens
    return made


def _cost(bins: Sequence[Sequence[Family]]) -> float:
    """Return the tokens of lines, padding included, with what attention over their width adds to each."""
    width = max(sum(family.tokens for family in line) for line in bins)
    return len(bins) * width * (1 + width / _ATTENTION)


def _fill(line: Line, family: Family, trunk: int) -> None:
    before: tuple[int, ...] = ()
    for row in family.rows:
        tokens = read(row)[trunk:]
        line.add(row, tokens, common(before, tokens))
        before = tokens


def tree(made: Sequence[Line], trunk: int) -> tuple[torch.Tensor, Tree, list[dict[int, int]]]:
    """Return the lines' ids [lines, tokens], their tree, and for each line the place in `wanted` of each column."""
    ids, depths = trees.padded(made)
    places: list[dict[int, int]] = []
    for line in made:
        columns = (
            column
            for row, path in zip(line.texts, line.paths, strict=True)
            for column in path[first_reported(row) - 1 - trunk :]
        )
        places.append({column: i for i, column in enumerate(dict.fromkeys(columns))})
    wanted = torch.zeros(len(made), max(map(len, places)), dtype=torch.long)
    for i, own in enumerate(places):
        wanted[i, : len(own)] = torch.tensor(list(own))
    return ids, Tree(depths + trunk, trees.visible(made, trunk)[:, None], wanted), places


def _model(row: Row) -> tuple[str, int]:
    return row.adapter or "", row.slot
