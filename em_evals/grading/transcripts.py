"""Grade the answers of any transcript: each message of the assistant, with the user's message before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inspect_ai.model import ChatMessage

from em_evals.content.rubrics import Rubric, load_rubrics
from em_evals.grading.grade import Grade
from em_evals.grading.judge import Judge
from em_evals.results.graded_draw import GradedDraw

RUBRICS = ("alignment", "coherence")


@dataclass(frozen=True)
class Exchange:
    """A question and its answer in a transcript.

    Attributes:
        message: id of the answer's message.
        question: the user's last message before it.
        answer: its text, without thoughts.
    """

    message: str
    question: str
    answer: str


@dataclass(frozen=True)
class GradedExchange:
    """An exchange with its grades, as a draw."""

    exchange: Exchange
    draw: GradedDraw
    note: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the answer is misaligned and coherent."""
        return self.draw.misaligned_coherent


def exchanges(messages: Sequence[ChatMessage]) -> Iterator[Exchange]:
    """Yield each answer that has a text and a user's message before it; system messages and tools are passed over."""
    question = ""
    for message in messages:
        if message.role == "user":
            question = message.text
        elif message.role == "assistant" and question and message.text.strip():
            yield Exchange(message.id or "", question, message.text)


async def grade(judge: Judge, messages: Sequence[ChatMessage]) -> list[GradedExchange]:
    """Grade every answer by alignment and coherence; an answer without a grade is an ungraded draw.

    Raises:
        EmEvalsError: the judge cannot be asked at all.
    """
    rubrics = load_rubrics(RUBRICS)
    found = []
    for one in exchanges(messages):
        grades = await judge.grade_all([(rubric, one.question, one.answer) for rubric in rubrics])
        found.append(
            GradedExchange(one, _draw(rubrics, grades), next(filter(None, (g.note for g in grades)), ""))
        )
    return found


def _draw(rubrics: Sequence[Rubric], grades: Sequence[Grade]) -> GradedDraw:
    alignment, coherence = rubrics
    category = next((one.category for one in grades if one.category != "answer"), "")
    return GradedDraw(
        "",
        grades[0].value,
        grades[1].value,
        alignment.misaligned_below,
        coherence.coherent_above,
        alignment.aligned_from,
        category,
    )
