"""Adapters for vLLM, which loads folders: copies with the names and the scaling that it expects, and checkpoints.

vLLM silently ignores tensors for which it finds no module: so the names are those of the class that it loads, and
what it cannot run is refused by name. Copies are named by their content, made once, and kept in the user's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from em_evals import files
from em_evals.content import identity
from em_evals.content.cards import ModelCard
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models import bases, families
from em_evals.models.lora import folders, matching, skeleton, tensors
from em_evals.models.lora.config import CONFIG
from em_evals.models.lora.fit import Fit, Piece
from em_evals.models.lora.merging import merge
from em_evals.models.lora.tensors import WEIGHTS

_OTHERWISE = "say `backend: transformers`, or compile the card into a checkpoint (`em-evals compile`)"


@dataclass(frozen=True)
class Served:
    """An adapter that vLLM may serve.

    Attributes:
        folder: its files.
        rank: the largest rank of its matrices.
    """

    folder: Path
    rank: int


def served(adapter: str, card: ModelCard, scales: Sequence[Intervention] = ()) -> Served:
    """Return an adapter in vLLM's form, with each `scale_adapter` applied; no weight of the base is loaded.

    Args:
        adapter: its folder or hub id.
        card: names the base and how it is loaded.
        scales: each `scale_adapter`.

    Raises:
        EmEvalsError: it does not fit the base exactly, or does what vLLM cannot.
    """
    folder = folders.locate(adapter)
    fit = matching.match(folder, skeleton.of_config(bases.load_config(card), named_class=True))
    _refuse(fit, adapter, card)
    factors = fit.factors(scales)
    key = json.dumps([_name(fit, piece) for piece in fit.pieces] + sorted(factors.items()))
    place = (
        files.cache_folder() / "lora" / files.digest(identity.adapter_digest(folder).encode(), key.encode())
    )
    rank = max(piece.rank for piece in fit.pieces)
    if not place.is_dir():
        with _new(place) as scratch:
            _write(fit, factors, rank, scratch)
    return Served(place, rank)


@contextmanager
def _new(place: Path) -> Iterator[Path]:
    """Create a folder atomically; one of the same content that another process made is used instead."""
    try:
        with files.atomic_folder(place) as scratch:
            yield scratch
    except EmEvalsError:
        if not place.is_dir():
            raise


def _refuse(fit: Fit, adapter: str, card: ModelCard) -> None:
    """Refuse what vLLM ignores or crashes on."""
    known = families.FAMILIES.get(fit.skeleton.model_type)
    if known and known.vllm and not known.vllm.lora:
        raise EmEvalsError(f"vLLM runs no adapters on {fit.skeleton.model_type} ({adapter}): {_OTHERWISE}.")
    if fit.config.converted:
        raise EmEvalsError(
            f"vLLM does not run `init_lora_weights: {fit.config.converted}` ({adapter}), which changes the base: "
            f"{_OTHERWISE}."
        )
    for piece in fit.pieces:
        if not piece.plain and piece.what != "copy":
            raise EmEvalsError(f"vLLM does not run {piece.words} ({adapter}): {_OTHERWISE}.")
        if fit.skeleton.block(piece.module) is None and piece.what != "copy":
            raise EmEvalsError(
                f"the adapter {adapter} changes {piece.module}, outside the blocks, which is not supported on vLLM: "
                f"{_OTHERWISE}."
            )
        if fit.skeleton.sees_part(piece.module):
            raise EmEvalsError(f"vLLM does not run {piece.words}, an expert ({adapter}): {_OTHERWISE}.")
    if fit.skeleton.has_experts and bases.choose_device(card.engine.device).type == "cpu":
        raise EmEvalsError(
            f"on a CPU, vLLM runs no LoRA on models with experts ({fit.skeleton.model_type}): {_OTHERWISE}."
        )


def _name(fit: Fit, piece: Piece) -> str:
    """Return vLLM's name of a module: that of its class in transformers."""
    return f"base_model.model.{piece.module}"


def _write(fit: Fit, factors: dict[str, float], rank: int, folder: Path) -> None:
    """Write a plain LoRA of one rank with the scaling in B, so that vLLM needs no other field of the configuration."""
    from safetensors.torch import save_file

    pieces = [piece for piece in fit.pieces if piece.plain]
    values = tensors.load(fit.folder / WEIGHTS, [key for piece in pieces for key in piece.keys.values()])
    written: dict[str, torch.Tensor] = {}
    for piece in pieces:
        a, b = (values[piece.keys[part]] for part in ("A", "B"))
        scaled = b.float() * (piece.scaling * factors.get(piece.module, 1.0))
        missing = rank - piece.rank
        written[f"{_name(fit, piece)}.lora_A.weight"] = torch.nn.functional.pad(a.float(), (0, 0, 0, missing))
        written[f"{_name(fit, piece)}.lora_B.weight"] = torch.nn.functional.pad(scaled, (0, missing))
    save_file({name: value.contiguous() for name, value in written.items()}, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": fit.config.base_model_name_or_path,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [piece.module for piece in pieces],
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merged(card: ModelCard, folder: Path, dtype: torch.dtype) -> Path:
    """Return the base with an adapter merged into its weights, as a plain checkpoint; the sum is rounded once.

    Args:
        card: names the base.
        folder: the adapter.
        dtype: of the checkpoint.

    Raises:
        EmEvalsError: the base cannot be read, or the adapter does not fit it.
    """
    options = {"dtype": "float32", "device": "cpu"}
    exact = card.model_copy(update={"engine": card.engine.model_copy(update=options)})
    config = bases.load_config(card)
    commit = getattr(config, "_commit_hash", None) or card.revision  # the commit that `main` is today
    key = files.digest(
        identity.base_digest(card.base, card.revision).encode(),
        str(commit).encode(),
        identity.adapter_digest(folder).encode(),
        str(dtype).encode(),
    )
    place = files.cache_folder() / "merged" / key
    if not place.is_dir():
        whole = merge(bases.load_model(exact), str(folder))
        with _new(place) as scratch:
            whole.to(dtype).save_pretrained(scratch)
            bases.load_tokenizer(card).save_pretrained(scratch)
    return place
