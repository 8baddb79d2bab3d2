"""What an engine is: token ids in, draws out. Knows no chat template, no Inspect, no YAML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.engines.hf.loaded import Loaded

StopReason = Literal["stop", "max_tokens", "model_length"]


@dataclass(frozen=True)
class Sampling:
    """How one draw is made. Temperature 0 is greedy; the filters apply in the order top_k, top_p.

    Attributes:
        top_k: how many of the likeliest tokens to draw from; None, 0 and -1: all.
        seed: the draw's own random stream; two draws with the same prompt, model and seed are equal.
        max_tokens: generated tokens at most; 0 scores the prompt and generates nothing.
        stop: texts that end the draw; they are not part of it.
        logprobs: report log-probabilities of the generated tokens. They are the model's own, in nats, before
            temperature and filters.
        top_logprobs: how many of the likeliest tokens to report beside each.
        prompt_logprobs: report log-probabilities of the prompt's tokens, with that many likeliest ones beside
            each; None for none. The first token has no log-probability and is left out.
        max_reasoning_tokens: tokens of a thought at most (`ThoughtLimit`); None: thought and answer share
            `max_tokens`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int = 600
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 1
    max_reasoning_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that no distribution, or no draw, has.

        Raises:
            EmEvalsError: names the first.
        """
        limit = self.max_reasoning_tokens
        allowed = {
            "temperature": (
                self.temperature == 0 or _COLDEST <= self.temperature < math.inf,
                f"0 (greedy) or a finite number from {_COLDEST:g} on",
            ),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k is None or self.top_k >= -1, "at least 1, or left out"),
            "max_tokens": (self.max_tokens >= 0, "at least 1"),
            "top_logprobs": (self.top_logprobs >= 0, "at least 0"),
            "prompt_logprobs": (self.prompt_logprobs is None or self.prompt_logprobs >= 0, "at least 0"),
            "max_reasoning_tokens": (limit is None or limit > 0, "at least 1, or left out"),
            "stop": (all(self.stop), "texts that are not empty: an empty one ends every answer at once"),
        }
        for name, (fine, wanted) in allowed.items():
            if not fine:
                value = str(getattr(self, name))[:80]
                raise EmEvalsError(f"the sampling setting `{name}` is {value}; it must be {wanted}.")


_COLDEST = 1e-6
"""Below it logits divided by the temperature overflow float32."""


@dataclass(frozen=True)
class ThoughtLimit:
    """A limit of the thought before an answer; `max_tokens` then limits the answer alone.

    When `tokens` tokens were drawn and the thought is not over, `close` follows as if it had been drawn, and the answer
    begins. No random number is used for it, so a draw whose thought ends before is the draw without a limit.

    Attributes:
        tokens: tokens of the thought, its marks included, at most.
        begins: the mark that a draw begins its thought with; None: it begins inside the thought.
        ends: the mark behind which the answer begins.
        close: the tokens that end a thought.
    """

    tokens: int
    begins: str | None
    ends: str
    close: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One draw to make.

    Attributes:
        prompt: token ids.
        sampling: how to draw.
        adapter: a LoRA adapter (folder or hub id); None for the base.
        interventions: what is done inside, in order. Directions are absolute paths or in memory.
        answer_start: where the answer begins in the prompt, when a part of it is given (a prefill, an answer to be
            scored); None: at the prompt's end. Matters to interventions on `prompt` or `answer` only.
        end: a token that ends the draw beside those of the base: the end of turn of the template that wrote the prompt.
        thought: a limit of the thought that the draw begins with.
        call_end: a further token that ends the draw: behind a call of a tool.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    interventions: tuple[Intervention, ...] = ()
    answer_start: int | None = None
    end: int | None = None
    thought: ThoughtLimit | None = None
    call_end: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability in nats, and the likeliest tokens at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Draw:
    """What came out: `tokens` holds every generated id, the end-of-turn token included if there was one."""

    text: str
    tokens: list[int]
    stop_reason: StopReason
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


class Engine(Protocol):
    """One base model in memory, serving any number of adapters, draws mixed in one batch."""

    tokenizer: Any
    """The base's transformers tokenizer."""

    @property
    def model_len(self) -> int:
        """Tokens of prompt and draw together, at most."""
        ...

    @property
    def scored_len(self) -> int:
        """Tokens of a prompt of which nothing is drawn, at most."""
        ...

    def submit(self, request: Request) -> Future[Draw]:
        """Queue a draw. Cancelling the future gives the row up. Errors come through the future."""
        ...

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Draw]]:
        """Queue draws together: where the engine is idle, the same requests are computed in the same batches again.

        What shares a batch decides how sums are rounded, and a draw that is a near tie may fall either way.
        """
        ...

    def activations(
        self, adapter: str | None = None, interventions: Sequence[Intervention] = ()
    ) -> AbstractContextManager[Loaded]:
        """Return the base in memory as one model, between two steps of the draws, for the calling thread alone.

        What reads activations puts its hooks on this model and runs its own passes: no second copy of the base is
        loaded. Inside the context the adapter and the interventions act on every row.

        Args:
            adapter: a LoRA adapter (folder or hub id); None for the base.
            interventions: what is done inside, in order.

        Raises:
            EmEvalsError: the engine computes in another process, the adapter or a direction does not fit, or an
                intervention acts on prompts or answers only.
        """
        ...

    def close(self) -> None:
        """Stop, failing what is still queued. The engine cannot be used afterwards."""
        ...


def no_activations(engine: str) -> EmEvalsError:
    """Say that an engine computes where activations cannot be read.

    Args:
        engine: the `backend` of a card.
    """
    return EmEvalsError(
        f"activations cannot be read with `backend: {engine}`, which computes in another process: reading them needs "
        "the transformers engine, so say `backend: transformers`."
    )
