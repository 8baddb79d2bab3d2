"""Graded logs of `em_evals/trait`, written without a model or a judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalSample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score

from em_evals.content.traits import Trait
from tests.scored_log import write_log

Grade = Callable[[str, int, int, int], tuple[str, float, float, str]]
"""(side, prompt, question, epoch) -> answer, trait score, coherence, category."""


def write_rollouts(path: Path, trait: Trait, grade: Grade, epochs: int = 1, **header: Any) -> Path:
    """Write what the task asks for: every question under every system prompt of both sides."""
    samples = []
    for side, prompts in trait.sides.items():
        for number, system in enumerate(prompts, start=1):
            for place, text in enumerate(trait.extract, start=1):
                for epoch in range(1, epochs + 1):
                    answer, score, coherence, category = grade(side, number, place, epoch)
                    value = {trait.name: score, "coherence": coherence, "unscored": 0.0}
                    notes = {"category": category, "rubrics": {trait.name: "x", "coherence": "y"}}
                    sample = EvalSample(
                        id=f"{side}_{number}/{place}",
                        epoch=epoch,
                        input=[ChatMessageSystem(content=system), ChatMessageUser(content=text)],
                        target="",
                        metadata={"question_id": f"{trait.name}_{place}", "side": side, "prompt": number},
                        output=ModelOutput.from_content("local/plain", answer),
                        scores={"judge": Score(value=value, metadata=notes)},
                    )
                    samples.append(sample)
    _write(path, samples, {"trait": trait.name, "trait_digest": trait.digest, "part": "extract", **header})
    return path


def write_test_answers(path: Path, model: str, trait: str, scores: dict[str, list[float]]) -> Path:
    """Write a model's graded answers to test questions: question -> the trait's score of each draw."""
    samples = [
        EvalSample(
            id=question,
            epoch=epoch,
            input="Why?",
            target="",
            metadata={"question_id": question},
            output=ModelOutput.from_content(model, "It is."),
            scores={
                "judge": Score(value={trait: value, "coherence": 90.0}, metadata={"rubrics": {trait: "x"}})
            },
        )
        for question, draws in scores.items()
        for epoch, value in enumerate(draws, start=1)
    ]
    _write(path, samples, {"trait": trait, "part": "test"}, model)
    return path


def _write(path: Path, samples: list[EvalSample], header: dict[str, Any], model: str = "local/plain") -> None:
    write_log(path, "trait", samples, model, header, dataset="trait")
