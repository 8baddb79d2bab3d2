"""A grade, and the ways in which a judge can be read: data only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from inspect_ai.model import GenerateConfig

from em_evals.content.rubrics import Category

Way = Literal["logprobs", "sampling"]
Part = Literal["alternatives", "tokens", "temperature", "logprobs"]
"""A part of a request that a judge may not take: 20 alternatives, a single token, a temperature, log-probabilities."""

SAMPLES = 5
"""Draws per grade where the judge has to be sampled."""

_ALTERNATIVES = (20, 5)
_TOKENS = (1, 16)


@dataclass(frozen=True)
class Grade:
    """What the judge said of one answer under one rubric.

    Attributes:
        value: a number of the rubric's scale (1 or 0 for TRUE or FALSE, the share of `label` for labels); NaN when the
            category is not `answer`.
        category: `answer`, or the judge's refusal, code, unknown or unscored.
        way: token probabilities or sampling.
        distribution: probability of each token (logprobs), or share of each reply (sampling).
        note: why it is unscored, if it is.
        label: the likeliest label, or the judge's own word; a category word where the judge said one.
        labels: probability (logprobs) or share of the graded replies (sampling) of each label.
    """

    value: float
    category: Category
    way: Way
    distribution: dict[str, float] = field(default_factory=dict)
    note: str = ""
    label: str = ""
    labels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How a judge is asked. Servers differ in what they accept; each step gives up one part of the request.

    Attributes:
        alternatives: log-probabilities of so many tokens at each position; 0 where replies are sampled.
        tokens: length of the reply, where log-probabilities are read.
        temperature: whether a temperature is sent.
        sampled_at: the temperature of sampled replies.
        why: what the judge did that led here; empty for the first way.
    """

    alternatives: int = _ALTERNATIVES[0]
    tokens: int = _TOKENS[0]
    temperature: bool = True
    sampled_at: float = 1.0
    why: str = ""

    @property
    def way(self) -> Way:
        """Token probabilities or sampling."""
        return "logprobs" if self.alternatives else "sampling"

    @property
    def repeatable(self) -> bool:
        """Whether equal requests bring equal replies: token probabilities, or replies at temperature 0."""
        return bool(self.alternatives) or (self.temperature and self.sampled_at == 0)

    def config(self) -> GenerateConfig:
        """Return the request's settings. Samples have no token limit: reasoning models think before they answer."""
        if not self.alternatives:
            return GenerateConfig(temperature=self.sampled_at if self.temperature else None)
        return GenerateConfig(
            temperature=0 if self.temperature else None,
            max_tokens=self.tokens,
            logprobs=True,
            top_logprobs=self.alternatives,
        )

    def sampled(self) -> Reading:
        """Return the way to read its replies: for rubrics that let it reason, or use words of its own."""
        return replace(self, alternatives=0)

    def without(self, part: Part, why: str) -> Reading | None:
        """Return the next way, with that part given up; None when there is nothing left to give up."""
        if part == "temperature":
            return replace(self, temperature=False, why=why) if self.temperature else None
        if not self.alternatives:
            return None
        if part == "alternatives" and self.alternatives > _ALTERNATIVES[1]:
            return replace(self, alternatives=_ALTERNATIVES[1], why=why)
        if part == "tokens" and self.tokens < _TOKENS[1]:
            return replace(self, tokens=_TOKENS[1], why=why)
        return replace(self, alternatives=0, why=why)

    def told(self, samples: int) -> str:
        """In words, for the log and the screen."""
        if self.alternatives:
            length = "one token" if self.tokens == 1 else f"the first of {self.tokens} tokens"
            how = f"probabilities of {length}, {self.alternatives} alternatives"
        else:
            how = f"{samples} sampled replies, parsed"
        how += "" if self.temperature else ", the judge's own temperature"
        return f"{how} ({self.why})" if self.why else how


class Trouble(Exception):  # noqa: N818 - it is handled, never shown
    """A reply or refusal that suggests another way of asking.

    Args:
        part: what to give up.
        why: in words; the server's own where it refused.
        refused: the server refused the request, so that this draw has no reply.
    """

    def __init__(self, part: Part, why: str, refused: bool = False) -> None:
        self.part = part
        self.why = why
        self.refused = refused
        super().__init__(why)
