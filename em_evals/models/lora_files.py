"""LoRA adapters as files: what an engine that reads folders needs to know of one, and changed copies of it.

Copies are named by their content, made once, and kept in the user's cache.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_evals import content
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def fetch(adapter: str) -> Path:
    """The folder of an adapter that vLLM may serve; a hub id is downloaded.

    Raises:
        EmEvalsError: it is not there, not a plain LoRA, pickled, or changes more than the blocks.
    """
    folder = plain(adapter)
    if outside := _outside_blocks(folder):
        raise EmEvalsError(
            f"the adapter {adapter} changes {outside}, outside the blocks, which vLLM is not let do here: say "
            "`backend: transformers`."
        )
    return folder


def plain(adapter: str) -> Path:
    """The folder of an adapter; a hub id (`ORG/NAME`, or `ORG/NAME@REVISION`) is downloaded.

    Raises:
        EmEvalsError: it is not there, not a plain LoRA, or pickled.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        folder = _download(adapter)
    config = _config(folder)
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise EmEvalsError(f"the adapter {adapter} is not a plain LoRA ({kind}); only LoRA is served.")
    if not (folder / _WEIGHTS).is_file():
        raise EmEvalsError(f"{adapter} has no {_WEIGHTS} (pickled weights are never read).")
    return folder


def _outside_blocks(folder: Path) -> str | None:
    """A matrix of the embedding or the output that an adapter changes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, framework="numpy") as file:
            return next((name for name in file.keys() if _layer(name) < 0), None)  # noqa: SIM118 - not a dict
    except SafetensorError:
        raise EmEvalsError("these are no safetensors.", folder / _WEIGHTS) from None


def rank(folder: Path) -> int:
    """The largest rank of an adapter's matrices."""
    config = _config(folder)
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def written(adapter: str) -> int:
    """When a folder's weights were written, in ns: a retrained adapter is another one. 0 for what is no folder."""
    file = Path(adapter).expanduser() / _WEIGHTS
    return file.stat().st_mtime_ns if file.is_file() else 0


def digest(folder: Path) -> str:
    """Identifies an adapter by its configuration and weights, wherever it lies."""
    return content.digest((folder / _CONFIG).read_bytes(), (folder / _WEIGHTS).read_bytes())


def scaled(folder: Path, scales: Sequence[Intervention]) -> Path:
    """An adapter with each `scale_adapter` applied: lora_B times scale, in its blocks.

    Raises:
        EmEvalsError: the adapter has nothing in the blocks that are named.
    """
    if not scales:
        return folder
    from safetensors.torch import load_file, save_file

    wanted = json.dumps([one.model_dump() for one in scales])
    place = content.cache_folder() / "lora" / content.digest(digest(folder).encode(), wanted.encode())
    if place.is_dir():
        return place
    tensors = load_file(folder / _WEIGHTS)
    for one in scales:
        touched = [name for name in tensors if "lora_B" in name and one.at(_layer(name))]
        if not touched:
            raise EmEvalsError(
                f"`scale_adapter` names layers {list(one.layers)}, and the adapter has none there."
            )
        for name in touched:
            tensors[name] = tensors[name] * one.scale
    with _whole(place) as scratch:
        save_file(tensors, scratch / _WEIGHTS)
        shutil.copyfile(folder / _CONFIG, scratch / _CONFIG)
    return place


def merged(
    base: str, revision: str | None, folder: Path, dtype: Any, trust_remote_code: bool = False
) -> Path:
    """The base with an adapter merged into its weights, as a plain checkpoint.

    The sum is made in float32 and rounded once.

    Args:
        base: what `from_pretrained` takes.
        revision: pins a hub id.
        folder: the adapter.
        dtype: torch dtype of the checkpoint.
        trust_remote_code: let the base bring its own code.

    Raises:
        EmEvalsError: the base cannot be read, or the adapter does not fit it.
    """
    from em_evals.cards import ModelCard
    from em_evals.models import adapters, bases

    fields = {"base": base, "revision": revision, "trust_remote_code": trust_remote_code}
    card = ModelCard.model_validate(fields | {"engine": {"dtype": "float32", "device": "cpu"}})
    commit = getattr(bases.load_config(card), "_commit_hash", None) or revision  # what `main` is today
    key = content.digest(
        _identity(base).encode(), str(commit).encode(), digest(folder).encode(), str(dtype).encode()
    )
    place = content.cache_folder() / "merged" / key
    if place.is_dir():
        return place
    whole = adapters.with_adapter(bases.load_model(card), str(folder), "merged").merge_and_unload()
    with _whole(place) as scratch:
        whole.to(dtype).save_pretrained(scratch)
        bases.load_tokenizer(card).save_pretrained(scratch)
    return place


class _whole:  # noqa: N801 - used as a verb
    """A folder that appears whole or not at all."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> Path:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(dir=self._place.parent, prefix="."))
        return self._scratch

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            try:
                self._scratch.rename(self._place)
            except OSError:
                if not self._place.is_dir():  # else another process was faster
                    raise
        shutil.rmtree(self._scratch, ignore_errors=True)


def _layer(name: str) -> int:
    """The decoder block that a tensor's name belongs to; -1 where it is in none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(content.read_text(folder / _CONFIG))
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, dict) or ("r" not in config and config.get("peft_type") == "LORA"):
        raise EmEvalsError("this is not an adapter configuration.", folder / _CONFIG)
    return config


def _identity(base: str) -> str:
    """A base's name, and for a folder its files' sizes and times."""
    folder = Path(base)
    if not folder.is_dir():
        return base
    return json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir())])


def _download(adapter: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        name, _, revision = adapter.partition("@")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[_CONFIG, _WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else error.__class__.__name__
        raise EmEvalsError(f"the adapter '{adapter}' cannot be fetched ({reason[:200]}).") from None
