"""Token sampling: inverse-transform sampling with one uniform number per row and token.

A row's uniform numbers come from its own seed, so that a draw does not depend on which rows share its batch. It is
also faster than torch.multinomial, which draws one exponential for every entry of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from em_evals.engines.protocol import Sampling, TokenLogprob

_BLOCK = 256
"""Entries of the vocabulary that are summed together before one of them is chosen."""
_CANDIDATES = 512
"""Top-p looks at this many most likely tokens first; rows whose nucleus is larger sort the whole vocabulary."""


class UniformStream:
    """A row's own stream of uniform numbers in [0, 1): Philox, keyed by the draw's seed."""

    def __init__(self, seed: int) -> None:
        # SeedSequence decorrelates neighbouring seeds; it takes non-negative integers only.
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed % 2**128)))

    def next(self) -> float:
        """Return the next number of the stream."""
        return float(self._generator.random())


def choose(
    logits: torch.Tensor, rows: Sequence[Sampling], uniforms: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token id for each row.

    Args:
        logits: [rows, vocabulary], float32.
        rows: how each row samples.
        uniforms: a number in [0, 1) for each row (unused where the temperature is 0).

    Returns:
        The tokens, [rows] int64, and whether each row's distribution is finite, [rows] bool; on the logits' device.
    """
    # The largest logit is finite exactly if the distribution is: `max` propagates NaN, and costs as much as argmax.
    largest, tokens = logits.max(dim=-1)
    finite = largest.isfinite()
    if logits.device.type == "mps" and any(row.temperature > 0 for row in rows):
        # MPS has no float64, which the cumulative sums below need.
        return tokens.copy_(choose(logits.cpu(), rows, uniforms)[0]), finite
    for truncated in (False, True):
        chosen = [i for i, row in enumerate(rows) if row.temperature > 0 and _truncates(row) == truncated]
        if chosen:
            index = torch.tensor(chosen, device=logits.device)
            some = logits if len(chosen) == len(rows) else logits[index]
            pick = _from_nucleus if truncated else _from_all
            tokens[index] = pick(some, [rows[i] for i in chosen], [uniforms[i] for i in chosen])
    return tokens, finite


def _truncates(row: Sampling) -> bool:
    return row.top_p < 1 or _top_k(row) > 0


def _top_k(row: Sampling) -> int:
    """Return how many tokens top_k keeps, 0 where it keeps all."""
    return max(row.top_k or 0, 0)


def _from_all(logits: torch.Tensor, rows: Sequence[Sampling], uniforms: Sequence[float]) -> torch.Tensor:
    return _invert(_probabilities(logits, rows), uniforms)


def _from_nucleus(logits: torch.Tensor, rows: Sequence[Sampling], uniforms: Sequence[float]) -> torch.Tensor:
    probabilities = _probabilities(logits, rows)
    vocabulary = probabilities.shape[-1]
    top_k = torch.tensor([min(_top_k(row) or vocabulary, vocabulary) for row in rows], device=logits.device)
    top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float64, device=logits.device)
    width = min(vocabulary, _CANDIDATES)
    values, ids = probabilities.topk(width, dim=-1)
    # top_p is a share of the mass that top_k keeps. Without top_k candidates that hold top_p of the whole distribution
    # hold the nucleus; a top_k beyond the candidates has a mass that only the full sort knows.
    inside = (top_k <= width) | ((top_k == vocabulary) & (values.double().sum(-1) >= top_p))
    if width < vocabulary and not bool(inside.all()):
        values, ids = probabilities.sort(dim=-1, descending=True)
    # From here on values are in descending order in each row; what top_k excludes becomes 0.
    rank = torch.arange(values.shape[-1], device=logits.device)
    values = values.double() * (rank < top_k[:, None])
    # Mass of the more likely tokens: a token belongs to the nucleus if it begins before top_p is reached, so the most
    # likely token always does.
    before = values.cumsum(-1) - values
    total = values.sum(-1) if values.shape[-1] == vocabulary else _mass(values, probabilities, top_k)
    values = values * (before < (top_p * total)[:, None])
    # The remaining values are not renormalized: `_invert` scales the uniform number by their sum instead.
    return ids.gather(-1, _invert(values, uniforms)[:, None]).squeeze(-1)


def _mass(values: torch.Tensor, probabilities: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Return the mass that top_k keeps, [rows]: that of the candidates, or the whole mass of a row without top_k."""
    bites = top_k <= values.shape[-1]
    return torch.where(bites, values.sum(-1), probabilities.double().sum(-1))


def _probabilities(logits: torch.Tensor, rows: Sequence[Sampling]) -> torch.Tensor:
    if all(row.temperature == 1 for row in rows):
        return torch.softmax(logits, dim=-1)
    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device, dtype=logits.dtype)
    return torch.softmax(logits / temperatures[:, None], dim=-1)


def _invert(weights: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Return the first index whose cumulative weight exceeds uniform · total; float64 keeps the sums monotone.

    The vocabulary is summed in blocks, and only the block that holds the index is summed entry by entry: a cumulative
    sum of everything takes many times as long as a sum. Blocks are summed in the weights' own dtype, whose rounding
    moves an edge between two tokens by less than that of the softmax does.
    """
    vocabulary = weights.shape[-1]
    blocks = -(-vocabulary // _BLOCK)
    if vocabulary % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - vocabulary))
    parts = weights.view(len(weights), blocks, _BLOCK)
    cumulated = parts.sum(-1).cumsum(-1, dtype=torch.float64)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None] * cumulated[:, -1:]
    block = _beyond(cumulated, targets)
    before = torch.where(block > 0, cumulated.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    inner = parts.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    # Both sums of the block are the same up to rounding: the target must lie below the one that is searched.
    within = torch.minimum(targets - before, inner[:, -1:].nextafter(inner.new_zeros(())))
    index = block * _BLOCK + _beyond(inner, within)
    return index[:, 0].clamp_(max=vocabulary - 1)


def _beyond(cumulated: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return int64 [rows, 1], the first index whose cumulative weight exceeds the row's target [rows, 1]."""
    # right=True skips entries of weight 0 (their cumulative weight equals that of the entry before).
    found = torch.searchsorted(cumulated, targets, right=True)
    return found.clamp_(max=cumulated.shape[-1] - 1)


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, top: int) -> list[TokenLogprob]:
    """Compute the log-probabilities of given tokens under given logits.

    Args:
        logits: [positions, vocabulary]; computed in float32.
        tokens: [positions] int64.
        top: number of most likely tokens to report at each position.
    """
    logits = logits.float()
    normaliser = logits.logsumexp(dim=-1)
    chosen = (logits.gather(-1, tokens[:, None]).squeeze(-1) - normaliser).tolist()
    ids = tokens.tolist()
    if top == 0:
        return [TokenLogprob(token, logprob) for token, logprob in zip(ids, chosen, strict=True)]
    values, indices = logits.topk(min(top, logits.shape[-1]), dim=-1)
    likeliest = [
        tuple(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(indices.tolist(), (values - normaliser[:, None]).tolist(), strict=True)
    ]
    return [TokenLogprob(*fields) for fields in zip(ids, chosen, likeliest, strict=True)]
