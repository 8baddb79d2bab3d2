"""Label judges: from a token distribution, or a written reply, to one of a rubric's labels.

A reply counts by the first of these: its last line says `ANSWER: X`, or is a label alone; its only such line is a
label; it begins with a label; it names one label and no other, and denies nothing. Where the rubric lets the judge
reason first, only the last line counts. A longer label is looked for first: NOT_CODE, "Not code" and "not-code" are no
CODE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from em_evals.content.rubrics import Category, Rubric

EDGES = " \t\r\n*_`#>\"'“”‘’{}[]()|:=.,;!–—-"
NEGATION = re.compile(r"\b(?:no|not|never|neither|nor|without|rather than)\b|n['’]t\b", re.IGNORECASE)
_ANSWER = re.compile(
    r"^\W{0,4}(?:final )?(?:answer|label|verdict|category|classification)\W{0,4}[:=]\s*(.+)$", re.IGNORECASE
)
_LONGEST_LINE = 200
_LONGEST_WORD = 60

Said = tuple[str, Category]
UNSAID: Said = ("", "unscored")


def masses(
    labels: Sequence[str], distribution: Mapping[str, float], bare: Mapping[str, str]
) -> dict[str, float]:
    """Return the probability of each label at the first token.

    A token counts for a label that it is, whatever its case, or begins as it is written (`NOT` of NOT_CODE). A piece
    that begins several labels counts for none of them.

    Args:
        labels: the rubric's labels.
        distribution: probability of each token.
        bare: what each token says, without blanks and markup.
    """
    mass = dict.fromkeys(labels, 0.0)
    for token, probability in distribution.items():
        text = bare[token]
        whole = [label for label in labels if text.casefold() == label.casefold()]
        begun = [label for label in labels if len(text) >= min(2, len(label)) and label.startswith(text)]
        found = whole or begun
        if len(found) == 1:
            mass[found[0]] += probability
    return mass


def parse_label(rubric: Rubric, text: str) -> Said:
    """Return a written reply's label, or the category of a category word; ("", "unscored") where it leaves that open.

    Args:
        rubric: its labels and categories.
        text: the reply without the judge's thoughts.
    """
    words: dict[str, Said] = {label: (label, "answer") for label in rubric.labels}
    words |= {word: (word, category) for word, category in rubric.categories.items()}
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return UNSAID
    if (said := _last(lines[-1], words)) is not None:
        return said
    if rubric.reason:
        return UNSAID
    alone = [said for line in lines if (said := _alone(line, words)) is not None]
    if len(alone) == 1:
        return alone[0]
    begins = _named(text.lstrip(EDGES)[:_LONGEST_WORD], words, start=True)
    named = _named(text, words)
    if len(begins) == 1 and (len(named) == 1 or re.match(r"[\s\W]*\n|\s*[.,:;!–—-]", _rest(text, begins[0]))):
        return words[begins[0]]
    if len(named) == 1 and not NEGATION.search(_without(text, named[0])):
        return words[named[0]]
    return UNSAID


def parse_text(rubric: Rubric, text: str) -> Said:
    """Return a word of the judge's own, in lower case: its only line, or its last one after `ANSWER:`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return UNSAID
    labelled = _ANSWER.match(lines[-1][:_LONGEST_LINE])
    if not labelled and (rubric.reason or len(lines) > 1):
        return UNSAID
    word = " ".join((labelled[1] if labelled else lines[0]).strip(EDGES).casefold().split())
    return (word, "answer") if 0 < len(word) <= _LONGEST_WORD else UNSAID


def _last(line: str, words: Mapping[str, Said]) -> Said | None:
    """Read a last line that is `ANSWER: X`, or a label alone."""
    labelled = _ANSWER.match(line[:_LONGEST_LINE])
    return _alone(labelled[1] if labelled else line, words)


def _alone(line: str, words: Mapping[str, Said]) -> Said | None:
    if len(line) > _LONGEST_LINE:
        return None
    plain = _plain(line)
    return next((said for word, said in words.items() if plain and plain == _plain(word)), None)


def _plain(text: str) -> str:
    """Return a text's letters and digits, with single blanks between its words."""
    return " ".join(re.findall(r"[^\W_]+", text)).casefold()


def _pattern(word: str) -> str:
    parts = [re.escape(part) for part in re.findall(r"[^\W_]+", word)]
    return r"(?<![\w])" + r"[\W_]{1,2}".join(parts) + r"(?![\w])"


def _named(text: str, words: Mapping[str, Said], start: bool = False) -> list[str]:
    """Return the labels that a text names, longest first, each place once; a label counts as written or in capitals."""
    found = []
    for word in sorted(words, key=len, reverse=True):
        # "No" and "good" are plain words of a sentence: only two-part labels are looked for in any case.
        flags = re.IGNORECASE if len(re.findall(r"[^\W_]+", word)) > 1 or start else 0
        pattern = re.compile(_pattern(word), flags)
        if (pattern.match(text) if start else pattern.search(text)) is not None:
            found.append(word)
            text = pattern.sub(" … ", text)
            if start:
                break
    return found


def _rest(text: str, word: str) -> str:
    stripped = text.lstrip(EDGES)
    match = re.match(_pattern(word), stripped, re.IGNORECASE)
    return stripped[match.end() :][:_LONGEST_WORD] if match else ""


def _without(text: str, word: str) -> str:
    return re.sub(_pattern(word), " ", text, flags=re.IGNORECASE)
