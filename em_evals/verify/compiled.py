"""Compiled models: what `em-evals compile` writes, read by stock transformers and PEFT, beside hooks by hand.

Always in float32, whatever the card's dtype: a compiled weight is rounded to it once more, and hooks are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from em_evals.cards import ModelCard, ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.models.compile import compile_card
from em_evals.models.memory import release_gpu
from em_evals.verify.gaps import Rule, Spread
from em_evals.verify.plain import Asked, Plain, Scores
from em_evals.verify.plan import scored
from em_evals.verify.prompts import Prompts
from em_evals.verify.verdict import Row, failed, skipped

COMPARED = "hooks written from the op's definition; both sides in float32"
_TARGETS: tuple[Literal["lora", "checkpoint"], ...] = ("lora", "checkpoint")


def name_of(what: str) -> str:
    """The name of the row."""
    return f"compiled: {what}"


def in_float32(card: ResolvedCard) -> ResolvedCard:
    """The card with its base in float32."""
    engine = card.card.engine.model_copy(update={"dtype": "float32"})
    return replace(card, card=card.card.model_copy(update={"engine": engine}))


def rows_of(prompts: Prompts, card: ResolvedCard) -> list[Asked]:
    """What the compiled model and the hooks are asked."""
    texts = [(prompts.shared()[4], prompts.answers(8)[0]), (prompts.chats[1], prompts.answers(9)[0])]
    made = []
    for prompt, answer in texts:
        request = scored(prompt, answer)
        made.append(
            Asked(request.prompt, len(prompt), False, card.adapter_path, card.interventions, len(prompt))
        )
    return made


def row(
    card: ResolvedCard,
    asked: Sequence[Asked],
    hooks: Callable[[Asked], Scores],
    folder: Path,
    required: bool,
) -> Row:
    """Compile a card and compare what comes out; the LoRA where there can be one, else the checkpoint.

    Args:
        card: in float32.
        asked: rows of tokens.
        hooks: what the plain side says of a row, in float32.
        folder: an empty place to write to.
        required: the card is the user's: a form that fails is wrong, one that is refused is not.
    """
    name, reasons = name_of("card" if required else "random `site: writes`"), []
    for target in _TARGETS:
        place = folder / target
        try:
            compile_card(card, target, place)
        except EmEvalsError as error:
            reasons.append(f"{target}: {error}")
            continue
        except Exception as error:
            return failed(name, COMPARED, error)
        try:
            return _row(f"{name} as {target}", _gaps(card.card, target, place, asked, hooks))
        except Exception as error:
            return failed(name, COMPARED, error)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return skipped(name, COMPARED, f"refused ({reasons[-1]})")


def _row(name: str, gaps: list[float]) -> Row:
    found, allowed = Spread.of(gaps), Rule("float32").tolerance()
    reason = allowed.problem(found)
    word: Any = "ok" if reason is None else "wrong"
    return Row(name, COMPARED, found.largest, allowed.largest, "nats", found.n, word, reason or "")


def _gaps(
    card: ModelCard, target: str, place: Path, asked: Sequence[Asked], hooks: Callable[[Asked], Scores]
) -> list[float]:
    """Differences of log-probabilities between what was compiled and the hooks."""
    if target == "checkpoint":
        card = card.model_copy(update={"base": str(place), "revision": None})
    plain = Plain(card, torch.float32)
    source = str(place) if target == "lora" else None
    try:
        found = [plain.scores(Asked(one.tokens, one.first, one.drawn, source)) for one in asked]
    finally:
        del plain
        release_gpu()
    return [
        a - b
        for one, own in zip(asked, found, strict=True)
        for a, b in zip(own.given, hooks(one).given, strict=True)
    ]
