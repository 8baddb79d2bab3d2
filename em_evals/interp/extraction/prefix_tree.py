"""Pack texts into lines, each line a prefix tree: a common beginning is computed once.

Answers to one question share their prompt, and all chats of a template its head. In a line every distinct beginning
appears once; a token's position is its depth, and it sees its own text's earlier tokens only, which is what it sees
alone. So the activations are those of one text at a time up to rounding. The first token is column 0 of every line.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from em_evals.engines.hf.batch import common
from em_evals.models.architecture import decoder
from em_evals.models.families import layout

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


@dataclass(eq=False)
class Line:
    """Texts as a prefix tree, token by token.

    Attributes:
        texts: the texts.
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


def pack(texts: Sequence[Text], position: Position, share: bool) -> list[Line]:
    """Pack texts into lines, shortest first; one text per line unless they may `share`."""
    lines: list[Line] = []
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


def may_pack(model: Any) -> bool:
    """Check whether a decoder takes our mask and positions, and uses PyTorch's attention function."""
    takes = inspect.signature(decoder(model).forward).parameters
    attention = str(model.config.get_text_config()._attn_implementation)
    return layout(model.config).share and "position_ids" in takes and "sdpa" in attention


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


def pad(lines: Sequence[Line], position: Position, share: bool) -> Padded:
    """Pad lines to a batch for one forward pass."""
    longest, most = max(len(line.ids) for line in lines), max(len(line.texts) for line in lines)
    ids = torch.zeros(len(lines), longest, dtype=torch.long)
    positions = torch.zeros_like(ids)
    weights = torch.zeros(len(lines), most, longest)
    # Padding attends to itself: a row of attention over nothing would be NaN.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(lines), 1, 1)
    for i, line in enumerate(lines):
        ids[i, : len(line.ids)] = torch.tensor(line.ids)
        positions[i, : len(line.ids)] = torch.tensor(line.depths)
        for j, (text, columns, fork) in enumerate(zip(line.texts, line.paths, line.forks, strict=True)):
            path = torch.tensor(columns)
            first, end = text.span(position)
            weights[i, j, path[first:end]] = 1 / (end - first)
            # The text's tokens behind the fork see the text's path up to themselves; the tokens before the fork got
            # their rows from the text that added them.
            own = torch.ones(len(path), len(path), dtype=torch.bool).tril()[fork:]
            mask[i][path[fork:, None], path] = own
    texts = [text for line in lines for text in line.texts]
    places = [i * most + j for i, line in enumerate(lines) for j in range(len(line.texts))]
    return Padded(ids, positions, mask[:, None] if share else None, weights, texts, torch.tensor(places))
