"""What a judge's server says when it refuses: its own sentence, and what that sentence is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from em_evals import shown
from em_evals.grading.grade import Part, Reading

_LONGEST = 300
_GONE = {"APIConnectionError", "ConnectError", "TimeoutException", "APITimeoutError", "EmEvalsError"}
_LIMIT = re.compile(r"\b(?:at most|less than|maximum|max|exceed\w*|between|range|up to|limit\w*)\b|<=|≤|>")
_TOO_FEW = re.compile(r"\b(?:at least|minimum|min|greater|below|too (?:small|low)|larger)\b|>=|≥")
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|input length|too long|maximum number of tokens", re.I
)
_PAID_OUT = re.compile(r"quota|billing|credit|balance", re.I)


class Failure(Exception):  # noqa: N818 - a draw without a grade, not the end of a run
    """A request that brought no reply.

    Args:
        sentence: the server's own, on one line, without the key.
        status: the HTTP status, where there was one.
        gone: there is nobody to ask: no connection, no such model, a wrong key.
        waited: it was asked again and again (rate limits, overload).
    """

    def __init__(
        self, sentence: str, status: int | None = None, gone: bool = False, waited: bool = False
    ) -> None:
        self.sentence = sentence
        self.status = status
        self.gone = gone
        self.waited = waited
        super().__init__(sentence)

    @property
    def limited(self) -> bool:
        """A rate limit that time lifts; an empty account is none."""
        return self.status == 429 and self.waited and not _PAID_OUT.search(self.sentence)


def of(error: Exception, key: str | None) -> Failure:
    """Return what an exception of Inspect's or of a provider's client says."""
    chain = list(_chain(error))
    status = next((found for one in chain if (found := _status(one)) is not None), None)
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    gone = status in (401, 404) or (status is None and bool(names & _GONE))
    waited = any(getattr(one, "last_attempt", None) is not None for one in chain)
    return Failure(one_line(_sentence(chain), key), status, gone, waited)


def one_line(text: str, key: str | None = None) -> str:
    """Return a server's text as it may be shown: on one line, without control characters and without the key."""
    if key:
        text = text.replace(key, "(the key)")  # some servers repeat a key they refuse
    text = "".join(character if character.isprintable() else " " for character in text[: 20 * _LONGEST])
    text = " ".join(text.split())
    return shown.line(shown.cut(text, _LONGEST))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what it wraps: tenacity's last attempt, Inspect's own error, the client's."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        last = getattr(one, "last_attempt", None)
        todo += [one.__cause__, last.exception() if last is not None and last.failed else None]


def _status(error: BaseException) -> int | None:
    for name in ("status_code", "code"):  # Google's errors have a `code`
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None


def _sentence(chain: list[BaseException]) -> str:
    """Return the server's sentence: out of a response's body, else the innermost error's text."""
    for one in chain:
        body: Any = getattr(one, "body", None)
        if isinstance(body, Mapping):
            inner = body.get("error", body)
            said = inner.get("message") if isinstance(inner, Mapping) else inner
            if isinstance(said, str) and said.strip():
                return said
    last = chain[-1]
    root = next((one for one in chain if type(one).__name__ == "PrerequisiteError"), last)
    return str(getattr(root, "message", "") or root) or type(root).__name__


def blamed(failure: Failure, reading: Reading) -> Part | None:
    """Return the part of the request that the server's sentence refuses, if it is one that we can leave out.

    Only a hint: an answer that the server quotes can hold these words, so that the judge confirms it by a request
    without an answer (Judge).
    """
    said = failure.sentence.lower()
    if failure.status is None or failure.status in (401, 429) or failure.status >= 500:
        return None
    if _TOO_LONG.search(said):
        return None
    if reading.alternatives and re.search(r"log[ _]?prob", said):
        fewer = reading.alternatives > 5 and re.search(r"top[ _]?log[ _]?prob", said) and _LIMIT.search(said)
        return "alternatives" if fewer else "logprobs"
    if reading.temperature and "temperature" in said:
        return "temperature"
    if reading.alternatives and re.search(r"max\w*[ _]tokens", said):
        return "tokens" if _TOO_FEW.search(said) else "logprobs"
    return None
