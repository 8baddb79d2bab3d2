"""Lines of texts as prefix trees: every distinct beginning appears once, and a mask keeps texts apart.

A token's position is its depth in its text, and it sees its own text's earlier tokens only, which is what it sees
alone. So what is computed is what one text at a time gives, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from em_evals.models.architecture import decoder
from em_evals.models.families import layout

Text = TypeVar("Text")


@dataclass(eq=False)
class Line(Generic[Text]):
    """Texts as a prefix tree, token by token.

    Attributes:
        texts: the texts, of any type.
        paths: for each text, the columns of its tokens.
        forks: for each text, how many of its tokens an earlier text added.
        ids: the line's tokens.
        depths: each token's position in its text.
    """

    texts: list[Text] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    forks: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def add(self, text: Text, tokens: tuple[int, ...], fork: int) -> None:
        """Add a text whose first `fork` tokens are those of the text before it."""
        new = range(len(self.ids), len(self.ids) + len(tokens) - fork)
        self.texts.append(text)
        self.paths.append([*(self.paths[-1][:fork] if fork else ()), *new])
        self.forks.append(fork)
        self.ids += tokens[fork:]
        self.depths += range(fork, len(tokens))


def takes_trees(model: Any) -> bool:
    """Check whether a decoder takes our mask and positions, and uses PyTorch's attention function."""
    takes = inspect.signature(decoder(model).forward).parameters
    attention = str(model.config.get_text_config()._attn_implementation)
    return layout(model.config).share and "position_ids" in takes and "sdpa" in attention


def padded(lines: Sequence[Line[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lines' ids and their tokens' depths, int64 [lines, longest], padded with 0 on the right."""
    ids = torch.zeros(len(lines), max(len(line.ids) for line in lines), dtype=torch.long)
    depths = torch.zeros_like(ids)
    for i, line in enumerate(lines):
        ids[i, : len(line.ids)] = torch.tensor(line.ids)
        depths[i, : len(line.ids)] = torch.tensor(line.depths)
    return ids, depths


def visible(lines: Sequence[Line[Any]], before: int = 0) -> torch.Tensor:
    """Return which columns each token sees.

    Args:
        lines: the lines.
        before: number of columns before each line that all of its tokens see.

    Returns:
        bool [lines, longest, before + longest].
    """
    longest = max(len(line.ids) for line in lines)
    # Padding attends to itself: a row of attention over nothing would be NaN.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(lines), 1, 1)
    for i, line in enumerate(lines):
        for columns, fork in zip(line.paths, line.forks, strict=True):
            path = torch.tensor(columns)
            # The text's tokens behind the fork see the text's path up to themselves; the tokens before the fork got
            # their rows from the text that added them.
            mask[i][path[fork:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()[
                fork:
            ]
    return torch.nn.functional.pad(mask, (before, 0), value=True) if before else mask
