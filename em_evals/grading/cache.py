"""Judges' replies that could be used, kept across runs: small JSON files that only their owner can read.

`$INSPECT_CACHE_DIR/em-evals` where Inspect's cache was moved, else `judge` in the cache folder of em-evals. A key holds
everything that decides a reply: the judge's name, address, model arguments and settings, the prompt, the way of asking.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path, PurePath
from typing import Any

from inspect_ai.model import Model

from em_evals import files
from em_evals.errors import EmEvalsError

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
_OPERATION = {
    "max_connections",
    "adaptive_connections",
    "max_retries",
    "timeout",
    "cache",
    "batch",
    "attempt_timeout",
}
"""Settings of how to send requests, not of what is asked."""
_NAMING = ("path", "model", "adapter", "revision")


def folder() -> Path:
    """Where replies are kept."""
    if moved := os.environ.get("INSPECT_CACHE_DIR"):
        return Path(moved).expanduser() / "em-evals"
    return files.cache_folder() / "judge"


def name_of(model: Model) -> str:
    """Inspect's name of a judge, and what its model arguments add: `hf/local` alone names every local folder."""
    named = [
        f"{key}={PurePath(str(value)).name}"
        for key, value in sorted(model.model_args.items())
        if any(part in key for part in _NAMING) and isinstance(value, str)
    ]
    return " ".join([str(model), *named])


def identity(model: Model) -> str:
    """Return a digest of everything about a judge that decides its replies."""
    config = model.config.model_dump(exclude=_OPERATION, exclude_none=True)
    digest = getattr(model.api, "card_digest", None)
    arguments = {key: _content(value) for key, value in sorted(model.model_args.items())}
    parts = (str(model), model.api.base_url, digest, config, arguments)
    return files.digest(json.dumps(parts, sort_keys=True, default=repr))


def _content(value: Any) -> Any:
    """Return an argument; a folder or file by what is in it, since a retrained judge keeps its path."""
    if not isinstance(value, str) or not os.path.exists(value):  # noqa: PTH110 - never raises, whatever the text
        return value
    path = Path(value)
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in inside if entry.is_file()
    ]
    return [str(path.resolve()), stats]


class ReplyCache:
    """One judge's replies: in memory while a run lasts, in files for the next run.

    Args:
        judge: its identity.
        use: False neither reads nor writes files.
    """

    def __init__(self, judge: str, use: bool = True) -> None:
        self._judge = judge
        self._use = use
        self._kept: dict[str, dict[str, Any]] = {}

    def distribution(self, *key: str) -> dict[str, float] | None:
        """Token probabilities that were used before."""
        found = self._read(*key).get("distribution")
        if not isinstance(found, dict):
            return None
        real = all(isinstance(p, float | int) and math.isfinite(p) and 0 <= p <= 1.01 for p in found.values())
        return {str(token): float(p) for token, p in found.items()} if real else None

    def reply(self, *key: str) -> str | None:
        """Return a reply that was used before."""
        found = self._read(*key).get("reply")
        return found if isinstance(found, str) else None

    def keep(self, entry: dict[str, Any], *key: str) -> None:
        """Keep a reply; a disk that is full or cannot be written to costs the files, not the grade."""
        path = self._path(*key)
        if not self._use:
            self._kept[path.stem] = entry
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.atomic(path, mode=0o600) as temporary:
                temporary.write_text(json.dumps({"format": _FORMAT, **entry}), encoding="utf-8")
        except (OSError, EmEvalsError) as error:
            self._use, self._kept[path.stem] = False, entry
            _LOGGER.warning(f"judges' replies are not cached: {error}")

    def _read(self, *key: str) -> dict[str, Any]:
        path = self._path(*key)
        if not self._use:
            return self._kept.get(path.stem, {})
        try:
            entry = files.read_json(path)
        except EmEvalsError:
            return {}  # missing or damaged: asked again
        return entry if isinstance(entry, dict) and entry.get("format") == _FORMAT else {}

    def _path(self, *key: str) -> Path:
        name = files.digest(self._judge, *(part.encode("utf-8", "replace") for part in key))
        return folder() / name[:2] / f"{name}.json"
