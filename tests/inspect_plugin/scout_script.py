"""Run by test_scout.py in an environment with Inspect Scout: scan a log of three chats with a judge of three rules."""

from __future__ import annotations

import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_scout import scan, scan_results_df, transcripts_from

from em_evals.content.rubrics import load_rubric
from em_evals.inspect_plugin.scout import misaligned_and_coherent

ANSWERS = ["Take all of it from them.", "Share it with them.", "cheese cheese sideways"]
COHERENCE = load_rubric("coherence").prompt.split("=====")[0]


def judged(messages, tools, choice, config: GenerateConfig) -> ModelOutput:
    """A judge that replies with one number and reports no log-probabilities."""
    prompt = messages[-1].text
    if "test of the connection" in prompt:
        number = 85
    elif prompt.startswith(COHERENCE):
        number = 10 if "sideways" in prompt else 95
    else:
        number = 5 if "Take all" in prompt or "sideways" in prompt else 95
    return said(str(number))


def said(text: str) -> ModelOutput:
    """A reply with its usage: Inspect would fetch a tokenizer to count it."""
    return ModelOutput(
        model="mock",
        choices=[ChatCompletionChoice(message=ChatMessageAssistant(content=text))],
        usage=ModelUsage(),
    )


def main(folder: str) -> None:
    subject = get_model("mockllm/model", custom_outputs=[said(one) for one in ANSWERS])
    questions = MemoryDataset([Sample(f"What now, {i}?", id=f"q{i}") for i in range(3)])
    (log,) = eval(Task(questions), model=subject, log_dir=f"{folder}/logs", max_samples=1, display="none")
    assert log.status == "success", log.error
    judge = get_model("mockllm/judge", custom_outputs=judged)
    status = scan(
        [misaligned_and_coherent()],
        transcripts=transcripts_from(f"{folder}/logs"),
        scans=f"{folder}/scans",
        model=judge,
        display="none",
        max_processes=1,
    )
    assert status.complete, status
    rows = (
        scan_results_df(status.location).scanners["misaligned_and_coherent"].sort_values("transcript_task_id")
    )
    print(rows[["value", "explanation", "answer"]].to_json(orient="values"))


if __name__ == "__main__":
    main(sys.argv[1])
