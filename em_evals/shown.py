r"""Text of others as it may be shown: in terminals, pipes, CI logs, JSON, XML and spreadsheets.

Names, answers and errors come from files and servers. Shown raw, their control sequences move the cursor or color a
verdict, a CI runner takes some of their lines as commands, and a spreadsheet computes some of their cells.

Example:
    >>> line("\x1b[32mpass\x1b[0m")
    '\\x1b[32mpass\\x1b[0m'
    >>> line("::error::made up")
    '\\::error::made up'
    >>> line("no answer from https://me:secret@host/v1")
    'no answer from https://***@host/v1'
    >>> cell("=1+1")
    "'=1+1"
    >>> sentence("'a\nb' is no model")
    "'a\\nb' is no model"
"""

from __future__ import annotations

import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters; tab and newline stay
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # no width, or another direction of writing
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters, and invisible tags
)
_BREAKS = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_COMMANDS = re.compile(
    r"(?<!\S)(::)"  # GitHub's workflow commands, at the beginning of a line: also of one that a table wraps
    r"|#(#(?:\[|vso\[|teamcity\[))"  # GitHub's old ones, Azure's, TeamCity's
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_FORMULA = re.compile(r"[\s]*[=+\-@|%]")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?\s*|[+-]?inf|-")


def text(raw: str) -> str:
    """Return text with its line breaks, without control sequences, commands to a CI runner, or passwords in URLs."""
    return _COMMANDS.sub(_harmless, _CREDENTIALS.sub("***@", _INVISIBLE.sub(_escape, raw)))


def line(raw: str) -> str:
    """Return text as one line; see `text`."""
    return text(" ".join(raw.split()))


def cut(raw: str, most: int) -> str:
    """Return text of at most so many characters, the last of which says that there were more."""
    return raw if len(raw) <= most else f"{raw[: most - 1]}…"


def sentence(raw: str) -> str:
    """Return an error's sentence as one line: what it quotes of line breaks is escaped; see `text`.

    Escaping again changes nothing, so that an error may quote another one's sentence.
    """
    return text(re.sub("[\t\n\r]", lambda found: _BREAKS[found[0]], raw))


def cell(raw: str) -> str:
    """Return a cell of a CSV file: one that a spreadsheet would compute begins with an apostrophe."""
    if _FORMULA.match(raw) and not _NUMBER.fullmatch(raw):
        return f"'{raw}"
    return raw


def json_text(dumped: str) -> str:
    """Return JSON text with invisible characters as JSON escapes: the same value, and harmless in a terminal."""
    return _INVISIBLE.sub(_json_escape, dumped)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _harmless(found: re.Match[str]) -> str:
    return f"\\{found[1]}" if found[1] else f"#\\{found[2]}"
