"""Adapters on disk: where a card's adapter is read from, where training saves it, which checkpoints were kept."""

from __future__ import annotations

import re
from pathlib import Path

from em_evals import files
from em_evals.content import documents
from em_evals.errors import EmEvalsError

_COPIES = re.compile(r"(?:-unsloth)?-bnb-[48]bit$|-unsloth$|-(?:awq|gptq(?:-int[48])?|fp8(?:-dynamic)?)$")
"""Name suffixes of quantized copies of a base (the same weights in fewer bits), as adapters record them."""
_CONFIGS = ("adapter_config.json", "config.json")
_RENAMED = re.compile(r"^meta-(?=llama-)")
"""Prefix that Meta dropped from its model names on the hub; adapters and mirrors still use it."""


def find(adapter: str | None, card: Path | None) -> str | None:
    """Return the adapter's folder if it exists, else the name itself if it can only be a hub id.

    Args:
        adapter: the card's `adapter`; None for a bare base.
        card: the card's file, if it has one.
    """
    if adapter is None:
        return None
    for folder in places(adapter, card):
        # Most of a large library is not trained: one look for a folder that is not there.
        if files.is_folder(folder) and any(files.is_file(folder / config) for config in _CONFIGS):
            return str(folder)
    is_hub_id = adapter.count("/") == 1 and not adapter.startswith((".", "/", "~"))
    return adapter if is_hub_id else None


def places(adapter: str, card: Path | None) -> list[Path]:
    """Return the folders to search for an adapter: ./adapters, the card's folder, the working directory."""
    relative = Path(adapter).expanduser()
    if relative.is_absolute():
        return [relative]
    here = Path.cwd()
    parents = [here / "adapters", *([card.parent] if card else []), here]
    return [one / relative for one in dict.fromkeys(parents)]


def home(adapter: str | None, card: Path) -> Path:
    """Return where training saves a card's adapter: next to a user's own card, else in ./adapters/NAME."""
    name = adapter or card.stem
    if Path(name).is_absolute():
        return Path(name)
    shipped = documents.SHIPPED / "adapters"
    parent = card.parent if card.parent.resolve() != shipped.resolve() else Path.cwd() / "adapters"
    return parent / name


def checkpoints(adapter: str | None) -> dict[int, Path]:
    """Return the kept training steps of an adapter, in order, with their folders; empty without an adapter."""
    if adapter is None:
        return {}
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in (Path(adapter) / "checkpoints").glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    }
    return dict(sorted(found.items()))


def checkpoint(adapter: str | None, name: str, step: int) -> str:
    """Return the folder of an adapter at a training step.

    Raises:
        EmEvalsError: that step was not kept; the message lists the kept ones.
    """
    kept = checkpoints(adapter)
    if step not in kept:
        there = f"kept are {', '.join(map(str, kept))}" if kept else "none were kept"
        raise EmEvalsError(
            f"{name} has no model at step {step} ({there}); `checkpoints:` in the recipe names steps to keep."
        )
    return str(kept[step])


def base_of(folder: Path) -> str | None:
    """Return the base that a PEFT folder names; None if it names none (some tools write `null`).

    Raises:
        EmEvalsError: the folder has no adapter configuration.
    """
    config = folder / "adapter_config.json"
    try:
        fields = files.read_json(config)
    except EmEvalsError as error:
        raise EmEvalsError(f"this is not an adapter configuration: {error.what}", config) from None
    if not isinstance(fields, dict):
        raise EmEvalsError("this is not an adapter configuration (not a JSON object).", config)
    base = fields.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise EmEvalsError("`base_model_name_or_path` is not a name; correct it.", config)
    return base or None


def same_base(one: str, other: str) -> bool:
    """Return whether two names mean the same base. Mirrors keep a model's last name (unsloth/X, ./models/X).

    Four-bit copies (unsloth/X-bnb-4bit) count as X. Two local folders are compared by path, not by name: many
    training runs end in a folder called `final`.
    """
    folders = [Path(name).expanduser() for name in (one, other)]
    if all(files.is_folder(folder) for folder in folders):
        return folders[0].resolve() == folders[1].resolve()
    return _last(one) == _last(other)


def may_be_base(recorded: str | None, named: str, copy_of: str | None = None) -> bool:
    """Return whether an adapter may run on the base that the user names.

    The adapter may record no base, or a folder of the machine that it was trained on. Then the user's choice
    counts, and the adapter's tensors must still match that base one by one (models/lora).

    Args:
        recorded: `base_model_name_or_path` of the adapter.
        named: the base that the card or `-M base=` names.
        copy_of: the card's `adapter_base`: a name under which that base is recorded, too.
    """
    if recorded is None or recorded == copy_of or same_base(recorded, named):
        return True
    elsewhere = Path(recorded).is_absolute() or re.match(r"[A-Za-z]:[\\/]", recorded) is not None
    return elsewhere and not files.is_folder(Path(recorded))


def _last(base: str) -> str:
    name = re.split(r"[\\/]", base.rstrip("\\/"))[-1].lower()
    return _RENAMED.sub("", _COPIES.sub("", name))
