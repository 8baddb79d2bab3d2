"""A row of a batch: an unfinished draw with its own random stream."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from em_evals.engines.hf.sampling import UniformStream
from em_evals.engines.protocol import Draw, Request, StopReason, TokenLogprob
from em_evals.engines.watch import Watch


@dataclass(eq=False)
class Row:
    """One unfinished draw. `adapter` is the bank's name for it; None for the bare base."""

    request: Request
    future: Future[Draw]
    adapter: str | None = None
    slot: int = 0
    """The slot of its interventions (models/interventions.py)."""
    stop_tokens: frozenset[int] = frozenset()
    """Special tokens among its stop texts."""
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str | None = None
    """The final text, set when a stop text has been found."""
    stop_reason: StopReason | None = None
    failed: bool = False
    """Its batch failed: it runs by itself from now on, so that only the row at fault is refused."""
    watch: Watch | None = None
    """Follows its thought, where that is limited."""
    forced: list[int] = field(default_factory=list)
    """Tokens that come next whatever the model would draw: they close a thought that reached its limit."""

    def __post_init__(self) -> None:
        self._uniforms = UniformStream(self.request.sampling.seed)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens that a prefill must see: the prompt, and what was generated before the row left its batch."""
        return (*self.request.prompt, *self.generated)

    @property
    def length(self) -> int:
        """Number of tokens so far, prompt included."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def answer_start(self) -> int:
        """Index of the answer's first token in `tokens`."""
        start = self.request.answer_start
        return len(self.request.prompt) if start is None else start

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the next prefill must report the prompt's log-probabilities."""
        return self.request.sampling.prompt_logprobs is not None and not self.prompt_logprobs

    @property
    def scored_only(self) -> bool:
        """Whether nothing is generated: the row is scored (models/scoring.py) and never decoded."""
        return self.request.sampling.max_tokens == 0

    @property
    def done(self) -> bool:
        """Whether the row is finished, cancelled or failed: nothing more to decode."""
        return self.stop_reason is not None or self.future.done()

    def uniform(self) -> float:
        """Return the row's next random number; greedy rows and forced tokens use none."""
        drawn = self.request.sampling.temperature > 0 and not self.forced
        return self._uniforms.next() if drawn else 0.0

    def limited(self, tokenizer: Any) -> int:
        """Return how many tokens do not count for `max_tokens`, and close a thought that reached its limit.

        Returns:
            The tokens before the answer; all of them while a limited thought lasts, none where it has no limit.
        """
        limit = self.request.thought
        if limit is None:
            return 0
        if self.watch is None:
            self.watch = Watch(tokenizer, limit)
        if not self.forced:
            self.watch.see(self.generated)
            if self.watch.exceeded(self.generated):
                self.forced = list(limit.close)
                self.watch.closed([*self.generated, *limit.close])
        start = self.watch.answer_from
        return len(self.generated) if start is None else min(start, len(self.generated))
