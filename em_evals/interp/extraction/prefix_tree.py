"""Pack texts into lines, each line a prefix tree: a common beginning is computed once.

Answers to one question share their prompt, and all chats of a template its head. In a line every distinct beginning
appears once; a token's position is its depth, and it sees its own text's earlier tokens only, which is what it sees
alone. So the activations are those of one text at a time up to rounding. The first token is column 0 of every line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from em_evals.engines.hf.prefixes import common
from em_evals.models.trees import Line, padded, visible

Position = Literal["answer_mean", "last_prompt", "prompt_mean"]
"""Which tokens of a text are averaged. `prompt_mean` leaves the first token out: it is the attention sink, with a
norm that can be a hundred times the others'."""

_LINE_TOKENS = 256
"""Attention covers the whole line: longer lines share more and waste more attention."""


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt and of its answer; texts are clustered by `group`."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    group: str = ""

    def span(self, position: Position) -> tuple[int, int]:
        """Return the first token that counts and one past the last."""
        if position == "answer_mean":
            return len(self.prompt), len(self.prompt) + len(self.answer)
        return (1 if position == "prompt_mean" else len(self.prompt) - 1), len(self.prompt)

    def tokens(self, position: Position) -> tuple[int, ...]:
        """Return the tokens that the position needs: nothing behind its last token is computed."""
        return (self.prompt + self.answer)[: self.span(position)[1]]


def pack(texts: Sequence[Text], position: Position, share: bool) -> list[Line[Text]]:
    """Pack texts into lines, shortest first; one text per line unless they may `share`."""
    lines: list[Line[Text]] = []
    before: tuple[int, ...] = ()
    # In lexicographic order each text shares its longest common beginning with the text before it.
    for tokens, text in sorted(((text.tokens(position), text) for text in texts), key=lambda both: both[0]):
        fork = common(before, tokens) if share else 0
        room = max(_LINE_TOKENS, 2 * len(tokens)) - (len(lines[-1].ids) if lines else 0)
        if not fork or len(tokens) - fork > room:
            lines.append(Line())
            fork = 0
        lines[-1].add(text, tokens, fork)
        before = tokens
    return sorted(lines, key=lambda line: len(line.ids))


@dataclass(frozen=True, eq=False)
class Padded:
    """Lines of a batch, padded on the right.

    Attributes:
        ids: int64 [lines, tokens].
        positions: int64 [lines, tokens].
        mask: bool [lines, 1, tokens, tokens], which tokens each token sees; None where every line is one text.
        weights: float32 [lines, texts, tokens], each text's average over its tokens that count.
        texts: all texts, line by line; `places` int64 [texts] is the index of each in `weights`, flattened.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    weights: torch.Tensor
    texts: list[Text]
    places: torch.Tensor


def pad(lines: Sequence[Line[Text]], position: Position, share: bool) -> Padded:
    """Pad lines to a batch for one forward pass."""
    ids, positions = padded(lines)
    most = max(len(line.texts) for line in lines)
    weights = torch.zeros(len(lines), most, ids.shape[1])
    for i, line in enumerate(lines):
        for j, (text, columns) in enumerate(zip(line.texts, line.paths, strict=True)):
            first, end = text.span(position)
            weights[i, j, torch.tensor(columns[first:end])] = 1 / (end - first)
    mask = visible(lines)[:, None] if share else None
    texts = [text for line in lines for text in line.texts]
    places = [i * most + j for i, line in enumerate(lines) for j in range(len(line.texts))]
    return Padded(ids, positions, mask, weights, texts, torch.tensor(places))
