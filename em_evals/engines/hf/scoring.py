"""Log-probabilities of given text: what several answers have in common is computed once.

Rows that generate nothing never join the batch that is decoded. They are computed as a tree: the beginning that all
contexts share (few-shot examples, a system prompt), then each different context, then each different answer to it. A
request's last token predicts nothing that is asked for and is not computed, so answers of one token cost their context
alone. Vocabulary logits are made only where a reported token is predicted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from em_evals.engines.hf.batch import WORTH_SHARING, Batch, common_prefix, left_padded, report
from em_evals.engines.hf.kv_cache import RowCache
from em_evals.engines.hf.loaded import Loaded
from em_evals.engines.hf.row import Row
from em_evals.engines.hf.sampling import token_logprobs

Group = list[Row]


def groups(rows: Sequence[Row], tokens: int, logits: int) -> list[Group]:
    """Group rows to score together: rows of one context are adjacent, contexts of similar length share a group.

    Args:
        rows: any rows that generate nothing.
        tokens: of contexts in one group, padding included, at most.
        logits: positions whose logits are held at a time, padding included, at most. One row may exceed either.
    """
    families: dict[Hashable, Group] = {}
    for row in rows:
        families.setdefault(_context(row), []).append(row)
    result: list[Group] = []
    contexts = width = longest = 0
    for family in sorted(families.values(), key=lambda family: -_start(family[0])):
        # A group's cost is padded: its longest context times its contexts, its longest answer times its rows.
        # Families come longest context first, so `width` is set by a group's first row.
        for i, row in enumerate(family):
            first = i == 0
            answer = max(longest, row.length - _start(row))
            fits = (
                width * (contexts + first) <= tokens
                and answer * (len(result[-1]) + 1 if result else 1) <= logits
            )
            if result and fits:
                result[-1].append(row)
                contexts, longest = contexts + first, answer
            else:
                result.append([row])
                contexts, width, longest = 1, _start(row), row.length - _start(row)
    return result


class Scoring(Batch):
    """A batch that is scored and discarded."""

    def score(self, rows: Group) -> None:
        """Set every row's `prompt_logprobs` and mark it finished."""
        asked = [row for row in rows if row.wants_prompt_logprobs and row.length > _start(row)]
        if not self.base.layout.rows:
            for row in asked:
                self._score_alone(row)
        elif asked:
            self._cache = RowCache(self.base.model.config)
            score = self._score_tree if self.base.layout.share else self._score_rows
            score(asked)
        for row in rows:
            row.stop_reason = "max_tokens"

    def _score_tree(self, rows: Group) -> None:
        # Three levels: the trunk (common to all contexts), the contexts, the answers. Between levels `_branch` copies
        # the cache to the rows of the next one; equal contexts and equal answers are computed once.
        contexts = {_context(row): row for row in rows}
        place = {key: i for i, key in enumerate(contexts)}
        heads = list(contexts.values())
        trunk = self._trunk(heads)
        # Each context's last logits predict its answers' first tokens.
        first = self._extend([row.request.prompt[trunk : _start(row)] for row in heads], heads, keep=1)[:, -1]
        answers = {(place[_context(row)], *_answer(row)): row for row in rows if _fed(row)}
        later: dict[Hashable, torch.Tensor] = {}
        if answers:
            self._branch([place[_context(row)] for row in answers.values()])
            logits = self._extend([_fed(row) for row in answers.values()], list(answers.values()), keep=0)
            # Rows are padded on the left: an answer's own logits are the last ones.
            later = {
                key: own[-len(_fed(row)) :] for (key, row), own in zip(answers.items(), logits, strict=True)
            }
        for row in rows:
            at = place[_context(row)]
            own = [first[at : at + 1]]
            if _fed(row):
                own.append(later[at, *_answer(row)])
            _report(self.base, row, torch.cat(own))

    def _trunk(self, heads: Group) -> int:
        """Compute what all contexts begin with, once for each model among them; return its length in tokens."""
        shared = common_prefix([row.request.prompt[: _start(row)] for row in heads])
        if shared < WORTH_SHARING:
            return 0
        kinds = [self._kind(row, shared) for row in heads]
        order = list(dict.fromkeys(kinds))
        firsts = [heads[kinds.index(kind)] for kind in order]
        # Causal attention: the trunk does not depend on what follows, only on the adapter and the interventions.
        self._extend([row.request.prompt[:shared] for row in firsts], firsts, keep=1)
        self._branch([order.index(kind) for kind in kinds])
        return shared

    def _score_alone(self, row: Row) -> None:
        """Score one row by itself, for models of which nothing more is known."""
        ids = torch.tensor([row.request.prompt], device=self.base.device)
        _report(self.base, row, self._forward_alone(ids, row, keep=0)[0, _start(row) - 1 : -1])

    def _score_rows(self, rows: Group) -> None:
        """Score without a tree, for models whose attention counts cache columns or whose blocks carry states."""
        longest = max(row.length - _start(row) for row in rows)
        logits = self._extend([row.request.prompt[:-1] for row in rows], rows, keep=longest)
        for row, own in zip(rows, logits, strict=True):
            _report(self.base, row, own[-(row.length - _start(row)) :])

    def _extend(self, tokens: list[tuple[int, ...]], rows: Group, keep: int) -> torch.Tensor:
        """Run each row's next tokens; return the logits of `_forward`."""
        ids, mask = left_padded(tokens, self.base.device)
        if not self._mask.shape[0]:
            self._mask, self._position = mask.new_zeros(len(rows), 0), mask.new_zeros(len(rows))
        return self._forward(ids, mask, keep, rows)

    def _branch(self, parents: list[int]) -> None:
        """Continue from copies of rows: new row i continues row `parents[i]`."""
        assert self._cache is not None  # noqa: S101 - set by score
        index = torch.tensor(parents, device=self.base.device)
        self._cache.keep(index)
        self._mask, self._position = self._mask[index], self._position[index]


def _start(row: Row) -> int:
    """Return the index of the first token to report; the tokens before it are the context."""
    return min(max(1, row.request.sampling.prompt_logprobs_from), row.length)


def _context(row: Row) -> Hashable:
    """Return the key of a context's computation: two rows with the same key share it.

    For the context's tokens, an answer that starts behind the context has not started: `min` makes such rows equal.
    """
    start = _start(row)
    return row.request.prompt[:start], row.adapter, row.slot, min(row.answer_start, start)


def _answer(row: Row) -> tuple[Hashable, ...]:
    """Return the key of an answer's computation in a given context."""
    return _fed(row), min(row.answer_start, row.length)


def _fed(row: Row) -> tuple[int, ...]:
    """Return the answer's tokens that predict another one."""
    return row.request.prompt[_start(row) : -1]


def _report(base: Loaded, row: Row, logits: torch.Tensor) -> None:
    """Record log-probabilities from `logits` [reported tokens, vocabulary], which predict tokens from `_start` on."""
    targets = torch.tensor(row.request.prompt[_start(row) :], dtype=torch.long, device=logits.device)
    report(base, row, token_logprobs(logits, targets, row.request.sampling.prompt_logprobs or 0))
