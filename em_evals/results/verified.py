"""Verdicts of `em-evals verify`, stored by the base's digest, and their one-line summary for logs and reports.

A verdict holds for one base (by content) in one dtype on one device, with these library versions and this version of
our code; if any of them changes, the base counts as not verified. A file holds one verdict per adapter and set of
interventions verified on the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from em_evals import __version__
from em_evals.content import identity
from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.files import atomic, cache_folder, digest

_MEASURING = ("models", "engines", "interp/extraction", "content/intervention.py", "content/directions.py")
"""The code whose numbers `verify` compares; changes elsewhere keep verdicts valid."""


@dataclass(frozen=True)
class Setting:
    """The setting in which a verdict holds.

    Attributes:
        base: the base's name in its card.
        digest: digest of the base's content.
        dtype: dtype of its weights, such as float32.
        device: kind and name, such as `cpu AVX2` or `cuda NVIDIA A100`.
        attention: the card's attention implementation; empty for the default.
        versions: versions of the libraries and of our code.
    """

    base: str
    digest: str
    dtype: str
    device: str
    attention: str
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        """The name of its file."""
        facts = [self.digest, self.dtype, self.device, self.attention, sorted(self.versions.items())]
        return digest(json.dumps(facts))


class Run(BaseModel):
    """One verdict.

    Attributes:
        card: the verified card.
        date: ISO, UTC.
        verdict: `ok`, or `wrong` if any check failed.
        wrong: names of the failed checks.
        largest: the largest deviation of a log-probability, in nats.
        tolerance: tolerance of the check with that deviation.
        vllm: the version of vLLM that was also compared; empty if none.
        rows: all checks, as `em-evals verify --json` prints them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    card: str
    date: str
    verdict: Literal["ok", "wrong"]
    wrong: tuple[str, ...] = ()
    largest: float
    tolerance: float
    vllm: str = ""
    rows: tuple[dict[str, Any], ...] = ()


class Kept(BaseModel):
    """A file of verdicts: the setting, and one run per variant (see `variant_of`) of the base."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    base: str
    digest: str
    dtype: str
    device: str
    attention: str = ""
    versions: dict[str, str]
    runs: dict[str, Run]


def folder() -> Path:
    """Return the folder of the stored verdicts."""
    return cache_folder() / "verified"


def keep(setting: Setting, card: ResolvedCard, run: Run) -> Path:
    """Add a verdict to its setting's file and return the file.

    Raises:
        EmEvalsError: the cache cannot be written to.
    """
    path = folder() / f"{setting.key}.json"
    before = _read(path)
    runs = {**(before.runs if before else {}), variant_of(card): run}
    kept = Kept(
        base=setting.base,
        digest=setting.digest,
        dtype=setting.dtype,
        device=setting.device,
        attention=setting.attention,
        versions=dict(setting.versions),
        runs=runs,
    )
    with atomic(path) as temporary:
        temporary.write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def everything() -> list[Kept]:
    """Return all verdicts on this machine, of all versions; damaged files are skipped."""
    found = [_read(path) for path in sorted(folder().glob("*.json"))] if folder().is_dir() else []
    return [kept for kept in found if kept is not None]


def variant_of(card: ResolvedCard) -> str:
    """Return a digest of what a card adds to its base: adapter and interventions, without sampling defaults."""
    plain = ModelCard(
        base=card.card.base,
        revision=card.card.revision,
        quantize=card.card.quantize,
        interventions=card.card.interventions,
    )
    return replace(card, card=plain).digest


def line(setting: Setting, card: ResolvedCard, vllm: str = "") -> str:
    """Return one line of provenance: whether a card is verified in a setting, when, with what, and how exactly.

    Args:
        setting: the setting in which the card runs.
        card: the card.
        vllm: the version of vLLM that generates; empty for transformers.
    """
    kept = _read(folder() / f"{setting.key}.json")
    if kept is None:
        return "not verified"
    own = kept.runs.get(variant_of(card))
    if own is not None:
        return _drawn(remark(kept, own), own, vllm)
    if bad := next((run for run in kept.runs.values() if run.verdict == "wrong"), None):
        return f"not verified; another card of its base: {remark(kept, bad)}"
    newest = max(kept.runs.values(), key=lambda run: run.date)
    return _drawn(f"base only ({newest.card}): {remark(kept, newest)}", newest, vllm)


def remark(kept: Kept, run: Run) -> str:
    """Format a verdict: date, versions, largest deviation."""
    versions = ", ".join(f"{name} {text}" for name, text in kept.versions.items() if name != "code")
    where = f"{run.date}, {kept.dtype} on {kept.device}, {versions}"
    if run.verdict == "wrong":
        return f"WRONG in {', '.join(run.wrong)} ({where})"
    return f"{where}, largest deviation {run.largest:.1e} nats (tolerance {run.tolerance:.1e})"


def own_versions() -> dict[str, str]:
    """Return the version of this package, and a digest of the code that a verdict covers."""
    return {"em-evals": __version__, "code": _code()}


def _drawn(text: str, run: Run, vllm: str) -> str:
    """Return the line for the generating engine: a verdict on transformers does not cover vLLM."""
    if not vllm or run.vllm == vllm:
        return text
    return f"not verified with vLLM {vllm} (`em-evals verify {run.card} -M backend=vllm`); with transformers: {text}"


@lru_cache(maxsize=1)
def _code() -> str:
    home = Path(__file__).parents[1]
    places = [home / name for name in _MEASURING]
    files = [
        file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]
    return digest(*(identity.file_digest(file) for file in files))


def _read(path: Path) -> Kept | None:
    try:
        return Kept.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
