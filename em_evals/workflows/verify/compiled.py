"""Compiled models: what `em-evals compile` writes, loaded by stock transformers and PEFT, compared with manual hooks.

Always in float32, whatever the card's dtype: a compiled weight is rounded once more in that dtype, and hooks are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.compile import compile_card
from em_evals.workflows.verify.gaps import Rule, Spread
from em_evals.workflows.verify.plain import Asked, Scores, copy
from em_evals.workflows.verify.prompts import Prompts
from em_evals.workflows.verify.verdict import Row, failed, skipped

COMPARED = "hooks written from the op's definition; both sides in float32"
_TARGETS: tuple[Literal["lora", "checkpoint"], ...] = ("lora", "checkpoint")


@dataclass(frozen=True, eq=False)
class Compiling:
    """A compilation to verify.

    Attributes:
        name: the row's name.
        card: in float32.
        asked: rows to compute with the compiled model and with the hooks.
    """

    name: str
    card: ResolvedCard
    asked: tuple[Asked, ...]


def plan_of(card: ResolvedCard, prompts: Prompts, random: Path) -> Compiling | None:
    """Return the compilation of a card's interventions, or of a random direction at `site: writes` if it has none.

    Args:
        card: the card to verify.
        prompts: the model's rows.
        random: the file of a random direction; without it nothing can be compiled.
    """
    if card.interventions:
        return Compiling("compiled: the card", in_float32(card), _asked(prompts, card))
    if not random.is_file():
        return None
    layer = directions.read(random).layers // 2
    one = Intervention(op="ablate", direction=str(random), site="writes", from_layer=layer)
    fields = card.card.model_copy(update={"interventions": (one,)})
    made = in_float32(replace(card, card=fields, interventions=(one,), adapter_path=None))
    return Compiling("compiled: random `site: writes`", made, _asked(prompts, made))


def in_float32(card: ResolvedCard) -> ResolvedCard:
    """Return the card with its base in float32."""
    engine = card.card.engine.model_copy(update={"dtype": "float32"})
    return replace(card, card=card.card.model_copy(update={"engine": engine}))


def _asked(prompts: Prompts, card: ResolvedCard) -> tuple[Asked, ...]:
    texts = [(prompts.shared()[4], prompts.answers(8)[0]), (prompts.chats[1], prompts.answers(9)[0])]
    return tuple(
        Asked((*prompt, *answer), len(prompt), False, card.adapter_path, card.interventions, len(prompt))
        for prompt, answer in texts
    )


def row(plan: Compiling, hooks: Callable[[Asked], Scores], folder: Path) -> Row:
    """Compile a card and compare the result; as a LoRA where that is possible, else as a checkpoint.

    Args:
        plan: what to compile.
        hooks: returns the plain side's scores of a row, in float32.
        folder: an empty folder to write to.
    """
    reasons = []
    for target in _TARGETS:
        place = folder / target
        try:
            compile_card(plan.card, target, place)
            return _row(f"{plan.name}, as {target}", _gaps(plan, target, place, hooks))
        except EmEvalsError as error:
            reasons.append(f"{target}: {error}")
        except Exception as error:
            return failed(plan.name, COMPARED, error)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return skipped(plan.name, COMPARED, f"refused ({reasons[-1]})")


def _row(name: str, gaps: list[float]) -> Row:
    found, allowed = Spread.of(gaps), Rule("float32").tolerance()
    reason = allowed.problem(found)
    word: Any = "ok" if reason is None else "wrong"
    return Row(name, COMPARED, found.largest, allowed.largest, "nats", found.n, word, reason or "")


def _gaps(plan: Compiling, target: str, place: Path, hooks: Callable[[Asked], Scores]) -> list[float]:
    """Return differences of log-probabilities between the compiled model and the hooks."""
    card, source = plan.card.card, str(place) if target == "lora" else None
    if source is None:
        card = card.model_copy(update={"base": str(place), "revision": None})
    with copy(card, torch.float32) as plain:
        found = [plain.scores(Asked(one.tokens, one.first, one.drawn, source)) for one in plan.asked]
    return [
        a - b
        for one, own in zip(plan.asked, found, strict=True)
        for a, b in zip(own.given, hooks(one).given, strict=True)
    ]
