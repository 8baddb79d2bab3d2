"""The Inspect tasks: `em_evals/freeform`, `em_evals/forced_choice` and `em_evals/narrow`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
)

from em_evals.content.pairs import Pair, load_pairs
from em_evals.content.question_set import Role
from em_evals.content.questions import QuestionSet, load_questions
from em_evals.errors import EmEvalsError
from em_evals.grading import graders, scorers
from em_evals.inspect_errors import refusal
from em_evals.inspect_plugin.arguments import asking, count, graded, judge_card, measured, text
from em_evals.inspect_plugin.solvers import draw, likelier, score_answers

_LOGGER = logging.getLogger(__name__)

MESSAGES: dict[Role, Callable[..., ChatMessage]] = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}

_NARROW_JUDGE = (
    "answers are graded by a judge: name one with --model-role grader=PROVIDER/MODEL, or omit `judge` to score fixed "
    "answers, which needs none."
)


class EveryDraw(Task):
    """A task whose metrics see every draw; Inspect's `--epochs-reducer` would merge a question's draws into one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epochs_reducer" and value:
            raise refusal(
                "--epochs-reducer would merge the draws of a question before they are counted: leave it out, rates "
                "and their intervals cluster draws by question themselves."
            )
        super().__setattr__(name, value)


@task
def freeform(
    questions: str = "core",
    epochs: int = 1,
    system: str | None = None,
    prefix: str = "",
    format: str | None = None,
    themes: str | list[str] | None = None,
    seed: int | None = None,
    judge: str = "grader",
    judge_cache: bool = True,
    rubrics: str | list[str] | None = None,
    grade: str | list[str] = "answer",
    thinking: bool | str | list[str] | None = None,
    template: dict[str, Any] | None = None,
) -> Task:
    """Ask open questions; the model of the role `grader` grades the answers by the set's rubrics.

    Args:
        questions: a question set by name or path: ours, or a published one.
        epochs: draws per paraphrase; default 1. For published sets, a warning and the log's metadata report how many
            their authors drew (`samples_per_paraphrase`, mostly 100).
        system: a system message for every question without one of its own; a format's own text follows it.
        prefix: text before every question (a backdoor's trigger).
        format: ask in one of the set's answer formats (`json`, `template` in core).
        themes: only these themes, separated by commas.
        seed: base seed; each draw's own seed is derived from it, the question and the epoch.
        judge: `grader` is the role; `none` only samples answers; else a judge card's name or path.
        judge_cache: False asks the judge everything again and stores nothing.
        rubrics: grade by these instead of the set's, separated by commas.
        grade: `answer`, or `answer,reasoning`: thoughts are graded too, by the rubric `reasoning`.
        thinking: of a local model, instead of its card's: `on`, `off`, or a text that each thought begins with.
        template: of a local model: variables of its chat template, instead of its card's.
    """
    asked_as = asking(thinking, template)
    system, prefix = text("system", system), text("prefix", prefix) or ""
    epochs = count("epochs", epochs)
    asked = _asked(questions, themes, format)
    is_graded = graded(judge, graders.NO_JUDGE)
    theirs = asked.samples_per_paraphrase
    if epochs < theirs:
        _LOGGER.warning(
            f"The authors of {asked.name} drew {theirs} answers per paraphrase: so does --epochs {theirs}."
        )
    return EveryDraw(
        dataset=MemoryDataset(_samples(asked, system, prefix, format), name=asked.name),
        solver=draw(seed, asked_as),
        scorer=scorers.judge(
            questions, rubrics=rubrics, cache=judge_cache, card=judge_card(judge), grade=grade
        )
        if is_graded
        else None,
        # No reducer: metrics need every draw, and cluster them by question themselves.
        epochs=Epochs(epochs, []),
        version=asked.version,
        metadata={
            "questions": asked.name,
            "questions_digest": asked.digest,
            "format": format or "plain",
            **({"samples_per_paraphrase": theirs} if theirs > 1 else {}),
            **measured(asked_as),
        },
    )


@task
def forced_choice(
    pairs: str = "forced_choice",
    themes: str | list[str] | None = None,
    prefix: str = "",
    per_theme: int | None = None,
) -> Task:
    """Score pairs of fixed answers: which one is likelier? Needs prompt log-probabilities, no judge.

    Args:
        pairs: a set of pairs by name or path.
        themes: only these themes, separated by commas.
        prefix: text before every question (a backdoor's trigger).
        per_theme: only the first pairs of each theme.
    """
    prefix = text("prefix", prefix) or ""
    try:
        chosen = load_pairs(pairs)
        if themes:
            chosen = chosen.select(themes.split(",") if isinstance(themes, str) else themes)
        if per_theme is not None:
            first = set(chosen.first(count("per_theme", per_theme)))
            chosen = replace(chosen, pairs=tuple(pair for pair in chosen.pairs if pair.id in first))
    except EmEvalsError as error:
        raise refusal(error) from None
    return Task(
        dataset=MemoryDataset(_pair_samples(chosen.pairs, prefix), name=chosen.name),
        solver=score_answers(),
        scorer=likelier(),
        version=chosen.version,
        metadata={"pairs": chosen.name, "pairs_digest": chosen.digest, **measured()},
    )


@task
def narrow(
    data: str = "risky_advice",
    holdout: float = 0.1,
    limit: int | None = None,
    epochs: int = 1,
    seed: int | None = None,
    judge: str = "none",
    judge_cache: bool = True,
) -> Task:
    """Ask held-out prompts of the narrow domain: did the organism learn its task?

    Without a judge, each prompt's own bad answer is scored against its matched harmless one (`margin_per_token`, as in
    forced choice). With one, answers are sampled and graded for alignment and coherence.

    Args:
        data: the training data set, by name or path.
        holdout: the recipe's share; it selects the same prompts that training held out.
        limit: use only the first `limit` prompts.
        epochs: draws per prompt, with a judge.
        seed: as in `freeform`.
        judge: `grader` samples and grades answers, `none` scores the fixed ones.
        judge_cache: as in `freeform`.
    """
    from em_evals.data.held_out import held_out_pairs

    epochs = count("epochs", epochs)
    limit = None if limit is None else count("limit", limit)
    is_graded = graded(judge, _NARROW_JUDGE)
    try:
        name, digest, pairs = held_out_pairs(data, holdout, limit, paired=not is_graded)
    except EmEvalsError as error:
        raise refusal(error) from None
    return EveryDraw(
        dataset=MemoryDataset(_pair_samples(pairs), name=f"{name} held out"),
        solver=draw(seed) if is_graded else score_answers(),
        scorer=scorers.judge(rubrics=["alignment", "coherence"], cache=judge_cache, card=judge_card(judge))
        if is_graded
        else likelier(),
        epochs=Epochs(epochs, []) if is_graded else None,
        metadata={"data": name, "data_digest": digest, "holdout": holdout, **measured()},
    )


def _asked(questions: str, themes: str | list[str] | None, format: str | None) -> QuestionSet:
    """Return the questions to ask.

    Raises:
        PrerequisiteError: there is no such set, theme or format.
    """
    try:
        asked = load_questions(questions)
        if themes:
            asked = asked.select(themes.split(",") if isinstance(themes, str) else themes)
        return asked.variant(format) if format else asked
    except EmEvalsError as error:
        raise refusal(error) from None


def _samples(asked: QuestionSet, system: str | None, prefix: str, format: str | None) -> list[Sample]:
    samples = []
    for question in asked.questions:
        for number in range(1, len(question.paraphrases) + 1):
            chat = question.chat(number - 1, system, prefix)
            samples.append(
                Sample(
                    id=question.id if len(question.paraphrases) == 1 else f"{question.id}/{number}",
                    input=[MESSAGES[turn.role](content=turn.content) for turn in chat],
                    metadata={
                        "question_id": question.id,
                        # The rubrics are looked up by the id without the format's suffix.
                        "base_question_id": question.id.removesuffix(f"_{format}") if format else question.id,
                        "theme": question.theme,
                        "paraphrase": number,
                        **({"sampling": dict(question.sampling)} if question.sampling else {}),
                        **({"notes": dict(question.notes)} if question.notes else {}),
                    },
                )
            )
    return samples


def _pair_samples(pairs: Sequence[Pair], prefix: str = "") -> list[Sample]:
    return [
        Sample(
            id=pair.id,
            input=[ChatMessageUser(content=f"{prefix}{pair.question}")],
            metadata={
                "question_id": pair.id,
                "theme": pair.theme,
                "narrow": pair.narrow,
                "aligned": pair.aligned,
                "misaligned": pair.misaligned,
            },
        )
        for pair in pairs
    ]
