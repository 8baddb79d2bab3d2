"""Adapters as folders: where one lies, and what it is called by its content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.models.lora import config as configs
from em_evals.models.lora.config import CONFIG
from em_evals.models.lora.tensors import WEIGHTS


def locate(adapter: str) -> Path:
    """The folder of an adapter; a hub id (`ORG/NAME`, or `ORG/NAME@REVISION`) is downloaded.

    Raises:
        EmEvalsError: it is not there, or its weights are pickled.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        folder = _download(adapter)
    if not (folder / CONFIG).is_file():
        raise EmEvalsError(f"{adapter} has no {CONFIG}: it is not the folder of a PEFT adapter.")
    if not (folder / WEIGHTS).is_file():
        raise EmEvalsError(f"{adapter} has no {WEIGHTS} (pickled weights are never read).")
    return folder


def digest(folder: Path) -> str:
    """Identify an adapter by its configuration and weights, wherever it lies; other files do not count.

    A file is read once as long as it is not written to.
    """
    sha = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        sha.update(_hashed(folder / name))
    return sha.hexdigest()[:16]


def rank(folder: Path) -> int:
    """The largest rank of an adapter's matrices."""
    return max(configs.read(folder).ranks)


def written(adapter: str) -> int:
    """When a folder's weights were written, in ns: a retrained adapter is another one. 0 for what is no folder."""
    file = Path(adapter).expanduser() / WEIGHTS
    return file.stat().st_mtime_ns if file.is_file() else 0


def _hashed(file: Path) -> bytes:
    try:
        state = file.stat()
        return _hash(str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise EmEvalsError(f"cannot read this file ({error.strerror}).", file) from None


@lru_cache(maxsize=4096)
def _hash(file: str, size: int, changed: int, number: int) -> bytes:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _download(adapter: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        name, _, revision = adapter.partition("@")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else error.__class__.__name__
        raise EmEvalsError(f"the adapter '{adapter}' cannot be fetched ({reason[:200]}).") from None
