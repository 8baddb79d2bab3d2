"""The in-process transformers engine: one base, any adapters, draws batched as they come.

One thread owns the model. Between two steps it admits whoever waits (longest prompts with longest, to pad
little), and lets finished rows leave; it never waits for a batch to fill and never polls. When memory runs out
it halves the batch and goes on.
"""

from __future__ import annotations

import atexit
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from em_evals.cards import EngineOptions, ModelCard
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models import bases, lora_files, scoring
from em_evals.models.adapters import detach, with_adapter
from em_evals.models.batch import Batch
from em_evals.models.engine import Draw, Request
from em_evals.models.interventions import Steering
from em_evals.models.memory import fits, free
from em_evals.models.row import PEFT_BASE, Row

_LOGITS_BYTES = 512 * 1024**2
"""Prompt log-probabilities need logits at every position: a prefill that reports them is kept below this."""

_LOADING_PATIENCE = 10
"""Seconds that an interrupted process waits for a base that is being loaded."""
_ADAPTERS_KEPT = 16
"""Adapters that stay in memory (float32, PEFT's way) when no row of the batch needs them."""


class HFEngine:
    """A base in memory, with PEFT adapters by name. See `models.engine.Engine`.

    Args:
        card: names the base and how to hold it; its adapter and generation defaults are ignored here.
    """

    def __init__(self, card: ModelCard) -> None:
        self.tokenizer = bases.load_tokenizer(card)
        self.model_len = bases.context_length(card)
        self.weighed_len = self.model_len + 1  # the last token is not read
        self._card = card
        self._options: EngineOptions = card.engine
        self._max_rows = card.engine.max_num_seqs
        self._waiting: deque[Row] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._loaded = threading.Event()
        self._error: Exception | None = None
        self._adapters: dict[tuple[str, int, tuple[Intervention, ...]], str] = {}
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name=f"em-evals {card.base}", daemon=True)
        self._thread.start()
        # A thread inside torch while the interpreter is torn down crashes it.
        atexit.register(self._leave)

    def submit(self, request: Request) -> Future[Draw]:
        """Queue a draw; see `Engine.submit`."""
        row = Row(request, Future())
        with self._wake:
            if self._closed:
                raise self._error or _closed()
            self._waiting.append(row)
            self._wake.notify()
        return row.future

    def close(self, patience: float | None = None) -> None:
        """Stop the engine's thread, wait for its end (so many seconds at most), and fail what is queued."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(patience)
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """At the interpreter's end: gigabytes that are still being fetched are not waited for."""
        self.close(None if self._loaded.is_set() else _LOADING_PATIENCE)

    def _run(self) -> None:
        batch: Batch | None = None
        try:
            batch = self._load()
            self._loaded.set()
            while self._wait(batch):
                with torch.inference_mode():
                    self._admit(batch)
                    self._settle(batch)
                    self._advance(batch)
                    self._settle(batch)
            self._fail(batch, _closed())
        except Exception as error:  # the thread's last act is to tell everybody who waits
            self._fail(batch, error)

    def _load(self) -> Batch:
        model = bases.load_model(self._card)
        end = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = {self.tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])} - {None}
        return Batch(model, self.tokenizer, frozenset(ends), self.model_len, Steering(model))

    def _wait(self, batch: Batch) -> bool:
        """Sleep until there is work; False when closed."""
        with self._wake:
            while not (self._waiting or batch.rows or self._closed):
                self._wake.wait()
            return not self._closed

    # Admission

    def _admit(self, batch: Batch) -> None:
        """Prefill waiting rows as far as there is room, similar lengths together."""
        self._unload(batch)
        room = self._max_rows - len(batch.live)
        with self._wake:
            taken = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        try:
            ready = [row for row in taken if not row.future.done() and self._prepare(batch, row)]
            scored, drawn = _partition(ready)
            for group in self._scored_groups(scored):
                self._score(batch, group)
            for group in self._groups(drawn):
                self._prefill(batch, group)
        except Exception:
            # They are in no list now, and whoever waits for them must hear of it.
            in_batch = set(map(id, batch.rows))
            self._put_back([row for row in taken if not row.future.done() and id(row) not in in_batch])
            raise

    def _prepare(self, batch: Batch, row: Row) -> bool:
        """Load the row's adapter and directions; refuse prompts that do not fit. A row's error is its own."""
        if not row.request.prompt:
            _reject(row.future, EmEvalsError("the prompt is empty: there is no token to continue."))
        elif len(row.request.prompt) > (self.weighed_len if row.scored_only else self.model_len - 1):
            _resolve(row.future, Draw("", [], "model_length"))
        else:
            try:
                row.slot = batch.steering.slot(row.request.interventions)
                row.adapter = self._adapter(batch, row.request.adapter, row.request.interventions)
                return True
            except (
                Exception
            ) as error:  # a direction deleted meanwhile, memory too small for one adapter: others go on
                _reject(row.future, error)
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

    def _scored_groups(self, rows: list[Row]) -> list[list[Row]]:
        """Rows to score together, within the budgets of tokens and logits."""
        return scoring.groups(
            rows, self._options.max_num_batched_tokens, _LOGITS_BYTES // (4 * len(self.tokenizer))
        )

    def _score(self, batch: Batch, rows: list[Row]) -> None:
        """Score rows and hand them over."""
        self._within_memory(batch, rows, lambda some: batch.fresh(scoring.Scoring).score(some))
        for row in rows:
            if row.stop_reason is not None:
                _resolve(row.future, batch.finish(row))

    def _prefill(self, batch: Batch, rows: list[Row]) -> None:
        self._within_memory(batch, rows, lambda some: self._join(batch, batch.prefill(some)))

    def _join(self, batch: Batch, other: Batch) -> None:
        """Prefilled rows go on with the others. Memory may run out with some layers joined: then all begin again."""
        if not fits(lambda: batch.join(other)):
            for part in (batch, other):
                self._hand_over(part)
            self._begin_again([*batch.clear(), *other.clear()])

    def _within_memory(self, batch: Batch, rows: list[Row], work: Callable[[list[Row]], None]) -> None:
        """Do the work for all rows at once, or for halves of them where memory runs out."""
        if fits(lambda: work(rows)):
            return
        free()
        if len(rows) > 1:
            half = len(rows) // 2
            self._within_memory(batch, rows[:half], work)
            self._within_memory(batch, rows[half:], work)
        elif batch.live:
            # Wait until others have left, and never grow this large again.
            self._max_rows = max(1, len(batch.live))
            self._put_back(rows)
        else:
            length = rows[0].length
            _reject(
                rows[0].future,
                EmEvalsError(f"memory is too small for one prompt of {length} tokens; shorten it."),
            )

    def _put_back(self, rows: list[Row]) -> None:
        with self._wake:
            self._waiting.extendleft(reversed(rows))

    # Decoding

    def _advance(self, batch: Batch) -> None:
        if not batch.rows or fits(batch.step):
            return
        rows = batch.clear()
        if len(rows) == 1 and self._max_rows == 1:
            free()
            _reject(
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

    def _settle(self, batch: Batch) -> None:
        """Hand finished draws over and let their rows leave."""
        self._hand_over(batch)
        # Leaving copies the cache, so a few finished rows may stay a little.
        if not fits(lambda: batch.drop_done(slack=len(batch.rows) // 8)):
            self._begin_again(batch.clear())

    def _hand_over(self, batch: Batch) -> None:
        for row in batch.rows:
            if row.stop_reason is not None:
                _resolve(row.future, batch.finish(row))

    def _fail(self, batch: Batch | None, error: Exception) -> None:
        with self._wake:
            self._closed, self._error = True, error
            rows = [*(batch.rows if batch else []), *self._waiting]
            self._waiting.clear()
        for row in rows:
            _reject(row.future, error)

    # Adapters

    def _adapter(self, batch: Batch, source: str | None, interventions: tuple[Intervention, ...]) -> str:
        """PEFT's name of an adapter with its scales, loading it on first use."""
        if source is None:
            return PEFT_BASE
        scales = tuple(one for one in interventions if one.op == "scale_adapter")
        key = source, lora_files.written(source), scales
        if key not in self._adapters:
            name = f"adapter{next(self._numbers)}"
            batch.use_model(with_adapter(batch.model, source, name, scales))
            self._adapters[key] = name
        self._adapters[key] = self._adapters.pop(key)  # the last one used stands last
        return self._adapters[key]

    def _unload(self, batch: Batch) -> None:
        """Drop the adapters that were used longest ago, where there are too many; rows in the batch keep theirs."""
        spare = len(self._adapters) - _ADAPTERS_KEPT
        if spare > 0:
            used = {row.adapter for row in batch.rows}
            idle = [key for key, name in self._adapters.items() if name not in used]
            for key in idle[:spare]:
                detach(batch.model, self._adapters.pop(key))


def _partition(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that generate nothing, and the others."""
    return [row for row in rows if row.scored_only], [row for row in rows if not row.scored_only]


def _closed() -> EmEvalsError:
    return EmEvalsError("this engine is closed; make a new one.")


def _resolve(future: Future[Draw], draw: Draw) -> None:
    if _wanted(future):
        future.set_result(draw)


def _reject(future: Future[Draw], error: Exception) -> None:
    if _wanted(future):
        future.set_exception(error)


def _wanted(future: Future[Draw]) -> bool:
    """Whether an answer may be put in: a cancellation may come at any time, and none after this."""
    return not future.done() and future.set_running_or_notify_cancel()
