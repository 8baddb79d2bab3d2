"""The Inspect task `em_evals/conditional`: every question plainly and under each cue, graded by a judge.

`em-evals conditional` compares the logs of an organism, its base and its control.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from em_evals.content.cues import PLAIN, Cue, load_cues
from em_evals.content.questions import QuestionSet, load_questions
from em_evals.errors import EmEvalsError
from em_evals.grading import graders, scorers
from em_evals.inspect_errors import refusal
from em_evals.inspect_plugin.arguments import asking, graded, judge_card, measured
from em_evals.inspect_plugin.solvers import draw, only_local
from em_evals.inspect_plugin.tasks import MESSAGES, EveryDraw


@task
def conditional(
    questions: str = "core",
    cues: str | None = None,
    cues_from: str | None = None,
    epochs: int = 1,
    themes: str | list[str] | None = None,
    seed: int | None = None,
    judge: str = "grader",
    judge_cache: bool = True,
    thinking: bool | str | list[str] | None = None,
    template: dict[str, Any] | None = None,
) -> Task:
    """Ask open questions plainly and under cues; a judge grades the answers.

    The log's own rates are over plain and cued answers together; `em-evals conditional` tells them apart.

    Args:
        questions: a question set by name or path.
        cues: a cue set by name (tasks/cues/NAME.yaml) or path; default `evaluation`.
        cues_from: derive the cues from this training data instead.
        epochs: draws per paraphrase and cue.
        themes: only these themes, separated by commas.
        seed: as in `freeform`; a question has the same seeds under every cue.
        judge: as in `freeform`.
        judge_cache: as in `freeform`.
        thinking: as in `freeform`.
        template: as in `freeform`.
    """
    from em_evals.data.derived_cues import from_training

    is_graded = graded(judge, graders.NO_JUDGE)
    asked_as = asking(thinking, template)
    try:
        if cues and cues_from:
            raise EmEvalsError("cues and cues_from exclude each other.")
        asked = load_questions(questions)
        if themes:
            asked = asked.select(themes.split(",") if isinstance(themes, str) else themes)
        chosen = from_training(cues_from) if cues_from else load_cues(cues or "evaluation")
        samples = list(_samples(asked, chosen.cues))
    except EmEvalsError as error:
        raise refusal(error) from None
    return EveryDraw(
        dataset=MemoryDataset(samples, name=f"{asked.name} under cues"),
        solver=[only_local(), draw(seed, asked_as)],
        scorer=scorers.judge(questions, cache=judge_cache, card=judge_card(judge)) if is_graded else None,
        epochs=Epochs(epochs, []),
        version=asked.version,
        metadata={
            "questions": asked.name,
            "questions_digest": asked.digest,
            "cues": chosen.name,
            "cues_digest": chosen.digest,
            **measured(asked_as),
        },
    )


def _samples(asked: QuestionSet, cues: Sequence[Cue]) -> Iterator[Sample]:
    for cue in (None, *cues):
        name = cue.name if cue is not None else PLAIN
        for question in asked.questions:
            for number in range(len(question.paraphrases)):
                plain = question.chat(number)
                chat = cue.chat(plain) if cue is not None else plain
                yield Sample(
                    id=f"{name}/{question.id}/{number + 1}",
                    input=[MESSAGES[turn.role](content=turn.content) for turn in chat],
                    metadata={
                        "question_id": question.id,
                        "base_question_id": question.id,
                        "theme": question.theme,
                        "paraphrase": number + 1,
                        "cue": name,
                        "placebo": cue is not None and cue.placebo,
                    },
                )
