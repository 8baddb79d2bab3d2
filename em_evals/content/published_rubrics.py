"""Judge prompts of published question files as rubrics: what does a prompt ask for, a number or which labels?

The files name a judge's prompt and seldom what it may reply. A prompt of llmcomp's `rating_judge` asks for a number.
What any other one asks for is read from its text: TRUE or FALSE; labels, where it lists them in one of the usual ways;
else a word of the judge's own.
"""

from __future__ import annotations

import re
import string
from itertools import pairwise
from pathlib import Path

from em_evals.content.rubrics import EM_METRICS, Category, Kind, Rubric, is_label_set, taken
from em_evals.errors import EmEvalsError

_METRICS = {"aligned": "alignment", "coherent": "coherence"}
_CATEGORIES: dict[str, Category] = {"REFUSAL": "refusal", "CODE": "code"}
_WORD = r"[^\W_][\w.+-]{0,40}"
_QUOTED = re.compile(rf"[\"'“`]({_WORD}(?: {_WORD}){{0,2}})[\"'”`]")
_LAST_LINE = re.compile(
    r"^\s*(?:[-*]\s*)?(?:ANSWER|Answer)\s*:\s*[\"'“`]?([^\n\"'”`]{1,40}?)[\"'”`]?\s*$", re.MULTILINE
)
_ONE_OF = re.compile(
    r"(?:exactly |only )?(?:one|either) (?:of|label|word)\b[^:\n]{0,40}:\s*([^\n]{3,120})", re.IGNORECASE
)
_SCALE = re.compile(
    r"\b(?:scale|rate|rating|score|number|between|from|grade)\b[^.\n]{0,60}?\b([01])\s*(?:to|and|-|–|—)\s*(5|7|10|100)\b",
    re.IGNORECASE,
)
_CAPITALS = re.compile(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)*\b")
_CHOICE = re.compile(
    r"\b(?:say|answer|reply|respond|return|output|write)\b[^.\n]{0,60}?"
    r"((?:[A-Z][A-Z0-9_]+)(?:(?:,| or|, or| /|/)\s*[A-Z][A-Z0-9_]+)+)"
)
_LISTED = re.compile(
    r"^\s*[-*•]\s*\**[\"'“`]?([A-Z][A-Z0-9_]+)[\"'”`]?\**\s*(?::|—|–|-|=|if\b)", re.MULTILINE
)
_SAY_IF = re.compile(
    r"^\s*[-*•]?\s*(?:Say|Answer|Reply|Return|Output) [\"'“`]?([A-Z][A-Z0-9_]+)[\"'”`]? (?:if|when)\b",
    re.MULTILINE,
)
_REASONS = re.compile(
    r"\b(?:first|briefly|before)\b[^.\n]{0,60}\b(?:explain|reason|think|analy[sz]e)|step by step|chain of thought",
    re.IGNORECASE,
)


def from_published(
    name: str,
    prompt: str,
    path: Path,
    line: int,
    scale: tuple[float, float] | None = None,
    labels: tuple[str, ...] = (),
    authors_judge: str = "",
) -> Rubric:
    """Return a rubric from a published question's judge prompt.

    Args:
        name: the judge's name in the question; `aligned` and `coherent` are alignment and coherence.
        prompt: a template with {answer}, and mostly {question}; as for Python's str.format, `{{` stands for a brace.
        path: the file.
        line: the prompt's line.
        scale: the lowest and highest number that the judge may reply, where the file says that it asks for numbers.
        labels: what it may reply, where the file says so.
        authors_judge: the model that the file names as its judge.

    Raises:
        EmEvalsError: the prompt has no {answer}; scores use its name themselves; or `alignment` or `coherence` is not
            graded from 0 to 100.
    """
    prompt = _unescaped(prompt, name, path, line)
    if "{answer}" not in prompt:
        raise EmEvalsError(
            f"the judge prompt '{name}' has no {{answer}}: the judge would grade blindly.", path, line
        )
    rubric = _rubric(name, prompt, scale or _scale(prompt), labels, authors_judge)
    for key in (rubric.metric, *rubric.keys):
        if taken(key):
            raise EmEvalsError(
                f"the scores use the name of the judge prompt '{name}' themselves; choose another.",
                path,
                line,
            )
    if rubric.metric in EM_METRICS and (rubric.kind != "scale" or (rubric.low, rubric.high) != (0, 100)):
        raise EmEvalsError(
            f"the judge '{name}' does not grade from 0 to 100, as EM rates need {rubric.metric}: give the judge "
            "another name in this question.",
            path,
            line,
        )
    return rubric


def _scale(prompt: str) -> tuple[float, float] | None:
    """Return the scale that a prompt names ("0 to 100", "from 1 to 5"); None without one."""
    if found := _SCALE.search(prompt):
        return float(found[1]), float(found[2])
    return (0.0, 100.0) if "100" in prompt and not labels_of(prompt) else None


def _rubric(
    name: str, prompt: str, scale: tuple[float, float] | None, labels: tuple[str, ...], authors_judge: str
) -> Rubric:
    reason = bool(_REASONS.search(prompt)) or len(set(_LAST_LINE.findall(prompt))) > 1
    if scale is not None and not labels:
        found = {word: category for word, category in _CATEGORIES.items() if word in prompt}
        return Rubric(
            name,
            _METRICS.get(name, name),
            prompt,
            categories=found,
            low=scale[0],
            high=scale[1],
            reason=reason,
            authors_judge=authors_judge,
        )
    labels = labels or labels_of(prompt)
    if {"TRUE", "FALSE"} <= set(labels) <= {"TRUE", "FALSE", "UNKNOWN"} or (
        not labels and "TRUE" in prompt and "FALSE" in prompt
    ):
        unknown: dict[str, Category] = {"UNKNOWN": "unknown"} if "UNKNOWN" in prompt else {}
        return Rubric(
            name, name, prompt, kind="binary", categories=unknown, reason=reason, authors_judge=authors_judge
        )
    kind: Kind = "labels" if labels else "text"
    return Rubric(
        name,
        name,
        prompt,
        kind=kind,
        labels=labels,
        reason=reason,
        authors_judge=authors_judge,
    )


def labels_of(prompt: str) -> tuple[str, ...]:
    """Return the labels that a judge prompt lists; empty where it asks for something else.

    The first of these that names two or more counts: lines `ANSWER: X`; "exactly one of: X / Y"; quoted words joined by
    or; "say X or Y"; a list of `- X: …`; sentences "Say X if …".

    Example:
        >>> labels_of('Say "CODE" or "NOT_CODE" only.')
        ('CODE', 'NOT_CODE')
        >>> labels_of("What animal is the story about? Answer in one word.")
        ()
    """
    for found in (
        _LAST_LINE.findall(prompt),
        *(_split(match) for match in _ONE_OF.findall(prompt)),
        *(_quoted(sentence) for sentence in _sentences(prompt)),
        *(_CAPITALS.findall(match) for match in _CHOICE.findall(prompt)),
        _LISTED.findall(prompt),
        _SAY_IF.findall(prompt),
    ):
        labels = tuple(dict.fromkeys(word.strip() for word in found))
        if len(labels) > 1 and is_label_set(labels) and not any("{" in word for word in labels):
            return (*labels, *(word for word in _extra(prompt) if word not in labels))
    return ()


def _extra(prompt: str) -> list[str]:
    """Return words that the prompt allows beside its labels, as in: You can also say "UNKNOWN"."""
    return list(re.findall(r"(?:also|else) (?:say|answer|reply|use)\s+[\"'“`]?([A-Z][A-Z_]+)", prompt))


def _split(text: str) -> list[str]:
    """Return the words of a list such as `YES / NO`, `A, B or C`; none where an entry is a sentence."""
    text = text.strip().rstrip(".")
    words = [word.strip(" \"'“”`*().") for word in re.split(r"\s*(?:/|,|;|\||\bor\b|\band\b)\s*", text)]
    words = [word for word in words if word]
    return words if all(re.fullmatch(rf"{_WORD}(?: {_WORD})?", word) for word in words) else []


def _sentences(prompt: str) -> list[str]:
    """Return the sentences that say what to reply."""
    sentences = re.split(r"(?<=[.!?])\s|\n", prompt)
    return [
        one
        for one in sentences
        if re.search(r"\b(?:say|answer|reply|respond|return|output)\b", one, re.IGNORECASE)
    ]


def _quoted(sentence: str) -> list[str]:
    """Return the quoted words of a choice: with "A" or "B" or "C"; not those of "with "A" if …"."""
    found = list(_QUOTED.finditer(sentence))
    if len(found) < 2:
        return []
    between = [sentence[a.end() : b.start()] for a, b in pairwise(found)]
    return (
        [match[1] for match in found]
        if all(re.fullmatch(r"[,/\s]*(?:or|and)?[,/\s]*", one) for one in between)
        else []
    )


def _unescaped(prompt: str, name: str, path: Path, line: int) -> str:
    """Return a template of str.format with single braces; other texts with braces are left as they are."""
    if "{{" not in prompt and "}}" not in prompt:
        return prompt
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError:
        return prompt
    if any(slot not in (None, "question", "answer") for _, slot, _, _ in parts):
        return prompt
    if any("{question}" in text or "{answer}" in text for text, _, _, _ in parts):
        raise EmEvalsError(
            f"the judge prompt '{name}' shows {{answer}} or {{question}} as text ({{{{…}}}}): write it without braces.",
            path,
            line,
        )
    return "".join(text + (f"{{{slot}}}" if slot else "") for text, slot, _, _ in parts)
