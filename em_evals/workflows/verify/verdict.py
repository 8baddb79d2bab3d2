"""The result of `verify`: a row for each check, and the verdict on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from em_evals import files
from em_evals.results.verified import Run, Setting

Word = Literal["ok", "wrong", "skipped"]
Unit = Literal["nats", "relative", "tokens", "tensors"]


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        name: for example `engine: alone`.
        compared: what is compared with what.
        largest: the largest deviation; None where nothing was compared.
        tolerance: of `largest`, in the same unit.
        unit: `nats`, differences of log-probabilities; `relative`, a difference's norm over the plain one's; `tokens`
            and `tensors`, how many differ.
        n: number of compared values.
        verdict: `ok`, `wrong`, or `skipped` where the check cannot be made or proves nothing here.
        reason: why it is skipped or wrong, or what it does not cover.
    """

    name: str
    compared: str
    largest: float | None
    tolerance: float | None
    unit: Unit
    n: int
    verdict: Word
    reason: str = ""


def skipped(name: str, compared: str, reason: str, unit: Unit = "nats") -> Row:
    """Return the row of a check that was not made."""
    return Row(name, compared, None, None, unit, 0, "skipped", reason)


def failed(name: str, compared: str, error: Exception, unit: Unit = "nats") -> Row:
    """Return the row of a check that ended in an error, so that nothing was proved."""
    return Row(name, compared, None, None, unit, 0, "wrong", f"failed: {sentence(error)}")


def sentence(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclass(frozen=True)
class Verdict:
    """All checks of a card.

    Attributes:
        card: its name.
        card_digest: the digest of its contents.
        setting: base, dtype, device and versions that were verified.
        rule: how the tolerances were measured, in words.
        vllm: the version of vLLM that was compared; empty where none was.
        date: ISO, UTC.
        seconds: the duration.
        rows: the checks, in order.
    """

    card: str
    card_digest: str
    setting: Setting
    rule: str
    vllm: str
    date: str
    seconds: float
    rows: Sequence[Row]

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(row.name for row in self.rows if row.verdict == "wrong")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and something was compared."""
        return not self.wrong and any(row.verdict == "ok" for row in self.rows)

    def run(self) -> Run:
        """Return the short form that is stored with the base's digest: the deviation closest to its tolerance."""
        compared = [
            row for row in self.rows if row.unit == "nats" and row.largest is not None and row.tolerance
        ]
        worst = max(compared, key=lambda row: _share(row), default=None)
        return Run(
            card=self.card,
            date=self.date,
            verdict="ok" if self.ok else "wrong",
            wrong=self.wrong,
            largest=worst.largest or 0.0 if worst else 0.0,
            tolerance=worst.tolerance or 0.0 if worst else 0.0,
            vllm=self.vllm,
            rows=tuple(self.as_json()["rows"]),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record (results/records/verify.py) as JSON values; deviations that are NaN become null."""
        made: dict[str, Any] = files.without_nan(
            {
                "kind": "verify",
                "version": 1,
                "card": self.card,
                "card_digest": self.card_digest,
                "base": self.setting.base,
                "base_digest": self.setting.digest,
                "dtype": self.setting.dtype,
                "device": self.setting.device,
                "versions": dict(self.setting.versions),
                "vllm": self.vllm or None,
                "date": self.date,
                "seconds": round(self.seconds, 1),
                "verdict": "ok" if self.ok else "wrong",
                "rule": self.rule,
                "rows": [asdict(row) for row in self.rows],
            }
        )
        return made


def _share(row: Row) -> float:
    found = (row.largest or 0.0) / (row.tolerance or 1.0)
    return math.inf if math.isnan(found) else found
