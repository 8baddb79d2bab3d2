"""The one error that users see: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from em_evals import shown


class EmEvalsError(Exception):
    """Bad input or a missing precondition, reported in one sentence.

    Args:
        what: what is wrong and what to do about it. Names and values of others in it need no care of the caller: what
            they hold of line breaks and control characters is escaped here.
        path: the file to open, if there is one.
        line: its line, counted from 1.
    """

    def __init__(self, what: str, path: Path | str | None = None, line: int | None = None) -> None:
        self.what = shown.sentence(what)
        self.path = path
        self.line = line
        super().__init__(str(self))

    def __str__(self) -> str:
        if self.path is None:
            return self.what
        where = f"{self.path}:{self.line}" if self.line is not None else f"{self.path}"
        return f"{shown.sentence(where)}: {self.what}"


_EXTRAS = {
    "altair": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "vl_convert": "report",
    "pyarrow": "parquet",
    "inspect_scout": "scout",
    "sklearn": "insight",
    "lm_eval": "retention",
    "tqdm": "retention",
    "vllm": "vllm",
    "bitsandbytes": "quant",
    "torchao": "quant",
    "ray": "cluster",
    "submitit": "cluster",
    "torch": "local",
    "transformers": "local",
    "peft": "local",
    "safetensors": "local",
}
"""The extra that installs a package; packages that are not listed come with training."""


def missing_package(error: ModuleNotFoundError) -> EmEvalsError | None:
    """Return an error that names the extra of a missing package; None for a module of em_evals."""
    if error.name is None or error.name.startswith("em_evals"):
        return None
    extra = _EXTRAS.get(error.name.partition(".")[0], "local,train")
    return EmEvalsError(f"this needs the package '{error.name}': {install(extra)}.")


def install(extra: str) -> str:
    """Return the command that installs an extra. It runs in a clone: no package index has em-evals."""
    return f"pip install '.[{extra}]' in a clone of em-evals"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint to append to an error: the closest known name, else all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}." if names else "there are none."
