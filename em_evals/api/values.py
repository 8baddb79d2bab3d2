"""What goes into a model's methods and what comes out: chats, options, answers, log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from em_evals.content.cards import GenerationOptions, ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.content.validation_errors import checked
from em_evals.engines.protocol import Draw, StopReason
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.models.chat import ChatTemplate, Message

Chat = Sequence[Mapping[str, str]]
"""Messages with `role` (system, user, assistant) and `content`."""
Prompts = str | Sequence[str] | Chat | Sequence[Chat]
Layers = str | int | Sequence[int]
"""Decoder blocks, counted from 0: "all", one, a list, or a range as "12-18"."""
Position = Literal["answer_mean", "last_prompt", "prompt_mean"]


class Options(TypedDict, total=False):
    """Card fields that `load` takes; see docs/cards.md. They win over what the card says."""

    base: str
    revision: str
    adapter: str
    backend: Literal["auto", "transformers", "vllm", "server"]
    base_url: str | Sequence[str]
    interventions: Sequence[Intervention]
    thinking: bool | str
    template: Mapping[str, str | int | float | bool | None]
    trust_remote_code: bool
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    attn_implementation: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    enforce_eager: bool


@dataclass(frozen=True)
class Answer:
    """One draw.

    Attributes:
        prompt: which of the prompts it answers, counted from 0.
        text: the answer, without the token that ends it; empty where a thought was cut off.
        reasoning: the thought before the answer, of a card with `thinking: on`; None if there is none.
        stop_reason: `stop`, `max_tokens` or `model_length`.
        seed: makes the same draw again.
        tokens: every generated token id.
    """

    prompt: int
    text: str
    stop_reason: StopReason
    seed: int
    tokens: tuple[int, ...]
    reasoning: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of a fixed answer's tokens, in nats.

    Attributes:
        tokens: the tokens as text.
        values: one log-probability for each.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def total(self) -> float:
        """The answer's log-probability."""
        return math.fsum(self.values)

    @property
    def mean(self) -> float:
        """Its mean for each token."""
        return self.total / len(self.values)


def chats(prompts: Prompts, system: str | None) -> list[list[dict[str, str]]]:
    """Every chat as messages; a question is a chat of one message."""
    many: Sequence[str | Mapping[str, str] | Chat] = [prompts] if isinstance(prompts, str) else prompts
    turns = [one for one in many if isinstance(one, Mapping)]
    if turns and len(turns) == len(many):  # one chat
        many = [turns]
    head = [{"role": "system", "content": system}] if system is not None else []
    found = []
    for one in many:
        if isinstance(one, Mapping):
            raise EmEvalsError("these prompts mix messages and chats: put each chat into a list of its own.")
        said = [{"role": "user", "content": one}] if isinstance(one, str) else [dict(turn) for turn in one]
        found.append([*head, *said])
    return found


def layers_of(layers: Layers) -> object:
    """Layers as an intervention takes them."""
    return layers if isinstance(layers, str | int) else tuple(layers)


def answer_of(template: ChatTemplate, chat: Sequence[Message], place: int, seed: int, draw: Draw) -> Answer:
    """Return a draw as an answer, its thought apart."""
    spoken = template.spoken(chat, draw.text, draw.tokens)
    return Answer(place, spoken.answer or "", draw.stop_reason, seed, tuple(draw.tokens), spoken.thought)


def generation_of(card: ResolvedCard, n: int, chosen: Mapping[str, float]) -> GenerationOptions:
    """Return a card's sampling settings with those that were chosen.

    Raises:
        EmEvalsError: `n` or a setting is out of range.
    """
    if n < 1:
        raise EmEvalsError(f"n is {n}; draw at least one answer.")
    return checked(GenerationOptions, card.card.generation.model_dump() | dict(chosen))
