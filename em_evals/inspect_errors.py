"""Errors as Inspect shows them: one sentence, no traceback."""

from __future__ import annotations

from inspect_ai._util.error import PrerequisiteError
from rich.markup import escape
from rich.text import Text

from em_evals import shown


def refusal(what: object) -> PrerequisiteError:
    """Return the exception that Inspect prints as it stands.

    Inspect prints it as rich markup: unescaped, brackets in a path or in `.[local]` would vanish.
    """
    return PrerequisiteError(escape(shown.text(str(what))))


def said(error: PrerequisiteError) -> str:
    """Return what a refusal says, ours or Inspect's own, on one line and without markup."""
    return " ".join(Text.from_markup(str(error.message)).plain.split())
