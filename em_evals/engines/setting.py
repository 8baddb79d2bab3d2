"""In which dtype, on which device and under which libraries a card's base is computed in this process."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

from em_evals.content import identity
from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.engines.pool import choose
from em_evals.engines.vllm.package import installed
from em_evals.errors import EmEvalsError
from em_evals.models.bases import choose_device, choose_dtype
from em_evals.results import verified
from em_evals.results.verified import Setting

_LIBRARIES = ("torch", "transformers", "peft")


def setting_of(card: ModelCard) -> Setting:
    """Return what a verdict on a card's base holds for, here and now.

    Raises:
        EmEvalsError: its device does not exist here, or a file of its base cannot be read.
    """
    device = choose_device(card.engine.device)
    dtype = str(choose_dtype(card.engine.dtype, device)).removeprefix("torch.")
    versions = {name: _version(name) for name in _LIBRARIES} | verified.own_versions()
    digest = identity.base_digest(card.base, card.revision)
    attention = card.engine.attn_implementation or ""
    return Setting(card.base, digest, dtype, _named(device), attention, versions)


def verified_line(card: ResolvedCard) -> str:
    """Return a line of provenance for what a card's engine computes here; see `verified.line`."""
    kind, _ = choose(card.card)
    if kind == "server":
        return "not verified (a server computes it)"
    try:
        return verified.line(setting_of(card.card), card, (installed() or "") if kind == "vllm" else "")
    except EmEvalsError as error:
        return f"not verified ({error})"


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
