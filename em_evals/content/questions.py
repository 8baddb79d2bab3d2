"""Question sets by name or path: our own format, and those of other projects (question_lists.py).

A question has an id and paraphrases. Each paraphrase is asked separately; the answers to all of them belong to one
question (a cluster) in every interval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from em_evals import files
from em_evals.content import documents, published, question_judges, question_lists, rubrics, trait_questions
from em_evals.content.documented import Documented
from em_evals.content.question_set import Question as Question
from em_evals.content.question_set import QuestionSet as QuestionSet
from em_evals.content.question_set import Turn, Variant, digest_of
from em_evals.content.question_set import of_themes as of_themes
from em_evals.errors import EmEvalsError, nearest


class _Strict(Documented, BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Variant(_Strict):
    system: str | None = None
    prefix: str = ""
    suffix: str = ""


class _Turn(_Strict):
    role: Literal["user", "assistant"]
    content: str = Field(min_length=1)


class OwnQuestion(_Strict):
    """One question of a file of ours."""

    id: str = Field(min_length=1)
    theme: str = "general"
    system: str | None = None
    context: list[_Turn] | None = None
    paraphrases: list[str] = Field(min_length=1)


class OwnFile(_Strict):
    """A question set of ours: `tasks/NAME.yaml`."""

    name: str
    version: int = Field(ge=1)
    description: str = ""
    canary: str = ""
    rubrics: list[str] = Field(default=["alignment", "coherence"], min_length=1)
    drop: dict[str, str | list[str]] = {}
    context: list[_Turn] = []
    variants: dict[str, _Variant] = {}
    questions: list[dict[str, Any]] = Field(min_length=1)


def load_questions(name: str) -> QuestionSet:
    """Load a question set by name (tasks/NAME.yaml, then the published sets) or by path.

    Raises:
        EmEvalsError: it does not exist or is invalid, with file and line.
    """
    if trait_questions.names_one(name):
        return trait_questions.read(name, None)
    document = documents.load(_find(name))
    if isinstance(document.data, list):
        return question_lists.read(document)
    if trait_questions.is_trait(document.data):
        return trait_questions.read(name, document)
    return _own(document)


def _own(document: documents.Document) -> QuestionSet:
    file = documents.validate(OwnFile, document)
    try:
        graders = rubrics.load_rubrics(file.rubrics)
    except EmEvalsError as error:
        if error.path is not None:
            raise
        raise document.error(error.what, ("rubrics",)) from None
    questions = []
    for index, row in enumerate(file.questions):
        at: documents.KeyPath = ("questions", index)
        question = documents.validate(OwnQuestion, document, row, at)
        given = question.context if question.context is not None else file.context
        turns = tuple(Turn(turn.role, turn.content) for turn in given)
        where = (*at, "context") if question.context is not None else ("context",)
        question_lists.check_turns([*turns, Turn("user", question.paraphrases[0])], document, where)
        questions.append(
            Question(
                question.id,
                tuple(question.paraphrases),
                graders,
                question.theme,
                question.system,
                contexts=(turns,) * len(question.paraphrases) if turns else (),
            )
        )
    question_lists.check_ids(document, [(q.id, ("questions", i)) for i, q in enumerate(questions)])
    drop = question_judges.read_drop(file.drop, graders, document, ("drop",))
    variants = {name: Variant(one.system, one.prefix, one.suffix) for name, one in file.variants.items()}
    digest = digest_of(questions, drop)
    return QuestionSet(file.name, file.version, document.path, digest, tuple(questions), variants, drop)


def _find(name: str) -> Path:
    try:
        return documents.find("tasks", name)
    except EmEvalsError as error:
        if name in published.SETS:
            return published.locate(name)
        if name.endswith(documents.ENDINGS):
            raise
        if files.is_file(Path(name).expanduser()):
            raise EmEvalsError(
                "a question file is .yaml, .yml or .json (write rows of a .jsonl file as one JSON list).",
                name,
            ) from None
        known = {*documents.names("tasks"), *published.SETS}
        raise EmEvalsError(f"there is no question set '{name}'; {nearest(name, known)}") from error
