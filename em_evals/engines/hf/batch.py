"""The rows being decoded together: prefill, step, join, leave. Scheduling is hf_engine.py's.

Rows of different adapters and sampling settings share a batch. Everything here runs on the engine's thread, under
`torch.inference_mode`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from transformers.cache_utils import DynamicCache

from em_evals.engines import finite
from em_evals.engines.hf.kv_cache import RowCache
from em_evals.engines.hf.loaded import Loaded
from em_evals.engines.hf.outcomes import reject
from em_evals.engines.hf.packing import Tree
from em_evals.engines.hf.prefixes import WORTH_SHARING, common_prefix, distinct, left_padded
from em_evals.engines.hf.row import Row
from em_evals.engines.hf.sampling import choose, token_logprobs
from em_evals.engines.protocol import Draw, StopReason, TokenLogprob
from em_evals.models.intervention_tables import Rows

Kind = TypeVar("Kind", bound="Batch")


class Batch:
    """Rows that share a cache.

    Where a base's layout lets rows share nothing, a batch is one row: it is computed without padding or mask, on
    transformers' own cache, or on none where that would not be exact.

    Args:
        base: the model, its hooks and its layout.
    """

    def __init__(self, base: Loaded) -> None:
        self.base = base
        self.rows: list[Row] = []
        self._cache: RowCache | None = None
        self._own_cache: DynamicCache | None = None
        # [rows, columns]: which cache columns a row sees (1) and which are padding (0).
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=base.device)
        self._position = torch.zeros(0, dtype=torch.long, device=base.device)
        self._last = torch.zeros(0, dtype=torch.long, device=base.device)

    def fresh(self, kind: type[Kind]) -> Kind:
        """Return an empty batch of the same model."""
        return kind(self.base)

    @property
    def live(self) -> list[Row]:
        """Rows that still want tokens."""
        return [row for row in self.rows if not row.done]

    def prefill(self, rows: list[Row]) -> Batch:
        """Return a new batch of these rows with their first token drawn. Memory errors leave `self` as it was.

        What all rows begin with (the system prompt, the template's head) is computed once for each adapter and set
        of interventions, and so is the rest of a prompt that several rows have (epochs of one question).
        """
        batch = self.fresh(Batch)
        # Rows of an adapter are neighbors, so that what it adds is computed on a slice of the batch.
        batch.rows = sorted(rows, key=lambda row: row.adapter or "")
        scored = any(row.wants_prompt_logprobs for row in rows)
        if not self.base.layout.rows:
            batch._prefill_alone(scored)
            return batch
        batch._cache = RowCache(self.base.model.config)
        shared = common_prefix([row.tokens for row in rows]) if self.base.layout.share else 0
        shared = shared if shared >= WORTH_SHARING else 0
        firsts, owners = distinct([(row.tokens, batch._kind(row, row.length)) for row in batch.rows])
        computed = [batch.rows[i] for i in firsts]
        head = batch._prefill_head(computed, shared, scored) if shared else None
        ids, mask = left_padded([row.tokens[shared:] for row in computed], self.base.device)
        if head is None:
            batch._mask = mask.new_zeros(len(computed), 0)
            batch._position = mask.new_zeros(len(computed))
        logits = batch._forward(ids, mask, keep=0 if scored else 1, rows=computed)
        if scored:
            for row, owner in zip(batch.rows, owners, strict=True):
                if row.wants_prompt_logprobs:
                    # Padding is on the left: a row's own logits are the last ones.
                    own = logits[owner, ids.shape[1] - (row.length - shared) :]
                    _score_prompt(self.base, row, own if head is None else torch.cat([head[owner], own]))
        batch._spread(owners)
        batch._draw(logits[owners, -1])
        return batch

    def _prefill_alone(self, scored: bool) -> None:
        """Read the one row by itself and draw its first token."""
        (row,) = self.rows
        if self.base.caches:
            self._own_cache = DynamicCache(config=self.base.model.config)
        ids = torch.tensor([row.tokens], device=self.base.device)
        logits = self._forward_alone(ids, row, keep=0 if scored else 1)
        if scored:
            _score_prompt(self.base, row, logits[0])
        self._draw(logits[:, -1])

    def _prefill_head(self, rows: list[Row], length: int, scored: bool) -> list[torch.Tensor]:
        """Compute the rows' common beginning once for each model among them and hand it to every row.

        Returns:
            For each row, logits [length, vocabulary] of the beginning (its last position only unless `scored`).
        """
        firsts, owners = distinct([self._kind(row, length) for row in rows])
        computed = [rows[i] for i in firsts]
        ids = torch.tensor([rows[0].tokens[:length]] * len(computed), device=self.base.device)
        self._mask = ids.new_zeros(len(computed), 0)
        self._position = ids.new_zeros(len(computed))
        logits = self._forward(ids, torch.ones_like(ids), keep=0 if scored else 1, rows=computed)
        self._spread(owners)
        return [logits[i] for i in owners]

    def _spread(self, owners: list[int]) -> None:
        """Continue from copies of what was computed: row i continues computed row `owners[i]`."""
        assert self._cache is not None  # noqa: S101 - set by prefill and by score
        if owners == list(range(len(self._mask))):
            return
        index = torch.tensor(owners, device=self.base.device)
        self._cache.keep(index)
        self._mask, self._position = self._mask[index], self._position[index]

    def _kind(self, row: Row, length: int) -> tuple[str | None, int, int]:
        """Rows of one kind have the same keys and values over a common beginning."""
        begin = min(row.answer_start, length) if self.base.steering.positional(row.slot) else 0
        return row.adapter, row.slot, begin

    def step(self) -> None:
        """Draw one more token for every row."""
        ids = self._last[:, None]
        if not self.base.layout.rows:
            (row,) = self.rows
            if self._own_cache is None:
                ids = torch.tensor([row.tokens], device=self.base.device)
            self._draw(self._forward_alone(ids, row, keep=1)[:, -1])
            return
        self._draw(self._forward(ids, torch.ones_like(ids), keep=1)[:, -1])

    def join(self, other: Batch) -> None:
        """Append another batch's rows to this one."""
        if self._cache is None or not self.rows:
            self.rows, self._cache, self._own_cache = other.rows, other._cache, other._own_cache
            self._mask, self._position, self._last = other._mask, other._position, other._last
            return
        assert other._cache is not None  # noqa: S101 - a prefilled batch has a cache
        # All rows must write their next token into the same column: pad the shorter cache on the left.
        gap = self._cache.length - other._cache.length
        shorter = other if gap > 0 else self
        if gap and shorter._cache is not None:
            shorter._cache.shift(abs(gap))
            shorter._mask = torch.nn.functional.pad(shorter._mask, (abs(gap), 0))
        self._cache.join(other._cache)
        self.rows = self.rows + other.rows
        self._mask = torch.cat([self._mask, other._mask])
        self._position = torch.cat([self._position, other._position])
        self._last = torch.cat([self._last, other._last])

    def release(self, rows: list[Row]) -> None:
        """Remove rows from this batch; they are prefilled again elsewhere."""
        gone = set(map(id, rows))
        self._keep([i for i, row in enumerate(self.rows) if id(row) not in gone])

    def drop_done(self, slack: int = 0) -> None:
        """Remove finished rows, once there are more than `slack` of them (removing copies the cache)."""
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if not kept or len(self.rows) - len(kept) > slack:
            self._keep(kept)

    def _keep(self, kept: list[int]) -> None:
        if not kept:
            self.clear()
        elif len(kept) < len(self.rows) and self._cache is not None:
            index = torch.tensor(kept, device=self.base.device)
            self.rows = [self.rows[i] for i in kept]
            self._mask, self._position, self._last = (
                self._mask[index],
                self._position[index],
                self._last[index],
            )
            self._cache.keep(index)
            # Leading columns that are padding in every remaining row can go.
            spare = int(self._mask.any(0).int().argmax())
            if spare:
                self._cache.shift(-spare)
                self._mask = self._mask[:, spare:]

    def clear(self) -> list[Row]:
        """Drop the cache; return the unfinished rows, to be prefilled again."""
        live, self.rows, self._cache, self._own_cache = self.live, [], None, None
        return live

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        keep: int,
        rows: list[Row] | None = None,
        tree: Tree | None = None,
    ) -> torch.Tensor:
        """Run the model on new tokens and remember them.

        Args:
            ids: [rows, new] token ids, padded on the left.
            mask: [rows, new], 0 where `ids` is padding.
            keep: last positions to compute logits for; 0 keeps all.
            rows: whose adapters and interventions, by default those of the batch.
            tree: what each token sees and where it stands, where that is not all before it; nothing follows then.

        Returns:
            Logits [rows, kept, vocabulary], float32; the tree's `wanted` ones in the model's dtype where there is one.
        """
        rows = rows or self.rows
        self._mask = torch.cat([self._mask, mask], dim=1)
        positions, seen = (self._position[:, None] + mask.cumsum(1) - 1).clamp(min=0), self._mask
        self._position = self._position + mask.sum(1)
        if tree is not None:
            positions, seen = tree.positions.to(ids.device), tree.visible.to(ids.device)
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": keep}
        options = {name: value for name, value in options.items() if name in self.base.arguments}
        with (
            self.base.bank.rows([row.adapter for row in rows], ids.numel()),
            self.base.steering.rows(self._steered(rows, positions)),
            self.base.wanted(None if tree is None else tree.wanted),
        ):
            output = self.base.model(
                input_ids=ids,
                attention_mask=seen,
                use_cache=True,
                **{str(self.base.cache_name): self._cache},
                **options,
            )
        # Those of a tree are many, and are converted text by text.
        return output.logits if tree is not None else output.logits[:, -keep:].float()

    def _forward_alone(self, ids: torch.Tensor, row: Row, keep: int) -> torch.Tensor:
        """Run the model on one row's new tokens, or on all of its tokens where there is no cache.

        Returns:
            Logits [1, kept, vocabulary], float32; `keep` as in `_forward`.
        """
        first = row.length - ids.shape[1]
        positions = torch.arange(first, row.length, device=self.base.device)[None]
        options: dict[str, Any] = {"use_cache": self._own_cache is not None}
        if self._own_cache is not None:
            options[str(self.base.cache_name)] = self._own_cache
        if "logits_to_keep" in self.base.arguments:
            options["logits_to_keep"] = keep
        with (
            self.base.bank.rows([row.adapter], ids.numel()),
            self.base.steering.rows(self._steered([row], positions)),
        ):
            output = self.base.model(input_ids=ids, **options)
        return output.logits[:, -keep:].float()

    def _steered(self, rows: list[Row], positions: torch.Tensor) -> Rows | None:
        """Return what the interventions' hooks need about the rows; None where no row has interventions."""
        if not any(row.slot for row in rows):
            return None
        slots, answers = ([getattr(row, name) for row in rows] for name in ("slot", "answer_start"))
        return Rows(
            torch.tensor(slots, device=self.base.device),
            positions,
            torch.tensor(answers, device=self.base.device),
        )

    def _draw(self, logits: torch.Tensor) -> None:
        """Draw each live row's next token from its logits [rows, vocabulary], and finish rows that end."""
        settings = [row.request.sampling for row in self.rows]
        uniforms = [0.0 if row.done else row.uniform() for row in self.rows]
        self._last, usable = choose(logits, settings, uniforms)
        for i, row in enumerate(self.rows):
            if row.forced:
                self._last[i] = row.forced.pop(0)
        # One transfer from the device for both.
        chosen = torch.stack([self._last, usable.long()]).tolist()
        for i, (row, token, is_finite) in enumerate(zip(self.rows, *chosen, strict=True)):
            if row.done:
                continue
            if not is_finite:
                refuse(self.base, row, "answer", len(row.generated), math.nan)
                continue
            row.generated.append(token)
            if row.request.sampling.logprobs:
                top = row.request.sampling.top_logprobs
                row.logprobs += token_logprobs(logits[i : i + 1], self._last[i : i + 1], top)
            row.stop_reason = self._ends(row, token)

    def _ends(self, row: Row, token: int) -> StopReason | None:
        request = row.request
        ended = token in self.base.end_tokens or token in row.stop_tokens
        ended = ended or token == request.end or token == request.call_end
        if ended and not row.forced:
            return "stop"
        if row.request.sampling.stop and (cut := self._stop_text(row)) is not None:
            row.text = cut
            return "stop"
        thought = 0 if request.thought is None else row.limited(self.base.tokenizer)
        if len(row.generated) - thought >= request.sampling.max_tokens:
            return "max_tokens"
        if row.length >= self.base.model_len:
            return "model_length"
        return None

    def _stop_text(self, row: Row) -> str | None:
        """Return the draw's text before the first stop text, if one has been generated."""
        text = self.decode(row)
        found = [place for stop in row.request.sampling.stop if (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else None

    def decode(self, row: Row) -> str:
        """Return the generated text without special tokens."""
        text: str = self.base.tokenizer.decode(
            row.generated, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def finish(self, row: Row) -> Draw:
        """Return the finished draw."""
        text = row.text if row.text is not None else self.decode(row)
        return Draw(text, row.generated, row.stop_reason or "stop", row.logprobs, row.prompt_logprobs)


def _score_prompt(base: Loaded, row: Row, logits: torch.Tensor) -> None:
    """Record the prompt's log-probabilities: the logits [tokens, vocabulary] at position i predict token i + 1."""
    start, end = row.request.sampling.prompt_logprobs_from, len(row.request.prompt)
    top = row.request.sampling.prompt_logprobs or 0
    targets = torch.tensor(row.request.prompt[start:], dtype=torch.long, device=logits.device)
    report(base, row, token_logprobs(logits[start - 1 : end - 1], targets, top))


def report(base: Loaded, row: Row, entries: list[TokenLogprob]) -> None:
    """Record the prompt's log-probabilities; a row with one that is not finite fails."""
    row.prompt_logprobs = entries
    if (place := finite.first(entries)) is not None:
        refuse(base, row, "prompt", place, entries[place].logprob)


def refuse(base: Loaded, row: Row, where: str, place: int, value: float) -> None:
    """Fail a row whose distribution is not finite; the others of its batch go on."""
    reject(row.future, finite.error(row.request, where, place, value, base.damage))
