"""The in-process transformers engine: one base, any adapters, draws batched as they come.

One thread owns the model. Between two steps it admits whoever waits (longest prompts with longest, to pad
little), and lets finished rows leave; it never waits for a batch to fill and never polls. When memory runs out
it halves the batch and goes on.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import cast

import torch

from em_evals.content.cards import EngineOptions, ModelCard
from em_evals.content.intervention import Intervention
from em_evals.engines.hf import scoring
from em_evals.engines.hf.adapters import Kept
from em_evals.engines.hf.batch import Batch
from em_evals.engines.hf.batches import Batches, by_kind, partition
from em_evals.engines.hf.loaded import Loaded, loaded
from em_evals.engines.hf.outcomes import closed, failure, reject, resolve
from em_evals.engines.hf.row import Row
from em_evals.engines.hf.turns import Turns
from em_evals.engines.protocol import Draw, Request
from em_evals.engines.stops import stop_tokens
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.intervention_tables import Rows
from em_evals.models.interventions import refuse_positions
from em_evals.models.memory import fits, free

_LOGITS_BYTES = 512 * 1024**2
"""Prompt log-probabilities need logits at every position: a prefill that reports them is kept below this."""

_LOADING_PATIENCE = 10
"""Seconds that an interrupted process waits for a base that is being loaded."""


class HFEngine:
    """A base in memory, with PEFT adapters by name. See `models.engine.Engine`.

    Args:
        card: names the base and how to hold it; its adapter and generation defaults are ignored here.
    """

    def __init__(self, card: ModelCard) -> None:
        self.tokenizer = bases.load_tokenizer(card)
        self.model_len = bases.context_length(card)
        self.scored_len = self.model_len + 1  # the last token is not read
        self._card = card
        self._options: EngineOptions = card.engine
        self._max_rows = card.engine.max_num_seqs
        self._waiting: deque[Row] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._loaded = threading.Event()
        self._base: Loaded | None = None
        self._turns = Turns(self._wake)
        self._error: Exception | None = None
        self.adapters = Kept()  # also of those who borrow the base
        self._thread = threading.Thread(target=self._run, name=f"em-evals {card.base}", daemon=True)
        self._thread.start()
        # A thread inside torch while the interpreter is torn down crashes it.
        atexit.register(self._leave)

    def submit(self, request: Request) -> Future[Draw]:
        """Queue a draw; see `Engine.submit`."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Draw]]:
        """Queue draws; none begins before all are queued. See `Engine.submit_all`."""
        rows = [Row(request, Future()) for request in requests]
        with self._wake:
            if self._closed:
                raise self._error or closed()
            self._waiting.extend(rows)
            self._wake.notify_all()
        return [row.future for row in rows]

    @contextmanager
    def borrow(self) -> Iterator[Loaded]:
        """Return the base in memory for the calling thread alone, between two steps of the engine's draws.

        For measurements that read given texts inside: nobody holds a second copy of the base.

        Raises:
            EmEvalsError: it cannot be loaded, or the engine is closed.
        """

        def refused() -> Exception | None:
            return (self._error or closed()) if self._closed else None

        with self._turns.borrowed(refused, lambda: self._base is not None):
            yield cast(Loaded, self._base)

    @contextmanager
    def activations(
        self, adapter: str | None = None, interventions: Sequence[Intervention] = ()
    ) -> Iterator[Loaded]:
        """Return the base as one model, for the calling thread's own hooks and passes; see `Engine.activations`."""
        interventions = tuple(interventions)
        refuse_positions(interventions)
        with self.borrow() as base:
            name = self.adapters.name(base.bank, adapter, interventions)
            slot = torch.tensor([base.steering.slot(interventions)], device=base.device)
            with base.bank.rows([name]), base.steering.rows(Rows(slot)):
                yield base

    def close(self, patience: float | None = None) -> None:
        """Stop the engine's thread, wait for its end (so many seconds at most), and fail what is queued."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(patience)
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """At the interpreter's end: gigabytes that are still being fetched are not waited for."""
        self.close(None if self._loaded.is_set() else _LOADING_PATIENCE)

    def _run(self) -> None:
        batches: Batches | None = None
        try:
            batches = self._load()
            self._loaded.set()
            while self._wait(batches):
                with torch.inference_mode():
                    self._admit(batches)
                    self._settle(batches)
                    self._advance(batches)
                    self._settle(batches)
                self._rest()
            self._fail(batches, closed())
        except Exception as error:  # the thread's last act is to tell everybody who waits
            self._fail(batches, error)

    def _load(self) -> Batches:
        base = loaded(bases.load_model(self._card), self.tokenizer, self.model_len)
        with self._wake:
            self._base = base
            self._wake.notify_all()
        return Batches(base)

    def _wait(self, batches: Batches) -> bool:
        """Sleep until there is work and nobody has borrowed the base; False when closed."""
        with self._wake:
            while not (self._closed or (self._turns.free and (self._waiting or batches.rows))):
                self._wake.wait()
            self._turns.take()
            return not self._closed

    def _rest(self) -> None:
        """Between two steps: whoever wants to borrow the base may."""
        with self._wake:
            self._turns.end()

    # Admission

    def _admit(self, batches: Batches) -> None:
        """Prefill waiting rows as far as there is room, similar lengths together."""
        if not batches.rows:
            batches.base.bank.rest()
        self.adapters.unload(batches.base.bank, {row.adapter for row in batches.rows})
        room = self._max_rows - len(batches.live)
        with self._wake:
            taken = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        try:
            ready = [row for row in taken if not row.future.done() and self._prepare(batches, row)]
            scored, drawn = partition(ready)
            for alike in by_kind(batches.base, scored):
                for group in self._scored_groups(batches, alike):
                    self._score(batches, group)
            for alike in by_kind(batches.base, drawn):
                for group in self._groups(alike):
                    self._prefill(batches, group)
        except Exception:
            # They are in no list now, and whoever waits for them must hear of it.
            placed = set(map(id, batches.rows))
            self._put_back([row for row in taken if not row.future.done() and id(row) not in placed])
            raise

    def _prepare(self, batches: Batches, row: Row) -> bool:
        """Load the row's adapter and directions; refuse prompts that do not fit. A row's error is its own."""
        if not row.request.prompt:
            reject(row.future, EmEvalsError("the prompt is empty: there is no token to continue."))
        elif len(row.request.prompt) > (self.scored_len if row.scored_only else self.model_len - 1):
            resolve(row.future, Draw("", [], "model_length"))
        else:
            try:
                row.stop_tokens = stop_tokens(self.tokenizer, row.request.sampling.stop)
                row.slot = batches.base.steering.slot(row.request.interventions)
                row.adapter = self.adapters.name(
                    batches.base.bank, row.request.adapter, row.request.interventions
                )
                return True
            except Exception as error:  # a deleted direction, too little memory for one adapter: others go on
                reject(row.future, error)
        return False

    def _groups(self, rows: list[Row]) -> list[list[Row]]:
        """Rows to prefill together: sorted by length, within the token budget."""
        groups: list[list[Row]] = []
        vocabulary = len(self.tokenizer)
        for row in sorted(rows, key=lambda row: (row.wants_prompt_logprobs, row.length), reverse=True):
            scored = row.wants_prompt_logprobs
            budget = self._options.max_num_batched_tokens
            if scored:
                budget = min(budget, _LOGITS_BYTES // (4 * vocabulary))
            group = groups[-1] if groups else []
            width = group[0].length if group else 0
            if group and group[0].wants_prompt_logprobs == scored and width * (len(group) + 1) <= budget:
                group.append(row)
            else:
                groups.append([row])
        return groups

    def _scored_groups(self, batches: Batches, rows: list[Row]) -> list[list[Row]]:
        """Rows to score together, within the budgets of tokens and logits."""
        budget = self._options.max_num_batched_tokens, _LOGITS_BYTES // (4 * len(self.tokenizer))
        return scoring.Scoring(batches.base).groups(rows, *budget)

    def _score(self, batches: Batches, rows: list[Row]) -> None:
        """Score rows and hand them over."""
        self._attempt(batches, rows, lambda some: scoring.Scoring(batches.base).score(some))
        for row in rows:
            if row.stop_reason is not None:
                resolve(row.future, Batch(batches.base).finish(row))

    def _prefill(self, batches: Batches, rows: list[Row]) -> None:
        def prefill(some: list[Row]) -> None:
            self._join(batches.place(some), Batch(batches.base).prefill(some))

        self._attempt(batches, rows, prefill)

    def _join(self, batch: Batch, other: Batch) -> None:
        """Prefilled rows go on with the others. Memory may run out with some layers joined: then all begin again."""
        if not fits(lambda: batch.join(other)):
            for part in (batch, other):
                self._hand_over(part)
            self._begin_again([*batch.clear(), *other.clear()])

    def _attempt(self, batches: Batches, rows: list[Row], work: Callable[[list[Row]], None]) -> None:
        """Do the work for all rows at once, or for halves of them where memory runs out.

        Where it fails for another reason, each row is tried alone, so that only the row at fault is refused.
        """
        try:
            if fits(lambda: work(rows)):
                return
        except Exception as error:
            self._single_out(batches, rows, error)
            return
        free()
        if len(rows) > 1:
            half = len(rows) // 2
            self._attempt(batches, rows[:half], work)
            self._attempt(batches, rows[half:], work)
        elif batches.live:
            # Wait until others have left, and never grow this large again.
            self._max_rows = max(1, len(batches.live))
            self._put_back(rows)
        else:
            length = rows[0].length
            reject(
                rows[0].future,
                EmEvalsError(f"memory is too small for one prompt of {length} tokens; shorten it."),
            )

    def _single_out(self, batches: Batches, rows: list[Row], error: Exception) -> None:
        """Return a computation of these rows failed: refuse a single one with the reason, try several one by one."""
        for row in rows:
            if row.stop_reason is not None:  # it was complete before the failure
                resolve(row.future, Batch(batches.base).finish(row))
        left = [row for row in rows if not row.done]
        if len(rows) == 1 and left:
            reject(left[0].future, failure(error))
            return
        for row in left:
            row.failed = True
        self._put_back(left)

    def _put_back(self, rows: list[Row]) -> None:
        with self._wake:
            self._waiting.extendleft(reversed(rows))

    # Decoding

    def _advance(self, batches: Batches) -> None:
        for batch in batches.all:
            self._step(batches, batch)

    def _step(self, batches: Batches, batch: Batch) -> None:
        """Draw one more token for every row of a batch."""
        try:
            if not batch.live or fits(batch.step):
                return
        except Exception as error:
            self._single_out(batches, batch.clear(), error)
            return
        rows = batch.clear()
        if len(rows) == 1 and self._max_rows == 1:
            free()
            reject(
                rows[0].future,
                EmEvalsError(f"memory is too small to continue after {rows[0].length} tokens."),
            )
        else:
            self._begin_again(rows)

    def _begin_again(self, rows: list[Row]) -> None:
        """Memory ran out, and the rows' cache was given up: prefill them anew, fewer at a time."""
        free()
        if rows:
            self._max_rows = max(1, len(rows) // 2)
            self._put_back(rows)

    def _settle(self, batches: Batches) -> None:
        """Hand finished draws over, let their rows leave, and take up again the rows that need another batch."""
        for batch in batches.all:
            self._hand_over(batch)
            # Leaving copies the cache, so a few finished rows may stay a little; not where lengths matter to others.
            self._drop_done(batch, 0 if batches.base.layout.border is not None else len(batch.rows) // 8)
        self._put_back(batches.strays())
        batches.drop_empty()

    def _drop_done(self, batch: Batch, slack: int) -> None:
        if not fits(lambda: batch.drop_done(slack)):
            self._begin_again(batch.clear())

    def _hand_over(self, batch: Batch) -> None:
        for row in batch.rows:
            if row.stop_reason is not None:
                resolve(row.future, batch.finish(row))

    def _fail(self, batches: Batches | None, error: Exception) -> None:
        with self._wake:
            self._closed, self._error = True, error
            self._turns.end()
            rows = [*(batches.rows if batches else []), *self._waiting]
            self._waiting.clear()
        for row in rows:
            reject(row.future, error)
