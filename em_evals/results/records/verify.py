"""The record of `em-evals verify`: each check of a card against plain transformers, PEFT and hooks."""

from __future__ import annotations

from typing import Literal

from em_evals.results.records.base import Record


class Check(Record):
    """One check."""

    name: str
    compared: str
    """What is compared with what."""
    largest: float | None
    """The largest deviation, in `unit`; null where nothing was compared."""
    tolerance: float | None
    unit: Literal["nats", "relative", "tokens", "tensors"]
    n: int
    """Number of compared values."""
    verdict: Literal["ok", "wrong", "skipped"]
    reason: str = ""


class Verification(Record):
    """A verdict: it holds for one base, dtype, device and set of versions."""

    kind: Literal["verify"] = "verify"
    version: Literal[1] = 1
    card: str
    card_digest: str
    base: str
    base_digest: str
    dtype: str
    device: str
    versions: dict[str, str]
    vllm: str | None = None
    date: str
    seconds: float
    verdict: Literal["ok", "wrong"]
    rule: str
    """How the tolerances were measured."""
    rows: list[Check]

    @property
    def provenance(self) -> dict[str, str]:
        """What a report lists of its source."""
        return {"model": self.card, "base": self.base, "date": self.date, "versions": _joined(self.versions)}


def _joined(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items() if name != "code")
