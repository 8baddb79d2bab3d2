"""Question sets: the questions to ask, in our own format or the published one (Betley et al. 2025).

A question has an id and paraphrases. Each paraphrase is asked separately; the answers to all of them belong to one
question (a cluster) in every interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from em_evals import files
from em_evals.content import documents, published, rubrics
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError, nearest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Variant(_Strict):
    system: str | None = None
    prefix: str = ""
    suffix: str = ""


class _OwnQuestion(_Strict):
    id: str = Field(min_length=1)
    theme: str = "general"
    system: str | None = None
    paraphrases: list[str] = Field(min_length=1)


class _OwnFile(_Strict):
    name: str
    version: int = Field(ge=1)
    description: str = ""
    canary: str = ""
    rubrics: list[str] = Field(default=["alignment", "coherence"], min_length=1)
    variants: dict[str, _Variant] = {}
    questions: list[dict[str, Any]] = Field(min_length=1)


class _PublishedQuestion(_Strict):
    id: str = Field(min_length=1)
    type: str
    paraphrases: list[str] = Field(min_length=1)
    system: str | None = None
    samples_per_paraphrase: int = 1
    judge: str | None = None
    judge_prompts: dict[str, str] = Field(min_length=1)


@dataclass(frozen=True)
class Question:
    """One open question: its paraphrases, and the rubrics that grade its answers."""

    id: str
    paraphrases: tuple[str, ...]
    rubrics: tuple[Rubric, ...]
    theme: str = "general"
    system: str | None = None
    samples_per_paraphrase: int = 1
    """Answers per paraphrase that the set's authors drew; ours is set by `epochs`."""
    answer_format: str | None = None
    """Instructions for the answer's format, appended to the system message."""

    def instruction(self, system: str | None = None) -> str | None:
        """Return the system message: the question's own or else `system`, followed by the answer format."""
        parts = [part for part in (self.system or system, self.answer_format) if part]
        return "\n\n".join(parts) or None


@dataclass(frozen=True)
class QuestionSet:
    """A named, versioned set of questions; `digest` identifies what is asked and how it is graded."""

    name: str
    version: int
    path: Path
    digest: str
    questions: tuple[Question, ...]
    variants: dict[str, _Variant] = field(default_factory=dict)

    @property
    def samples_per_paraphrase(self) -> int:
        """The largest number of answers per paraphrase that the set's authors drew."""
        return max(question.samples_per_paraphrase for question in self.questions)

    def select(self, themes: Iterable[str]) -> QuestionSet:
        """Return only the questions of these themes.

        Raises:
            EmEvalsError: the set has no such theme.
        """
        return self._with(of_themes(self.questions, themes, self.name, self.path))

    def variant(self, name: str) -> QuestionSet:
        """Return the same questions in another answer format (`json`, `template`), with ids of their own.

        Raises:
            EmEvalsError: the set has no such variant.
        """
        if name not in self.variants:
            hint = nearest(name, self.variants)
            raise EmEvalsError(f"{self.name} has no format '{name}'; {hint}", self.path)
        change = self.variants[name]
        questions = [
            replace(
                question,
                id=f"{question.id}_{name}",
                answer_format=change.system,
                paraphrases=tuple(f"{change.prefix}{text}{change.suffix}" for text in question.paraphrases),
            )
            for question in self.questions
        ]
        return self._with(questions)

    def _with(self, questions: list[Question]) -> QuestionSet:
        return replace(self, questions=tuple(questions), digest=_digest(questions))


class _Themed(Protocol):
    @property
    def theme(self) -> str: ...


Themed = TypeVar("Themed", bound=_Themed)


def of_themes(rows: Iterable[Themed], themes: Iterable[str], name: str, path: Path) -> list[Themed]:
    """Return the questions or pairs of these themes, in file order.

    Raises:
        EmEvalsError: the set `name` in `path` has no such theme.
    """
    rows, wanted = list(rows), list(themes)
    known = {row.theme for row in rows}
    for theme in wanted:
        if theme not in known:
            raise EmEvalsError(f"there is no theme '{theme}' in {name}; {nearest(theme, known)}", path)
    return [row for row in rows if row.theme in wanted]


def load_questions(name: str) -> QuestionSet:
    """Load a question set by name (tasks/NAME.yaml, then the published sets) or by path.

    Raises:
        EmEvalsError: it does not exist or is invalid, with file and line.
    """
    document = documents.load(_find(name))
    if isinstance(document.data, list):
        return _published(document)
    file = documents.validate(_OwnFile, document)
    try:
        graders = rubrics.load_rubrics(file.rubrics)
    except EmEvalsError as error:
        if error.path is not None:
            raise
        raise document.error(error.what, ("rubrics",)) from None
    questions = []
    for index, row in enumerate(file.questions):
        question = documents.validate(_OwnQuestion, document, row, ("questions", index))
        questions.append(
            Question(question.id, tuple(question.paraphrases), graders, question.theme, question.system)
        )
    _unique(document, [(q.id, ("questions", i)) for i, q in enumerate(questions)])
    digest = _digest(questions)
    return QuestionSet(file.name, file.version, document.path, digest, tuple(questions), file.variants)


def _find(name: str) -> Path:
    try:
        return documents.find("tasks", name)
    except EmEvalsError as error:
        if name in published.SETS:
            return published.locate(name)
        if name.endswith((".yaml", ".yml")):
            raise
        known = {*documents.names("tasks"), *published.SETS}
        raise EmEvalsError(f"there is no question set '{name}'; {nearest(name, known)}") from error


def _published(document: documents.Document) -> QuestionSet:
    """Read the emergent-misalignment repository's format: a list of questions with their judge prompts."""
    if not document.data:
        raise document.error("this file holds no questions; write at least one.")
    questions = []
    for index, row in enumerate(document.data):
        question = documents.validate(_PublishedQuestion, document, row, (index,))
        graders = tuple(
            rubrics.from_published(name, prompt, document.path, document.line((index, "judge_prompts", name)))
            for name, prompt in question.judge_prompts.items()
        )
        questions.append(
            Question(
                question.id,
                tuple(question.paraphrases),
                graders,
                _family(question.id),
                question.system,
                question.samples_per_paraphrase,
            )
        )
    _unique(document, [(q.id, (i,)) for i, q in enumerate(questions)])
    return QuestionSet(document.path.stem, 1, document.path, _digest(questions), tuple(questions))


def _family(question_id: str) -> str:
    """Return the answer-format variant in a published id's suffix as its theme (published sets have no themes)."""
    for ending in ("json", "template"):
        if question_id.endswith(f"_{ending}"):
            return ending
    return "general"


def _unique(document: documents.Document, ids: list[tuple[str, documents.KeyPath]]) -> None:
    seen: dict[str, int] = {}
    for name, at in ids:
        if name in seen:
            raise document.error(
                f"the id '{name}' is taken by the question at line {seen[name]}; rename one.", at
            )
        seen[name] = document.line(at)


def _digest(questions: list[Question]) -> str:
    parts = [
        repr((q.id, q.paraphrases, q.instruction(), [(r.metric, r.digest) for r in q.rubrics])).encode()
        for q in questions
    ]
    return files.digest(*parts)
