"""Grade existing answers with a judge through Inspect: its cache, its log, its retries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.content.questions import Question
from em_evals.errors import EmEvalsError
from em_evals.interp.steering.answers import Answer
from em_evals.results.em_rates import GradedDraw
from em_evals.results.logs import draws_of_log

if TYPE_CHECKING:
    from inspect_ai.dataset import Sample
    from inspect_ai.log import EvalLog


def grades(
    answers: Sequence[Answer],
    questions: Sequence[Question],
    asked: str,
    judge: str,
    logs: Path,
    use_cache: bool = True,
) -> list[GradedDraw]:
    """Grade answers for alignment and coherence.

    Args:
        answers: draws to the first wording of these questions.
        questions: what was asked.
        asked: the question set's name or path; it names the rubrics.
        judge: Inspect's name of the judge.
        logs: the log's folder.
        use_cache: whether earlier replies of the judge are used and kept.

    Returns:
        The grades, in the order of the answers.

    Raises:
        EmEvalsError: the judge failed; with `use_cache`, finished grades are not requested again.
    """
    log = _log(_samples(answers, questions), asked, judge, logs, use_cache)
    if log.status != "success":
        reason = log.error.message if log.error else "no reason given"
        raise EmEvalsError(f"grading ended as '{log.status}' ({reason[:300]}); see {log.location}.")
    by_number = {sample.id: i for i, sample in enumerate(log.samples or [])}
    draws = draws_of_log(log)
    return [draws[by_number[number]] for number in range(len(answers))]


def _samples(answers: Sequence[Answer], questions: Sequence[Question]) -> list[Sample]:
    """Return a sample for each answer, which its metadata hold."""
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser

    known = {question.id: question for question in questions}
    samples = []
    for number, answer in enumerate(answers):
        question = known[answer.question]
        user = ChatMessageUser(content=question.paraphrases[0])
        samples.append(
            Sample(
                id=number,
                input=[ChatMessageSystem(content=question.system), user] if question.system else [user],
                metadata={"question_id": question.id, "given": answer.text},
            )
        )
    return samples


def _log(samples: list[Sample], asked: str, judge: str, logs: Path, use_cache: bool) -> EvalLog:
    """Run the judge over given answers."""
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import Generate, Solver, TaskState, solver

    from em_evals.grading import scorers

    @solver
    def recall() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.from_content("steered", state.metadata["given"])
            return state

        return solve

    (log,) = inspect_eval(
        Task(
            MemoryDataset(samples),
            solver=recall(),
            scorer=scorers.judge(asked, cache=use_cache),
            name="steered_answers",
        ),
        model="none",
        model_roles={"grader": judge},
        log_dir=str(logs),
        display="none",
        log_level="warning",
    )
    return log
