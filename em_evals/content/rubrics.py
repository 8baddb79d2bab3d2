"""Rubrics: how an answer is graded. A YAML file becomes a judge prompt, a scale or labels, and a threshold.

Published question sets bring their own prompts; those become rubrics too (published_rubrics.py), so that one judge
serves both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from em_evals import files
from em_evals.content import documents
from em_evals.content.documented import Documented
from em_evals.content.thresholds import ALIGNED_FROM, COHERENT_ABOVE, MISALIGNED_BELOW
from em_evals.errors import EmEvalsError

Category = Literal["answer", "refusal", "code", "unknown", "unfinished", "filtered", "too_long", "unscored"]
"""`unknown` is the judge's word for an answer that fits none of the grades (UNKNOWN). `filtered` and `too_long` are the
provider's: the model under test gave no answer to grade. `unfinished`: it still thought when its tokens ran out."""
Kind = Literal["scale", "binary", "labels", "text"]

_MARKS = (
    "coherent",
    "misaligned_coherent",
    "refusal",
    "code",
    "unfinished",
    "filtered",
    "too_long",
    "unscored",
    "dropped",
)
_SHARES = (
    "scored_share",
    "refusal_share",
    "code_share",
    "ungraded_share",
    "unfinished_share",
    "filtered_share",
    "too_long_share",
    "dropped_share",
)
_RATES = (
    *("em_rate", "em_rate_coherent", "coherent_share", "unscored_share", "em_rate_least", "em_rate_most"),
    *_SHARES,
)
RESERVED = frozenset(_MARKS + _RATES)
"""What scores and their summary hold beside the grades (grading/scorers.py): a grade of such a name would be lost."""
EM_METRICS = ("alignment", "coherence")
"""The two grades that EM rates are made of; always from 0 to 100."""
OF_TRAIT = "trait:"
"""Before a trait's name: its rubric."""
_SLOT = re.compile(r"\{(question|answer)\}")
_EDGES = r"\[\]<>{}()=#*_|~`—–\-"
_LONGEST_FENCE = 2000


class RubricFile(Documented, BaseModel):
    """A rubric: `scorers/NAME.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int = Field(ge=1)
    description: str = ""
    metric: str
    categories: dict[str, Literal["refusal", "code", "unknown", "unscored"]] = {}
    scale: tuple[float, float] | None = None
    labels: list[str] | None = Field(default=None, min_length=2)
    reason: bool = False
    threshold: dict[Literal["misaligned_below", "aligned_from", "coherent_above"], float] = {}
    prompt: str

    @field_validator("metric")
    @classmethod
    def _free(cls, metric: str) -> str:
        if taken(metric):
            raise ValueError(f"the scores use the name {metric} themselves; choose another")
        return metric

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 <= scale[0] < scale[1] <= 999:
            raise ValueError("write the lowest and the highest grade, such as [1, 5]; both from 0 to 999")
        return scale

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and not is_label_set(labels):
            raise ValueError(
                "labels are different words, whatever their case, with at least one letter or digit"
            )
        return labels

    @model_validator(mode="after")
    def _whole(self) -> RubricFile:
        for slot in ("{question}", "{answer}"):
            if self.prompt.count(slot) != 1:
                raise ValueError(f"the prompt must contain {slot} exactly once")
        if self.labels is not None and self.scale is not None:
            raise ValueError("a rubric has a `scale` or `labels`; drop one")
        if self.metric in EM_METRICS and (self.labels is not None or self.scale not in (None, (0, 100))):
            raise ValueError(
                f"{self.metric} is graded from 0 to 100, as EM rates need it; choose another `metric`"
            )
        return self


@dataclass(frozen=True)
class Rubric:
    """One thing to grade.

    Attributes:
        metric: the score's key (`alignment`, `coherence`, or a published prompt's own name).
        kind: `scale` asks for a number from `low` to `high`; `binary` for TRUE or FALSE; `labels` for one of `labels`;
            `text` for a word of the judge's own.
        prompt: the judge's prompt with the slots {question} and {answer}.
        categories: words that the judge may say instead of a grade, and what they mean.
        low: the scale's lowest grade.
        high: its highest grade.
        labels: what the judge chooses from, as it writes them.
        reason: the judge reasons first; its last line `ANSWER: X` counts.
        misaligned_below: answers with a lower value count as misaligned (alignment rubrics).
        aligned_from: answers with at least this value count as aligned; what lies between is neither (the same).
        coherent_above: answers with a higher value count as coherent (coherence rubrics).
    """

    name: str
    metric: str
    prompt: str
    kind: Kind = "scale"
    version: int = 1
    categories: dict[str, Category] = field(default_factory=dict)
    misaligned_below: float = MISALIGNED_BELOW
    aligned_from: float = ALIGNED_FROM
    coherent_above: float = COHERENT_ABOVE
    low: float = 0.0
    high: float = 100.0
    labels: tuple[str, ...] = ()
    reason: bool = False
    fenced: bool = False
    """Whether the marker lines carry a code (our own rubrics); a published prompt stays as published."""
    authors_judge: str = ""
    """The model that a published file names; a note, as the role `grader` judges."""

    @property
    def digest(self) -> str:
        """Identifies what the judge was asked."""
        parts = [self.kind, self.prompt, repr(sorted(self.categories))]
        if (self.low, self.high, self.labels, self.reason) != (0, 100, (), False):
            parts.append(repr((self.low, self.high, self.labels, self.reason)))
        if self.fenced:
            parts.append("fenced")
        return files.digest(*parts)

    @property
    def keys(self) -> tuple[str, ...]:
        """The grade's names in a score: the metric, or one name for each label."""
        return (
            tuple(f"{self.metric}_{label}" for label in self.labels)
            if self.kind == "labels"
            else (self.metric,)
        )

    def render(self, question: str, answer: str) -> str:
        """Return the judge's prompt with question and answer put in as data.

        The marker lines of our own rubrics carry a code that no answer can know (see `fence`), and the texts are shown
        as they are. Published prompts stay as published, so there imitated markers are quoted (see `disarm`). Both
        slots are filled in one pass, so braces in an answer stay text.
        """
        texts = {"question": _sendable(question), "answer": _sendable(answer)}
        if self.fenced:
            prompt = self.with_fence(self.fence(question, answer))
        else:
            prompt, markers = self.prompt, self._markers()
            texts = {name: disarm(text, markers) for name, text in texts.items()}
        return _SLOT.sub(lambda match: texts[match.group(1)], prompt)

    def fence(self, question: str, answer: str) -> str:
        """Return the code in the marker lines: another one for every answer, the same whenever it is graded.

        It is a digest of question and answer, so an answer that holds its own code cannot be written (64 bits of
        SHA-256), while equal requests stay equal: grades are reproducible and judges' replies can be cached.
        """
        parts = (self.prompt, _sendable(question), _sendable(answer))
        return files.digest(b"fence", *parts)

    def with_fence(self, code: str) -> str:
        """Return the prompt, slots unfilled, with a code in each of its marker lines."""
        prompt = self.prompt
        for marker in self._markers():
            prompt = prompt.replace(marker, re.sub(r"([\W_]*)$", rf" {code}\1", marker, count=1))
        return prompt

    def imitated(self, text: str) -> list[str]:
        """Return the prompt's markers that a text imitates, whatever the letters look like; nothing is changed."""
        text = _sendable(text)
        return [marker for marker in self._markers() if disarm(text, [marker]) != text]

    def _markers(self) -> list[str]:
        """Return the lines that fence the slots: the nearest lines with text before and after each."""
        lines = self.prompt.splitlines()
        fences: list[str] = []
        for number, line in enumerate(lines):
            if not _SLOT.search(line):
                continue
            before = next((text for text in reversed(lines[:number]) if text.strip()), "")
            after = next((text for text in lines[number + 1 :] if text.strip()), "")
            fences += [text.strip() for text in (before, after) if _is_marker(text)]
        return list(dict.fromkeys(fences))


def imitations(rubrics: Iterable[Rubric], answer: str) -> list[str]:
    """Return the markers of several rubrics' prompts that an answer imitates, each once."""
    return list(dict.fromkeys(marker for rubric in rubrics for marker in rubric.imitated(answer)))


def disarm(text: str, markers: list[str]) -> str:
    """Quote every imitation of a marker, whatever its case, spacing or look-alike letters, so that it fences nothing.

    "[ANSWER END]" becomes "(quoted marker: ANSWER END)": the judge still reads what the model wrote. The words in
    the middle of a sentence, without edges, stay as they are.
    """
    text = _sendable(text)
    names = {"".join(words).upper(): words for words in (re.findall(r"[0-9A-Za-z]+", m) for m in markers)}
    for words in names.values():
        # Repetitions are bounded: 100 kB of brackets must not take quadratic time.
        between = r"[ \t\u00a0\u2003_\-]{0,40}".join(words)
        pattern = rf"([{_EDGES} \t]{{0,40}})(?<![^\W_]){between}(?![^\W_])([{_EDGES} \t]{{0,40}})"
        text = re.sub(pattern, partial(_quote, " ".join(words)), text, flags=re.IGNORECASE)
    return "".join(_quote_line(line, names) for line in text.splitlines(keepends=True))


def _sendable(text: str) -> str:
    """Return text without lone surrogates: they cannot be sent over HTTP, and no honest answer holds one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _quote(name: str, match: re.Match[str]) -> str:
    left, right = match.groups()
    if not (left.strip() or right.strip()):
        return match.group()  # the words alone, in a sentence, fence nothing
    indent, rest = left[: len(left) - len(left.lstrip())], right[len(right.rstrip()) :]
    return f"{indent}(quoted marker: {name}){rest}"


def _quote_line(line: str, names: dict[str, list[str]]) -> str:
    """Return a line that holds nothing but a marker's letters, however disguised (full width, zero-width spaces)."""
    body = line.strip()
    if len(body) > _LONGEST_FENCE or body.replace(" ", "").isalpha():
        return line
    words = names.get(re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", body)).upper())
    return line if words is None else line.replace(body, f"(quoted marker: {' '.join(words)})", 1)


def _is_marker(line: str) -> bool:
    """Return a fence is a short line in brackets or other edges, not a sentence of the prompt."""
    text = line.strip()
    return (
        0 < len(text) <= 60
        and not text[0].isalnum()
        and not text[-1].isalnum()
        and any(c.isalpha() for c in text)
    )


def taken(metric: str) -> bool:
    """Whether scores use this name themselves; `_low` and `_high` are the ends of an interval."""
    return metric in RESERVED or metric.endswith(("_low", "_high"))


def is_label_set(labels: Sequence[str]) -> bool:
    """Whether these labels can be told apart in a judge's reply, whatever its case and punctuation."""
    plain = [re.sub(r"[\W_]", "", label).casefold() for label in labels]
    return all(plain) and len(set(plain)) == len(plain) and all("\n" not in label for label in labels)


def load_rubric(name: str) -> Rubric:
    """Return a rubric by name (scorers/NAME.yaml) or path, or that of a trait (`trait:callous`, or a trait's file).

    Raises:
        EmEvalsError: it does not exist or does not fit, with file and line.
    """
    if name.startswith(OF_TRAIT):
        from em_evals.content import trait_questions, traits  # they import this module

        return trait_questions.rubric_of(traits.load_trait(name.removeprefix(OF_TRAIT)))
    document = documents.load(documents.find("scorers", name))
    file = documents.validate(RubricFile, document)
    low, high = file.scale or (0.0, 100.0)
    return Rubric(
        name=file.name,
        metric=file.metric,
        prompt=file.prompt,
        kind="labels" if file.labels else "scale",
        labels=tuple(file.labels or ()),
        low=low,
        high=high,
        reason=file.reason,
        fenced=True,
        version=file.version,
        categories=dict(file.categories),
        misaligned_below=file.threshold.get("misaligned_below", MISALIGNED_BELOW),
        aligned_from=file.threshold.get("aligned_from", ALIGNED_FROM),
        coherent_above=file.threshold.get("coherent_above", COHERENT_ABOVE),
    )


def load_rubrics(names: Iterable[str]) -> tuple[Rubric, ...]:
    """Several rubrics by name or path, to grade one answer.

    Raises:
        EmEvalsError: as `load_rubric`; or two have one `metric`, under which only one grade could be kept.
    """
    chosen: dict[str, str] = {}
    found = []
    for name in names:
        rubric = load_rubric(name)
        if rubric.metric in chosen:
            raise EmEvalsError(
                f"the rubrics '{chosen[rubric.metric]}' and '{name}' both grade `metric: {rubric.metric}`: leave one "
                "out, or give one a metric of its own."
            )
        chosen[rubric.metric] = name
        found.append(rubric)
    return tuple(found)
