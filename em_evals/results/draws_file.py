"""Inspect's `.eval` logs, read without Inspect: the header and what results are made of.

Importing Inspect takes two seconds, and its validation of every event, message and token two milliseconds a draw: 40 s
for 20,000 draws. Here a draw has its id, epoch, metadata, answer, scores, store and error. Anything else comes from
Inspect at the first access, and what does not look as today's Inspect writes it is left to Inspect altogether.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic_core import from_json

from em_evals.parsing import collector_paused

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

_HEADER, _DRAWS = "header.json", "samples/"
_LOCAL = 30
"""Bytes of a zip entry's own header before its name."""
_OLD = {"score", "transcript"}
"""Fields of earlier versions' draws, which Inspect converts."""
_VERSION = 2
_ZSTD = 93
"""Zip's number of zstd; zipfile knows it from Python 3.14 on."""
_UTC = ("+00:00", "Z")
_PLAIN = {"role": "role", "content": "content", "text": "content"}
"""Attributes of a message that is text, by their fields."""
_RUN = ("task", "task_version", "model", "created")
_RUN_DICTS = ("task_args", "packages", "metadata")


class Part:
    """A part of a log: its fields as attributes.

    Args:
        fields: as in the file.
        rest: returns Inspect's object, which has the other fields; None: other fields are None.
    """

    def __init__(self, fields: dict[str, Any], rest: Callable[[], Any] | None = None) -> None:
        self.__dict__.update(fields)
        self._rest = rest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None if self._rest is None else getattr(self._rest(), name)


class Draw:
    """A draw. Fields that are not read here come from Inspect's own `EvalSample` of the same JSON."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self.id, self.epoch = data["id"], data["epoch"]
        self.metadata: dict[str, Any] = data.get("metadata") or {}
        self.store: dict[str, Any] = data.get("store") or {}
        self.error = data.get("error")
        scores = data.get("scores")
        self.scores = None if scores is None else {name: Part(one) for name, one in scores.items()}

    @cached_property
    def output(self) -> Any:
        """The answer: its completion and metadata, and Inspect's other fields."""
        found = self._data.get("output") or {}
        own = {"completion": found.get("completion"), "metadata": found.get("metadata")}
        return Part(own, lambda: self._whole.output) if "completion" in found else self._whole.output

    @cached_property
    def input(self) -> Any:
        """The prompt: text, or Inspect's messages."""
        found = self._data["input"]
        if isinstance(found, str):
            return found
        if not all(map(_is_plain, found)):
            return self._whole.input
        return [
            Part({name: one.get(key) for name, key in _PLAIN.items()}, partial(self._message, place))
            for place, one in enumerate(found)
        ]

    def _message(self, place: int) -> Any:
        return self._whole.input[place]

    @cached_property
    def _whole(self) -> EvalSample:
        from inspect_ai.log import EvalSample

        # Events are most of a draw, and no result is made of them.
        return EvalSample.model_validate(self._data | {"events": [], "timelines": None, "events_data": None})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole, name)


def _is_plain(message: Any) -> bool:
    """Return whether a message is text that Inspect reads as it stands; in an assistant's it looks for thoughts."""
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user")
        and isinstance(message.get("content"), str)
    )


@collector_paused()
def read(path: Path) -> Any:
    """Return a log with its draws, ordered as Inspect orders them; None where it is left to Inspect.

    Args:
        path: a `.eval` file.
    """
    try:
        with ZipFile(path) as file:
            entries = {entry.filename: entry for entry in file.infolist()}
        rows = dict(_contents(path.read_bytes(), entries))
        header = rows.pop(_HEADER)
        if not _is_todays_header(header) or not all(map(_is_todays, rows.values())):
            return None
        return _log(header, path, list(map(Draw, rows.values())))
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ImportError, BadZipFile, zlib.error):
        return None  # a damaged file: Inspect says what it is
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        return None


def _contents(data: bytes, entries: dict[str, ZipInfo]) -> Iterator[tuple[str, Any]]:
    """Yield (name, JSON) of the header and of each draw; zipfile's own reading takes longer than parsing."""
    for name, entry in entries.items():
        if name != _HEADER and not name.startswith(_DRAWS):
            continue
        start = entry.header_offset
        # The lengths of name and extra field here may differ from those in the directory.
        sizes = (
            int.from_bytes(data[start + place : start + place + 2], "little")
            for place in (_LOCAL - 4, _LOCAL - 2)
        )
        start += _LOCAL + sum(sizes)
        text = _inflated(data[start : start + entry.compress_size], entry)
        if zlib.crc32(text) != entry.CRC:
            raise ValueError(name)
        yield name, from_json(text)


def _inflated(raw: bytes, entry: ZipInfo) -> bytes:
    """Return an entry's content; Inspect compresses with zstd, and did with deflate."""
    if entry.flag_bits & 1 or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED, _ZSTD):
        raise ValueError(entry.filename)
    if entry.compress_type == _ZSTD:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(raw)
    return zlib.decompress(raw, -zlib.MAX_WBITS) if entry.compress_type == ZIP_DEFLATED else raw


def _log(header: dict[str, Any], path: Path, draws: list[Draw]) -> Part:
    """Return the log: fields that results read, the rest from Inspect's header."""

    def whole() -> EvalLog:
        from inspect_ai.log import read_eval_log

        return read_eval_log(str(path), header_only=True)

    run = header["eval"]
    fields = {name: run.get(name) for name in _RUN} | {name: run.get(name) or {} for name in _RUN_DICTS}
    fields["dataset"] = Part(run["dataset"])
    fields["revision"] = Part(run["revision"]) if run.get("revision") else None
    fields["model_generate_config"] = Part(run.get("model_generate_config") or {})
    results = header.get("results")
    if results is not None:
        scores = [
            Part({"metrics": {name: Part(one) for name, one in score["metrics"].items()}})
            for score in results["scores"]
        ]
        counts = {name: results[name] for name in ("total_samples", "completed_samples")}
        results = Part(counts | {"scores": scores}, lambda: whole().results)
    own = {
        "status": header["status"],
        "invalidated": header.get("invalidated", False),
        "location": str(path),
        "eval": Part(fields, lambda: whole().eval),
        "plan": Part({"config": Part(header["plan"].get("config") or {})}, lambda: whole().plan),
        "results": results,
        "samples": sorted(
            draws, key=lambda one: (one.epoch, one.id if isinstance(one.id, str) else str(one.id).zfill(20))
        ),
    }
    return Part(own, whole)


def settings(config: Any) -> dict[str, Any]:
    """Return the settings that a log's generation config sets."""
    if isinstance(config, Part):
        return {name: value for name, value in vars(config).items() if value is not None and name != "_rest"}
    found: dict[str, Any] = config.model_dump(exclude_none=True)
    return found


def _is_todays_header(header: Any) -> bool:
    run, results = header["eval"], header.get("results") or {"total_samples": 0, "completed_samples": 0}
    texts = [run["task"], run["model"], run["created"], header["status"]]
    numbers = [results["total_samples"], results["completed_samples"], header["version"]]
    dicts = [run.get(name) for name in (*_RUN_DICTS, "model_generate_config", "revision")]
    values = [one["value"] for score in results.get("scores") or [] for one in score["metrics"].values()]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(one is None or isinstance(one, dict) for one in dicts)
        and all(isinstance(value, int | float) for value in values)
        and header["version"] == _VERSION
        and run["created"].endswith(_UTC)
    )


def _is_todays(row: Any) -> bool:
    """Check that a draw has the fields and types that this module reads."""
    if _OLD & row.keys() or not isinstance(row["epoch"], int) or not isinstance(row["id"], str | int):
        return False
    scores = row.get("scores") or {}
    if any("value" not in one for one in scores.values()):
        return False
    output = row.get("output") or {}
    if not isinstance(output.get("completion", ""), str) or not isinstance(row["input"], str | list):
        return False
    parts = [row.get("metadata"), row.get("store"), output.get("metadata")]
    parts += [one.get("metadata") for one in scores.values()]
    return all(part is None or isinstance(part, dict) for part in parts)
