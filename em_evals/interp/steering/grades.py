"""Grade existing answers with a judge through Inspect: its cache, its log, its retries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from em_evals.content.questions import Question
from em_evals.errors import EmEvalsError
from em_evals.interp.steering.answers import Answer
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.logs import draws_of_log, graded
from em_evals.results.logs import number as as_number

if TYPE_CHECKING:
    from inspect_ai.dataset import Sample
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Scorer

T = TypeVar("T")


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
    from em_evals.grading import scorers

    log = _log(_samples(answers, questions), scorers.judge(asked, cache=use_cache), judge, logs)
    return _in_order(log, draws_of_log(log))


def scores(
    answers: Sequence[Answer],
    questions: Sequence[Question],
    rubrics: Sequence[str],
    judge: str,
    logs: Path,
    use_cache: bool = True,
) -> list[dict[str, float]]:
    """Grade answers by other rubrics; the arguments are those of `grades`, and `rubrics` by name.

    Args:
        answers: draws to the first wording of these questions.
        questions: what was asked.
        rubrics: their names, as `trait:callous`.
        judge: Inspect's name of the judge, or a judge card.
        logs: the log's folder.
        use_cache: whether earlier replies of the judge are used and kept.

    Returns:
        Metric -> grade of each answer; NaN without one.

    Raises:
        EmEvalsError: the judge failed.
    """
    from em_evals.grading import scorers

    card = None if "/" in judge else judge
    scorer = scorers.judge(rubrics=list(rubrics), cache=use_cache, card=card)
    log = _log(_samples(answers, questions), scorer, None if card else judge, logs)
    return _in_order(log, [_values(sample) for sample in log.samples or []])


def _values(sample: EvalSample) -> dict[str, float]:
    score = graded(sample)
    value = score.value if score is not None and isinstance(score.value, dict) else {}
    return {name: as_number(one) for name, one in value.items()}


def _in_order(log: EvalLog, found: Sequence[T]) -> list[T]:
    """Return what belongs to each sample in the order of the samples' numbers."""
    by_number = {sample.id: i for i, sample in enumerate(log.samples or [])}
    return [found[by_number[number]] for number in range(len(by_number))]


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


def _log(samples: list[Sample], scorer: Scorer, judge: str | None, logs: Path) -> EvalLog:
    """Run a scorer over given answers; `judge` is the model of the role `grader`.

    Raises:
        EmEvalsError: it failed.
    """
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import Generate, Solver, TaskState, solver

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
            scorer=scorer,
            name="steered_answers",
        ),
        model="none",
        model_roles={"grader": judge} if judge is not None else None,
        log_dir=str(logs),
        display="none",
        log_level="warning",
    )
    if log.status != "success":
        reason = log.error.message if log.error else "no reason given"
        raise EmEvalsError(f"grading ended as '{log.status}' ({reason[:300]}); see {log.location}.")
    return log
