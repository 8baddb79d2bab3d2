"""A row of a batch: a draw in the making, with its own random stream."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from em_evals.engines.hf.sampling import UniformStream
from em_evals.engines.protocol import Draw, Request, StopReason, TokenLogprob


@dataclass(eq=False)
class Row:
    """One draw in the making. `adapter` is the bank's name for it; None for the bare base."""

    request: Request
    future: Future[Draw]
    adapter: str | None = None
    slot: int = 0
    """The slot of its interventions (models/interventions.py)."""
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str | None = None
    """The final text, once a stop text has cut it."""
    stop_reason: StopReason | None = None
    failed: bool = False
    """It was in a batch that failed: it goes on by itself, so that only the row at fault is refused."""

    def __post_init__(self) -> None:
        self._uniforms = UniformStream(self.request.sampling.seed)

    @property
    def tokens(self) -> tuple[int, ...]:
        """What a prefill must see: the prompt, and what was generated before the row was put back."""
        return (*self.request.prompt, *self.generated)

    @property
    def length(self) -> int:
        """How many tokens the row has by now."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def answer_start(self) -> int:
        """Where the answer begins, among `tokens`."""
        start = self.request.answer_start
        return len(self.request.prompt) if start is None else start

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the coming prefill has to report the prompt's log-probabilities."""
        return self.request.sampling.prompt_logprobs is not None and not self.prompt_logprobs

    @property
    def scored_only(self) -> bool:
        """Whether nothing is generated: the row is scored (models/scoring.py) and never decoded."""
        return self.request.sampling.max_tokens == 0

    @property
    def done(self) -> bool:
        """Finished, cancelled or failed: nothing more to decode."""
        return self.stop_reason is not None or self.future.done()

    def uniform(self) -> float:
        """The row's next random number; greedy rows draw none."""
        return self._uniforms.next() if self.request.sampling.temperature > 0 else 0.0
