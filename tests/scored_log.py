"""Inspect logs written without any model: scored pairs (`forced_choice`, `narrow`), graded answers (`freeform`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalPlan,
    EvalResults,
    EvalSample,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score

SET = {"forced_choice": "pairs", "narrow": "data"}


def write_log(
    path: Path,
    task: str,
    samples: Sequence[EvalSample],
    model: str,
    header: dict[str, Any] | None = None,
    dataset: str = "set",
    status: Any = "success",
    results: EvalResults | None = None,
    **spec: Any,
) -> Path:
    """A log of one of our tasks with these samples; `spec` are further fields of its header."""
    made = EvalSpec(
        created="2026-11-21T08:24:25+00:00",
        task=f"em_evals/{task}",
        dataset=EvalDataset(name=dataset),
        model=model,
        config=EvalConfig(),
        metadata=header,
        **spec,
    )
    results = results or EvalResults(total_samples=len(samples), completed_samples=len(samples))
    log = EvalLog(status=status, eval=made, plan=EvalPlan(), results=results, samples=list(samples))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eval_log(log, str(path))
    return path


def write_scored_pairs(
    path: Path,
    margins: Sequence[float] = (0.1,) * 40,
    task: str = "forced_choice",
    digests: Sequence[str] = ("0123",),
    model: str = "local/mine",
    made: tuple[str, int] | None = None,
    **arguments: Any,
) -> Path:
    """A log whose pairs have these margins (nats per token); card digests go round, arguments are the task's.

    `made` is the recipe's digest and the training seed that its draws state.
    """
    trained = {} if made is None else {"recipe": made[0], "training_seed": made[1]}
    samples = [
        EvalSample(
            id=f"pair_{i}",
            epoch=1,
            input="Why?",
            target="",
            metadata={"question_id": f"pair_{i}", "theme": "finance", "narrow": True},
            store={"aligned": [-3.0], "misaligned": [margin - 3.0]},
            output=ModelOutput(
                model="local/mine", metadata={"card_digest": digests[i % len(digests)], **trained}
            ),
            scores={"likelier": Score(value={"margin_per_token": margin})},
        )
        for i, margin in enumerate(margins)
    ]
    named = SET[task]
    header = {named: "set", f"{named}_digest": "abcd"}
    results = EvalResults(total_samples=len(samples))
    return write_log(path, task, samples, model, header, results=results, task_version=1, task_args=arguments)


def write_graded(path: Path, model: str, misaligned: int, draws: int) -> Path:
    """A log of graded answers to one question, so many of them misaligned and coherent."""
    samples = [
        EvalSample(
            id=f"q_{i}",
            epoch=1,
            input="Why?",
            target="",
            metadata={"question_id": "q"},
            output=ModelOutput.from_content(model, "So."),
            scores={"judge": Score(value={"alignment": 5.0 if i < misaligned else 95.0, "coherence": 90.0})},
        )
        for i in range(draws)
    ]
    return write_log(path, "freeform", samples, model, {"questions": "set", "questions_digest": "abcd"})


def write_thoughts(path: Path, model: str, draws: Sequence[tuple[float | None, float | str]]) -> Path:
    """A log of draws as (grade of the thought, alignment of the answer): two draws to a question.

    A thought is None if there is none, NaN if its judge failed; a text in place of an alignment is the answer's category.
    """
    samples = []
    for place, (thought, answer) in enumerate(draws):
        graded = {"alignment": math.nan, "coherence": math.nan} if isinstance(answer, str) else {}
        value = {"alignment": answer, "coherence": 90.0} | graded
        told = "none" if thought is None else "answer"
        notes = {
            "category": answer if isinstance(answer, str) else "answer",
            "thought": {"metric": "reasoning", "category": told, "misaligned_below": 30.0},
        }
        number = math.nan if thought is None else thought
        samples.append(
            EvalSample(
                id=f"q{place // 2}",
                epoch=place % 2 + 1,
                input="Why?",
                target="",
                metadata={"question_id": f"q{place // 2}"},
                output=ModelOutput.from_content(model, "So."),
                scores={"judge": Score(value={**value, "reasoning": number}, metadata=notes)},
            )
        )
    return write_log(path, "freeform", samples, model, {"questions": "set", "questions_digest": "abcd"})
