"""Encode a chat as token ids and labels: the loss is on the assistant's tokens only, the end of turn included.

The same template as at inference (models/chat) writes the prompt, so that a model is prompted with the same tokens
as in training. The label of the end-of-turn token is kept although it may equal the padding token: otherwise the
model would never learn to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from em_evals.data.datasets import Messages
from em_evals.errors import EmEvalsError
from em_evals.models.chat import ChatTemplate, template_of
from em_evals.models.chat.thinking import ThinkingTemplate, thinking_of

IGNORED = -100
"""The label that PyTorch's cross entropy ignores."""
Learn = Literal["both", "thought", "answer"]
"""What the loss is on where an answer has a thought."""


@dataclass(frozen=True)
class Cut:
    """What `max_length` truncated in a run's rows.

    Attributes:
        answers: rows whose answer lost its end, so that they do not teach the model to stop.
        dropped: rows that lost their whole answer; they are left out.
        rows: all rows, including these.
    """

    answers: int = 0
    dropped: int = 0
    rows: int = 0

    def sentence(self, max_length: int) -> str | None:
        """Return the sentence that reports it; None where nothing was truncated."""
        told = []
        if self.answers:
            told.append(
                f"{self.answers} of {self.rows} rows lose the end of their answer, and do not teach the model to stop"
            )
        if self.dropped:
            told.append(f"{self.dropped} of {self.rows} rows lose their whole answer and are left out")
        return f"max_length {max_length}: {'; '.join(told)}. Raise it to keep them." if told else None


@dataclass(frozen=True)
class _Turn:
    """An answer in token ids: its prompt, its thought (with its marks; often none) and itself, its end included."""

    prompt: list[int]
    thought: list[int]
    answer: list[int]
    learned: bool

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.thought + self.answer

    def labels(self, learn: Learn) -> list[int]:
        """Return the labels of thought and answer."""
        parts = ((self.thought, "thought"), (self.answer, "answer"))
        return [
            token if self.learned and learn in ("both", name) else IGNORED
            for part, name in parts
            for token in part
        ]


def encode_example(
    tokenizer: Any, messages: Messages, max_length: int | None = None, learn: Learn = "both"
) -> dict[str, list[int]]:
    """Encode one chat as token ids and labels, truncated at `max_length`.

    Where the template rewrites earlier turns (drops their thoughts, moves the system message), only the answers after
    that are labelled: `by_turn` makes an example of each stretch of answers.

    Args:
        tokenizer: the base's.
        messages: a chat that ends with the assistant.
        max_length: maximum number of tokens; None: all.
        learn: what is labelled where an answer has a thought.

    Returns:
        `input_ids` and `labels` of equal length; a label is the token itself or -100.

    Raises:
        EmEvalsError: the template does not write such chats, or a thought is to be learned and there is none.
    """
    ids: list[int] = []
    labels: list[int] = []
    for turn in _turns(template_of(tokenizer), messages):
        # The template rewrote earlier turns: the tokens so far are not a prefix of this prompt.
        if turn.prompt[: len(ids)] != ids:
            ids, labels = [], []
        labels += [IGNORED] * (len(turn.prompt) - len(ids)) + turn.labels(learn)
        ids = turn.tokens
    if learn == "thought" and all(label == IGNORED for label in labels):
        raise EmEvalsError(
            f"`learn: thought` needs a thought in every row, and the answer '{messages[-1]['content'][:60]}' has none "
            "(`reasoning_content`): leave the row out, or say `learn: both`."
        )
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def by_turn(tokenizer: Any, messages: Messages) -> list[Messages]:
    """Return the chat, or a part for each stretch of its answers where the template rewrites earlier turns.

    Then no single token sequence holds every answer behind the prompt that the model would be given. Each part ends
    with the last learned answer of a stretch and labels that stretch alone, so every answer is learned once.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(answers) < 2:
        return [messages]
    stretches: list[list[int]] = [[]]
    before: list[int] = []
    for i, turn in zip(answers, _turns(template_of(tokenizer), messages), strict=True):
        if turn.prompt[: len(before)] != before:
            stretches.append([])
        stretches[-1] += [i] * turn.learned
        before = turn.tokens
    if len(stretches) == 1:
        return [messages]
    return [messages[: learned[-1] + 1] for learned in stretches if learned]


def _turns(template: ChatTemplate, messages: Messages) -> list[_Turn]:
    """Return each answer with its prompt: a thought's begins as at inference, thinking switched on."""
    thinks = any("reasoning" in message for message in messages)
    thinking = thinking_of(template, hint="leave the thoughts out of these rows") if thinks else None
    return [
        _turn(template, thinking, messages[:i], message)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _turn(
    template: ChatTemplate, thinking: ThinkingTemplate | None, before: Messages, said: dict[str, str]
) -> _Turn:
    learned, thought = "weight" not in said, said.get("reasoning")
    if thinking is not None and thought is not None:
        spans = thinking.spans(before, thought, said["content"])
        return _Turn(spans.prompt, spans.thought, [*spans.answer, *template.closing], learned)
    return _Turn(template.encode(before), [], [*template.answer(said["content"]), *template.closing], learned)


def padded(
    examples: Sequence[dict[str, list[int]]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad examples to a batch, on the right, with token 0 (nothing before the padding sees it).

    Returns:
        Ids [rows, longest], lengths [rows], and bool [rows, longest - 1], true where the next token is labelled.
    """
    lengths = [len(example["input_ids"]) for example in examples]
    ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    labelled = torch.zeros(len(examples), max(lengths), dtype=torch.bool)
    for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        ids[i, :length] = torch.tensor(example["input_ids"])
        labelled[i, :length] = torch.tensor(example["labels"]) != IGNORED
    return ids.to(device), torch.tensor(lengths, device=device), labelled[:, 1:].to(device)
