"""A model's identity as content digests: a base's configuration, weights and tokenizer, and an adapter's files.

A file is hashed once: its digest is cached by path, size, mtime and inode, in this process and, for large files, in
the user's cache. Files that do not change the model's answers (READMEs, training records) do not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.files import atomic, cache_folder, digest, is_folder, read_json, read_text

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files of an adapter's own chat template; it can also be in tokenizer_config.json (models/chat/own.py)."""
_ASKED_BY = ("chat_template", "bos_token", "eos_token")
"""Fields of an adapter's tokenizer_config.json that change the model's prompt."""
_BASE_FILES = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|.*\.safetensors(?:\.index\.json)?|merges\.txt|chat_template\.jinja|.*\.model|.*\.py"
)
_LARGE = 1 << 20
"""Files of at least this many bytes get an entry in the user's cache."""

_known: dict[str, str] = {}


def adapter_digest(folder: Path) -> str:
    """Return an adapter's digest: its configuration, weights and chat template, independent of its path.

    Raises:
        EmEvalsError: a file cannot be read.
    """
    parts = [file_digest(folder / name) for name in ADAPTER_FILES]
    return digest(*(*parts, _template(folder)))


def base_digest(base: str, revision: str | None) -> str:
    """Return a base's identity: a folder's content digest, or a hub id with its locally cached commit.

    Args:
        base: folder, hub id or `pypi:PACKAGE` (whose wheel is pinned).
        revision: of a hub id.
    """
    folder = Path(base).expanduser()
    if is_folder(folder):
        files = sorted(
            path for path in folder.iterdir() if path.is_file() and _BASE_FILES.fullmatch(path.name)
        )
        return digest(*(part for path in files for part in (path.name, file_digest(path))))
    return f"{base}@{commit(base, revision) or revision or ''}"


def commit(base: str, revision: str | None) -> str | None:
    """Return the locally cached commit of a hub id; None if nothing of it has been fetched yet."""
    folder = fetched(base, "config.json", revision)
    return folder.name if folder is not None else None


def fetched(name: str, file: str, revision: str | None) -> Path | None:
    """Return the local snapshot folder of a hub id if it holds `file`, without network access."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    Raises:
        EmEvalsError: the file cannot be read.
    """
    try:
        state = path.stat()
        key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
        if key not in _known:
            kept = _kept(key) if state.st_size >= _LARGE else None
            _known[key] = _remembered(kept, path) if kept is not None else _hashed(path)
        return _known[key]
    except OSError as error:
        raise EmEvalsError(f"cannot read this file ({error.strerror}).", path) from None


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(key: str) -> Path:
    return cache_folder() / "digests" / digest(key)


def _remembered(kept: Path, path: Path) -> str:
    """Return a large file's digest, from the user's cache if present."""
    if kept.is_file() and re.fullmatch(r"[0-9a-f]{64}", found := read_text(kept)):
        return found
    found = _hashed(path)
    try:
        with atomic(kept) as temporary:
            temporary.write_text(found, encoding="utf-8")
    except EmEvalsError:
        pass  # without a writable cache the digest is only recomputed next time
    return found


def _template(folder: Path) -> str:
    """Return an adapter's own chat template settings as text; empty if it has no template of its own."""
    own = {name: read_text(folder / name) for name in _TEMPLATES if (folder / name).is_file()}
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return json.dumps(own) if own else ""
    try:
        fields = read_json(settings)
        own |= {name: json.dumps(fields[name]) for name in _ASKED_BY if name in fields}
    except (EmEvalsError, TypeError):
        return read_text(settings)
    return json.dumps(own) if own.keys() - {"bos_token", "eos_token"} else ""
