"""Adapter folders: where an adapter is stored, and what can be read from it without a base."""

from __future__ import annotations

from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.models import hub
from em_evals.models.lora import config as configs
from em_evals.models.lora.config import CONFIG
from em_evals.models.lora.tensors import WEIGHTS

TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
"""Files that can hold an adapter's own chat template."""


def locate(adapter: str) -> Path:
    """Return the folder of an adapter; a hub id (`ORG/NAME`, or `ORG/NAME@REVISION`) is downloaded.

    Raises:
        EmEvalsError: it does not exist, or its weights are pickled.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        folder = hub.folder(adapter, (CONFIG, WEIGHTS, *TEMPLATES), "the adapter")
    if not (folder / CONFIG).is_file():
        raise EmEvalsError(f"{adapter} has no {CONFIG}: it is not the folder of a PEFT adapter.")
    if not (folder / WEIGHTS).is_file():
        raise EmEvalsError(f"{adapter} has no {WEIGHTS} (pickled weights are never read).")
    return folder


def rank(folder: Path) -> int:
    """Return the largest rank of an adapter's matrices."""
    return max(configs.read(folder).ranks)


def written(adapter: str) -> int:
    """Return when a folder's adapter was written, in ns (a retrained adapter is another one); 0 for a hub id."""
    files = [Path(adapter).expanduser() / name for name in (CONFIG, WEIGHTS)]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)
