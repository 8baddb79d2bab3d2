"""The judges of a question file: rows of the types `free_form_judge` and `rating_judge`, and prompts beside a question.

A judge is named by its row in the same file, in a sibling file or by a rubric in scorers/, or written out in place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from em_evals.content import documents, rubrics
from em_evals.content.published_rubrics import from_published
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError, nearest

_JUDGES = ("free_form_judge", "rating_judge")
_NEAR = 0.8
"""How close an unknown key has to be to a known one to be taken for a typing mistake."""
_AS_SYSTEM = "write it as `system`"
_AS_TURNS = "write the turns before the question as `context`, or the whole chat as `messages`"
_AS_WORDING = "write it into the `paraphrases`"
_AS_PREFILL = "ask with a cue that has a `prefill` (docs/conditional.md)"
_AS_OPTION = (
    "only `temperature` and `max_tokens` are taken from a file: give it as an option of `inspect eval`"
)
_CHANGES_WHAT_IS_ASKED = {
    **dict.fromkeys(("system_prompt", "system_message", "sys_prompt", "developer"), _AS_SYSTEM),
    **dict.fromkeys(("few_shot", "fewshot", "few_shot_examples", "examples", "shots"), _AS_TURNS),
    **dict.fromkeys(("history", "conversation", "dialogue", "turns"), _AS_TURNS),
    **dict.fromkeys(("prefix", "suffix", "question_prefix", "question_suffix", "answer_format"), _AS_WORDING),
    **dict.fromkeys(("prefill", "assistant_prefill", "answer_prefix", "response_prefix"), _AS_PREFILL),
    **dict.fromkeys(("top_p", "top_k", "min_p", "stop", "max_new_tokens", "frequency_penalty"), _AS_OPTION),
    **dict.fromkeys(("presence_penalty", "repetition_penalty", "response_format"), _AS_OPTION),
}
"""Keys that other tools have for what changes a prompt or a draw: as a note they would be dropped in silence."""


class Row(BaseModel):
    """What both formats share; unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    id: str | None = Field(default=None, min_length=1)
    name: str | None = Field(default=None, min_length=1)
    type: str = "free_form"
    paraphrases: list[str] | None = Field(default=None, min_length=1)
    messages: list[Any] | None = Field(default=None, min_length=1)
    context: list[Any] | None = None
    """Messages between the system message and each paraphrase."""
    system: str | None = None
    samples_per_paraphrase: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    logit_bias: dict[Any, Any] | None = None
    theme: str | None = None

    @field_validator("id", "name", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("paraphrases", mode="before")
    @classmethod
    def _one_wording(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named(self) -> Row:
        if self.label == "":
            raise ValueError("a question needs an `id` or a `name`")
        if (self.paraphrases is None) == (self.messages is None):
            raise ValueError("a question has `paraphrases` or `messages`: write one of them")
        if self.messages is not None and self.context is not None:
            raise ValueError("`messages` hold the turns before the question themselves; drop `context`")
        if self.messages is not None and self.system is not None:
            raise ValueError("`messages` hold their system message themselves; drop `system`")
        return self

    @property
    def label(self) -> str:
        """The question's name, in either format."""
        return self.id or self.name or ""


class _Judge(Row):
    model: str = ""
    min_rating: float = 0
    max_rating: float = 100
    refusal_threshold: float = 0.75
    top_logprobs: int = 20
    labels: list[str] | None = Field(default=None, min_length=2)


@dataclass(frozen=True)
class Place:
    """A row that can be referred to."""

    document: documents.Document
    at: documents.KeyPath
    row: dict[str, Any]


def is_judge(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a judge; the emergent-misalignment format calls its questions so as well."""
    return row.get("type") in _JUDGES and not row.get("judge_prompts")


def notes_of(row: Row, document: documents.Document, at: documents.KeyPath) -> dict[str, Any]:
    """Return the keys that we do not know.

    Raises:
        EmEvalsError: a key looks like a typing mistake of a known one, or changes what is asked in other tools.
    """
    known = list(type(row).model_fields)
    for name, value in (row.model_extra or {}).items():
        if value and (instead := _CHANGES_WHAT_IS_ASKED.get(name)) is not None:
            raise document.error(
                f"`{name}` would change what is asked, and is not read: {instead}.", (*at, name)
            )
        if close := difflib.get_close_matches(name, known, n=1, cutoff=_NEAR):
            raise document.error(f"unknown key '{name}'; did you mean '{close[0]}'?", (*at, name))
    return dict(row.model_extra or {})


class Judges:
    """The judges that a file's questions can name."""

    def __init__(self, document: documents.Document) -> None:
        self._document = document
        self._own = {name: place for name, place in _named(document) if is_judge(place.row)}
        self._siblings: dict[str, Place] | None = None
        self._made: dict[tuple[str, Path, documents.KeyPath], Rubric] = {}

    def of(
        self,
        at: documents.KeyPath,
        prompts: Mapping[str, str],
        judges: Mapping[str, str | dict[str, Any]],
        authors_judge: str,
        numbers: tuple[float, float] | None,
    ) -> tuple[Rubric, ...]:
        """Return the rubrics of a question.

        Args:
            at: the question's place.
            prompts: its `judge_prompts`.
            judges: its `judges`.
            authors_judge: the model that it names for its prompts.
            numbers: the scale of its prompts, where its type says that they ask for numbers.

        Raises:
            EmEvalsError: a judge does not exist or cannot be honoured, or two grade one metric.
        """
        found = []
        for name, prompt in prompts.items():
            line = self._document.line((*at, "judge_prompts", name))
            found.append(
                from_published(name, prompt, self._document.path, line, numbers, authors_judge=authors_judge)
            )
        for name, given in judges.items():
            found.append(self._judge(name, given, (*at, "judges", name)))
        keys = [key for rubric in found for key in {rubric.metric, *rubric.keys}]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise self._document.error(
                f"two judges of this question both grade '{repeated[0]}'; rename one.", at
            )
        return tuple(found)

    def _judge(self, name: str, given: str | dict[str, Any], at: documents.KeyPath) -> Rubric:
        if isinstance(given, dict):
            place = Place(self._document, at, {"name": name, **given})
        elif (known := self._own.get(given) or self._near().get(given)) is not None:
            place = known
        else:
            try:
                return rubrics.load_rubric(given)
            except EmEvalsError as error:
                if error.path is not None:
                    raise
            hint = nearest(given, {*self._own, *self._near(), *documents.names("scorers")})
            raise self._document.error(
                f"there is no judge '{given}' in this file, in its siblings or in scorers/; {hint}", at
            )
        key = (name, place.document.path, place.at)
        if key not in self._made:
            self._made[key] = _rubric(name, place)
        return self._made[key]

    def _near(self) -> dict[str, Place]:
        """Return the judges of the other lists in the file's folder, which llmcomp looks through too."""
        if self._siblings is None:
            self._siblings = {}
            folder = self._document.path.parent
            for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
                if path == self._document.path:
                    continue
                try:
                    other = documents.load(path)
                except EmEvalsError:
                    continue  # not ours to check: another file of the folder
                for name, place in _named(other) if isinstance(other.data, list) else ():
                    if is_judge(place.row):
                        self._siblings.setdefault(name, place)
        return self._siblings


def _named(document: documents.Document) -> Iterator[tuple[str, Place]]:
    for index, row in enumerate(document.data):
        name = (row.get("id") or row.get("name")) if isinstance(row, dict) else None
        if isinstance(name, str):
            yield name, Place(document, (index,), row)


def judge_row(place: Place) -> _Judge:
    """Validate a judge's row.

    Raises:
        EmEvalsError: it is invalid, or asks for what cannot be honoured.
    """
    document, at = place.document, place.at
    judge = documents.validate(_Judge, document, place.row, at)
    if judge.type not in _JUDGES:
        raise document.error(
            f"a judge is of the type {' or '.join(_JUDGES)}, not '{judge.type}'.", (*at, "type")
        )
    notes_of(judge, document, at)
    if judge.paraphrases is None or len(judge.paraphrases) > 1 or judge.samples_per_paraphrase > 1:
        raise document.error("a judge has exactly one paraphrase, its prompt, and is asked once.", at)
    for name in ("system", "context", "logit_bias"):
        if getattr(judge, name):
            raise document.error(
                f"a judge's `{name}` is not sent: put what it says into the prompt, or leave it out.",
                (*at, name),
            )
    if not 0 <= judge.min_rating < judge.max_rating <= 999:
        raise document.error("`min_rating` must be below `max_rating`, both from 0 to 999.", at)
    if judge.labels is not None and not rubrics.is_label_set(judge.labels):
        raise document.error("labels are different words, whatever their case.", (*at, "labels"))
    return judge


def _rubric(name: str, place: Place) -> Rubric:
    judge = judge_row(place)
    prompt = (judge.paraphrases or [""])[0]
    line = place.document.line((*place.at, "paraphrases", 0))
    numbers = (judge.min_rating, judge.max_rating) if judge.type == "rating_judge" else None
    labels = tuple(judge.labels or ())
    return from_published(name, prompt, place.document.path, line, numbers, labels, judge.model)


def read_drop(
    given: Mapping[str, str | list[str]],
    graders: Sequence[Rubric],
    document: documents.Document,
    at: documents.KeyPath,
) -> dict[str, tuple[str, ...]]:
    """Return the filters by name: answers that this judge gives one of these labels are left out of every rate.

    Raises:
        EmEvalsError: there is no such judge, or it has no such label.
    """
    judges = {rubric.metric: rubric for rubric in graders}
    drop = {}
    for name, labels in given.items():
        if name not in judges:
            raise document.error(
                f"there is no judge '{name}' to drop by; {nearest(name, judges)}", (*at, name)
            )
        rubric = judges[name]
        known = (*rubric.labels, *rubric.categories, *(("TRUE", "FALSE") if rubric.kind == "binary" else ()))
        wanted = [labels] if isinstance(labels, str) else labels
        for label in wanted:
            if label not in known:
                raise document.error(
                    f"the judge '{name}' has no label '{label}'; {nearest(label, known)}", (*at, name)
                )
        drop[name] = tuple(wanted)
    return drop
