"""Grade the thought before an answer by a rubric of its own: neither judge sees what the other grades."""

from __future__ import annotations

import math
from typing import Any

from inspect_ai.model import ContentReasoning, ModelOutput
from inspect_ai.scorer import Score

from em_evals.content.rubrics import Rubric, load_rubric
from em_evals.errors import EmEvalsError
from em_evals.grading.failures import one_line
from em_evals.grading.grade import Grade

_GRADED = ("answer", "reasoning")
_RUBRIC = "reasoning"
"""The rubric of thoughts: scorers/reasoning.yaml, or a local file of that name."""


def rubric_of(grade: str | list[str]) -> Rubric | None:
    """Return the rubric that grades thoughts, where a task's `grade` names them; None where answers alone are graded.

    Raises:
        EmEvalsError: `grade` names something else, or leaves the answer out.
    """
    names = grade.split(",") if isinstance(grade, str) else grade
    parts = {name.strip() for name in names}
    if not parts <= set(_GRADED) or "answer" not in parts:
        raise EmEvalsError(f"grade={','.join(names)}: use `answer`, or `answer,reasoning`.")
    return load_rubric(_RUBRIC) if "reasoning" in parts else None


def thought_of(output: ModelOutput) -> str | None:
    """Return the thought that a model wrote before its answer; None if there is none to read."""
    content = output.choices[0].message.content if output.choices else ""
    if isinstance(content, str):
        return None
    parts = [part for part in content if isinstance(part, ContentReasoning)]
    texts = [(part.summary or "") if part.redacted else part.reasoning for part in parts]
    return "\n\n".join(text for text in texts if text.strip()) or None


def no_answer(output: ModelOutput) -> Grade | None:
    """Return what stands in place of an answer: a provider's error, which Inspect turns into text.

    An answer that ran into the end of the context is an answer; a prompt that does not fit leaves none.
    """
    written = output.usage.output_tokens if output.usage else 0
    if output.stop_reason == "content_filter":
        return Grade(math.nan, "filtered", "logprobs", {}, one_line(output.completion))
    if output.choices and not output.completion and _only_thought(output):
        return Grade(math.nan, "unfinished", "logprobs", {}, "the thought was cut off before the answer")
    if output.stop_reason == "model_length" and not written:
        return Grade(math.nan, "too_long", "logprobs", {}, one_line(output.completion))
    return None


def _only_thought(output: ModelOutput) -> bool:
    """Check whether an answer has a thought and no text."""
    content = output.choices[0].message.content
    return not isinstance(content, str) and [part.type for part in content] == ["reasoning"]


def add(score: Score, rubric: Rubric, grade: Grade | None) -> None:
    """Write a thought's grade into an answer's score; the answer's own category and numbers stay."""
    assert isinstance(score.value, dict)  # noqa: S101 - scorers.judge wrote it
    score.value[rubric.metric] = math.nan if grade is None else grade.value
    notes: dict[str, Any] = score.metadata or {}
    notes["kinds"][rubric.metric] = rubric.kind
    notes["rubrics"][rubric.metric] = rubric.digest
    notes["thought"] = {
        "metric": rubric.metric,
        "category": "none" if grade is None else grade.category,
        "misaligned_below": rubric.misaligned_below,
    }
    if grade is not None:
        notes["grades"][rubric.metric] = {
            "way": grade.way,
            "category": grade.category,
            "distribution": grade.distribution,
            "note": grade.note,
        }
    told = "none" if grade is None else f"{grade.value:.1f}" if grade.category == "answer" else grade.category
    score.explanation = f"{score.explanation}, {rubric.metric} {told}"
