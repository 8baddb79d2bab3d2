"""Log-probabilities of given text: what several answers have in common is computed once.

Rows that generate nothing never join the batch that is decoded. They are computed as a tree: the beginning that all
contexts share (few-shot examples, a system prompt), then each different context, then each different answer to it. A
request's last token predicts nothing that is asked for and is not computed, so answers of one token cost their context
alone. Vocabulary logits are made only where a reported token is predicted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from em_evals.engines.hf import packing
from em_evals.engines.hf.batch import Batch, report
from em_evals.engines.hf.kv_cache import RowCache
from em_evals.engines.hf.loaded import Loaded
from em_evals.engines.hf.packing import first_reported
from em_evals.engines.hf.prefixes import WORTH_SHARING, common_prefix, distinct, left_padded
from em_evals.engines.hf.row import Row
from em_evals.engines.hf.sampling import token_logprobs

Group = list[Row]

_CPU_TOKENS = 1024
"""Tokens of a pass over lines on a CPU, at most: more are not computed faster, and lines differ more in length."""


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
    for family in sorted(families.values(), key=lambda family: -first_reported(family[0])):
        # A group's cost is padded: its longest context times its contexts, its longest answer times its rows.
        # Families come longest context first, so `width` is set by a group's first row.
        for i, row in enumerate(family):
            first = i == 0
            answer = max(longest, row.length - first_reported(row))
            fits = (
                width * (contexts + first) <= tokens
                and answer * (len(result[-1]) + 1 if result else 1) <= logits
            )
            if result and fits:
                result[-1].append(row)
                contexts, longest = contexts + first, answer
            else:
                result.append([row])
                contexts, width, longest = 1, first_reported(row), row.length - first_reported(row)
    return result


class Scoring(Batch):
    """A batch that is scored and discarded."""

    def score(self, rows: Group) -> None:
        """Set every row's `prompt_logprobs` and mark it finished."""
        asked = [row for row in rows if row.wants_prompt_logprobs and row.length > first_reported(row)]
        if not self.base.layout.rows:
            for row in asked:
                self._score_alone(row)
        elif asked and self.packs(asked):
            self._score_lines(asked)
        elif asked:
            self._cache = RowCache(self.base.model.config)
            score = self._score_tree if self.base.layout.share else self._score_rows
            score(asked)
        for row in rows:
            row.stop_reason = "max_tokens"

    def groups(self, rows: Sequence[Row], tokens: int, logits: int) -> list[Group]:
        """Group rows to score together within budgets of tokens and logits; see `groups` and `packing.groups`."""
        if not self.packs(rows):
            return groups(rows, tokens, logits)
        on_cpu = self.base.device.type == "cpu"
        return packing.groups(rows, min(tokens, _CPU_TOKENS) if on_cpu else tokens, logits)

    def packs(self, rows: Sequence[Row]) -> bool:
        """Check whether rows may be packed into lines: no effect on a token depends on where its answer begins."""
        return self.base.packs and not any(self.base.steering.positional(row.slot) for row in rows)

    def _score_lines(self, rows: Group) -> None:
        # The trunk is computed once for each model, and its cache copied to the lines.
        trunk = packing.trunk_of(rows)
        lines = packing.lines(packing.families(rows, trunk), trunk)
        firsts = [line.texts[0] for line in lines]
        self._cache = RowCache(self.base.model.config)
        if trunk:
            self._compute_trunk(firsts, trunk)
        else:
            self._mask = torch.zeros(len(lines), 0, dtype=torch.long, device=self.base.device)
            self._position = self._mask.new_zeros(len(lines))
        ids, tree, places = packing.tree(lines, trunk)
        logits = self._forward(ids.to(self.base.device), torch.ones_like(ids), 0, firsts, tree)
        for line, own, columns in zip(lines, logits, places, strict=True):
            for row, path in zip(line.texts, line.paths, strict=True):
                wanted = [columns[column] for column in path[first_reported(row) - 1 - trunk :]]
                first, last = wanted[0], wanted[-1] + 1
                _report(self.base, row, own[first:last] if last - first == len(wanted) else own[wanted])

    def _score_tree(self, rows: Group) -> None:
        # Three levels: the trunk (common to all contexts), the contexts, the answers. Between levels `_spread` copies
        # the cache to the rows of the next one; equal contexts and equal answers are computed once.
        contexts = {_context(row): row for row in rows}
        place = {key: i for i, key in enumerate(contexts)}
        heads = list(contexts.values())
        trunk = self._trunk(heads)
        # Each context's last logits predict its answers' first tokens.
        first = self._extend(
            [row.request.prompt[trunk : first_reported(row)] for row in heads], heads, keep=1
        )[:, -1]
        answers = {(place[_context(row)], *_answer(row)): row for row in rows if _fed(row)}
        later: dict[Hashable, torch.Tensor] = {}
        if answers:
            self._spread([place[_context(row)] for row in answers.values()])
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
        shared = common_prefix([row.request.prompt[: first_reported(row)] for row in heads])
        if shared < WORTH_SHARING:
            return 0
        self._compute_trunk(heads, shared)
        return shared

    def _compute_trunk(self, heads: Group, shared: int) -> None:
        firsts, owners = distinct([self._kind(row, shared) for row in heads])
        # Causal attention: the trunk does not depend on what follows, only on the adapter and the interventions.
        computed = [heads[i] for i in firsts]
        self._extend([row.request.prompt[:shared] for row in computed], computed, keep=1)
        self._spread(owners)

    def _score_alone(self, row: Row) -> None:
        """Score one row by itself, for models of which nothing more is known."""
        ids = torch.tensor([row.request.prompt], device=self.base.device)
        _report(self.base, row, self._forward_alone(ids, row, keep=0)[0, first_reported(row) - 1 : -1])

    def _score_rows(self, rows: Group) -> None:
        """Score without a tree, for models whose attention counts cache columns or whose blocks carry states."""
        longest = max(row.length - first_reported(row) for row in rows)
        logits = self._extend([row.request.prompt[:-1] for row in rows], rows, keep=longest)
        for row, own in zip(rows, logits, strict=True):
            _report(self.base, row, own[-(row.length - first_reported(row)) :])

    def _extend(self, tokens: list[tuple[int, ...]], rows: Group, keep: int) -> torch.Tensor:
        """Run each row's next tokens; return the logits of `_forward`."""
        ids, mask = left_padded(tokens, self.base.device)
        if not self._mask.shape[0]:
            self._mask, self._position = mask.new_zeros(len(rows), 0), mask.new_zeros(len(rows))
        return self._forward(ids, mask, keep, rows)


def _context(row: Row) -> Hashable:
    """Return the key of a context's computation: two rows with the same key share it.

    For the context's tokens, an answer that starts behind the context has not started: `min` makes such rows equal.
    """
    start = first_reported(row)
    return row.request.prompt[:start], row.adapter, row.slot, min(row.answer_start, start)


def _answer(row: Row) -> tuple[Hashable, ...]:
    """Return the key of an answer's computation in a given context."""
    return _fed(row), min(row.answer_start, row.length)


def _fed(row: Row) -> tuple[int, ...]:
    """Return the answer's tokens that predict another one."""
    return row.request.prompt[first_reported(row) : -1]


def _report(base: Loaded, row: Row, logits: torch.Tensor) -> None:
    """Record log-probabilities from `logits` [reported tokens, vocabulary], which predict tokens from `_start` on."""
    targets = torch.tensor(row.request.prompt[first_reported(row) :], dtype=torch.long, device=logits.device)
    report(base, row, token_logprobs(logits, targets, row.request.sampling.prompt_logprobs or 0))
