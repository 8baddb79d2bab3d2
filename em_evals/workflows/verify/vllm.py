"""vLLM, where it would draw for a card here: its draws are compared with the plain side's, like the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from em_evals.content.cards import ResolvedCard
from em_evals.engines.pool import choose
from em_evals.engines.vllm.package import installed
from em_evals.errors import EmEvalsError
from em_evals.workflows.verify.asking import CheckResult, ask
from em_evals.workflows.verify.plan import Check

_PREFIX = "vllm, "
_ASKED = ("engine: batched, other lengths", "engine: shared beginning", "engine: scored text")
"""Checks of the base that vLLM gets too, with every check of adapter and interventions."""


def wanted(card: ResolvedCard) -> tuple[str, str]:
    """Return the version of vLLM that draws for a card here, or why it does not.

    Raises:
        EmEvalsError: the card names an engine that cannot be used here.
    """
    kind, reason = choose(card.card)
    return (installed() or "", "") if kind == "vllm" else ("", reason)


def results(card: ResolvedCard, checks: Sequence[Check]) -> list[CheckResult]:
    """Run checks on a vLLM server of our own."""
    from em_evals.engines.vllm.engine import VLLMEngine

    chosen = [check for check in checks if not check.name.startswith("engine") or check.name in _ASKED]
    asked = [replace(check, name=_PREFIX + check.name) for check in chosen]
    engine = VLLMEngine(card.card.model_copy(update={"backend": "vllm"}))
    try:
        usable = []
        found = []
        for check in asked:
            try:
                for request in check.requests:
                    engine.reserve(request.adapter, request.interventions)
                usable.append(check)
            except EmEvalsError as error:  # refused before the server starts
                found.append(CheckResult(replace(check, own=False), error=error))
        return found + [ask(engine, check) for check in usable]
    finally:
        engine.close()
