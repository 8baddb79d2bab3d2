"""A question set in memory: questions, their paraphrases and contexts, and the rubrics that grade the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from em_evals import files
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError, nearest

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """One message of a chat."""

    role: Role
    content: str


@dataclass(frozen=True)
class Variant:
    """An answer format: a system message, and texts around every question."""

    system: str | None = None
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Question:
    """One open question: its paraphrases, and the rubrics that grade its answers."""

    id: str
    paraphrases: tuple[str, ...]
    """The last user messages; each is asked separately."""
    rubrics: tuple[Rubric, ...]
    theme: str = "general"
    system: str | None = None
    samples_per_paraphrase: int = 1
    """Answers per paraphrase that the set's authors drew; ours is set by `epochs`."""
    answer_format: str | None = None
    """Instructions for the answer's format, appended to the system message."""
    contexts: tuple[tuple[Turn, ...], ...] = ()
    """The messages before each paraphrase (few-shot examples, earlier turns); empty where there are none."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """`temperature` and `max_tokens` that the file asks for; options of the run come before them."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the file, which go into the log."""

    def instruction(self, system: str | None = None) -> str | None:
        """Return the system message: the question's own or else `system`, followed by the answer format."""
        parts = [part for part in (self.system or system, self.answer_format) if part]
        return "\n\n".join(parts) or None

    def chat(self, number: int, system: str | None = None, prefix: str = "") -> list[Turn]:
        """Return the chat that asks paraphrase `number` (from 0).

        Args:
            number: which paraphrase.
            system: a system message for a question without one of its own.
            prefix: text before the paraphrase.
        """
        context = list(self.contexts[number]) if self.contexts else []
        if context and context[0].role == "system":
            system = context.pop(0).content
        instruction = self.instruction(system)
        asked = Turn("user", f"{prefix}{self.paraphrases[number]}")
        return [*([Turn("system", instruction)] if instruction else []), *context, asked]


@dataclass(frozen=True)
class QuestionSet:
    """A named, versioned set of questions; `digest` identifies what is asked and how it is graded."""

    name: str
    version: int
    path: Path
    digest: str
    questions: tuple[Question, ...]
    variants: Mapping[str, Variant] = field(default_factory=dict)
    drop: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Judge -> labels: answers with such a label are left out of every rate."""

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
        return replace(self, questions=tuple(questions), digest=digest_of(questions, self.drop))


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


def digest_of(questions: Sequence[Question], drop: Mapping[str, tuple[str, ...]] | None = None) -> str:
    """Return the digest of what is asked, in what context, and how it is graded and filtered."""
    parts = []
    for q in questions:
        graded = [(r.metric, r.digest) for r in q.rubrics]
        context = ([tuple(map(tuple, turns)) for turns in q.contexts],) if q.contexts else ()
        parts.append(repr((q.id, q.paraphrases, q.instruction(), graded, *context)).encode())
    if drop:
        parts.append(repr(sorted(drop.items())).encode())
    return files.digest(*parts)
