"""Arguments of the tasks: texts from the command line, the judge, and what a log's header says of the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from em_evals.content import judge_cards
from em_evals.errors import EmEvalsError
from em_evals.inspect_errors import refusal

if TYPE_CHECKING:
    from inspect_ai.model import Model


def text(name: str, value: Any) -> str | None:
    """Return a text from the command line; Inspect parses it as YAML and then splits it at commas.

    Raises:
        PrerequisiteError: YAML parsed it as another type.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if value is None or isinstance(value, str):
        return value
    raise refusal(f"-T {name}= was read as YAML ({value!r}): quote it twice, -T '{name}=\"…\"'.")


def count(name: str, value: Any) -> int:
    """Return a number of things from the command line.

    Raises:
        PrerequisiteError: it is not a whole number from 1 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refusal(f"-T {name}={value}: expected a whole number from 1 on.")
    return value


_MAKERS = ("inspect_ai._eval.loader", "inspect_ai._eval.eval")
"""Modules in which Inspect makes tasks for a model; the decorator `task` is in another."""


def _tested() -> Model | None:
    """Return the model for which Inspect makes a task; None for a task that the user makes, to evaluate it later.

    `eval_set` leaves its last model active (inspect-ai 0.3.285, findings/inspect_eval_set_leaves_its_model.sh): a task
    that is made afterwards would be given its digest, and be refused for its lack of a judge.
    """
    from inspect_ai.model._model import active_model

    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") not in _MAKERS:
        frame = frame.f_back  # type: ignore[assignment]
    return active_model() if frame is not None else None


def graded(judge: str, without: str) -> bool:
    """Return whether a judge grades the answers.

    It reports a missing judge before hours of sampling, not after, and only if a model is running the task.

    Args:
        judge: the tasks' argument.
        without: the error sentence if a judge is needed but not named.
    """
    from inspect_ai.model._model import model_roles

    if judge not in ("grader", "none"):
        try:
            judge_cards.load(judge)
        except EmEvalsError as error:
            raise refusal(
                error
                if error.path
                else f"-T judge={judge}: use `grader`, `none` or a judge card; {error.what}"
            ) from None
        return True
    if judge == "grader" and _tested() is not None and "grader" not in model_roles():
        raise refusal(without)
    return judge == "grader"


def judge_card(judge: str) -> str | None:
    """Return the judge card that a task's `judge` names."""
    return None if judge in ("grader", "none") else judge


def asking(thinking: Any, template: Any) -> dict[str, Any]:
    """Return the card fields that a task sets for its draws: `thinking` and `template`; empty where it sets none.

    Raises:
        PrerequisiteError: a value is wrong, or the model under test is no `local/` model.
    """
    thinking = thinking if isinstance(thinking, bool) else text("thinking", thinking)
    fields = {name: v for name, v in (("thinking", thinking), ("template", template)) if v is not None}
    model = _tested() if fields else None
    if model is None:
        return fields
    card = getattr(model.api, "card", None)
    if card is None:
        raise refusal(
            f"-T {next(iter(fields))}= is for local/ models, and this is {model}: say --reasoning-effort or "
            "--reasoning-tokens instead."
        )
    try:
        card.asked(**fields)
    except EmEvalsError as error:
        raise refusal(f"-T {error}") from None
    return fields


def measured(asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return header metadata that identifies the local model, and set its number of connections.

    Inspect otherwise increases connections slowly from a few, as for a rate-limited API. The configuration is copied,
    because all models of an eval share one.

    Args:
        asked: card fields that the task sets (`asking`).
    """
    model = _tested()
    digest = getattr(model.api, "card_digest", None) if model is not None else None
    if model is None or digest is None:
        return {}
    told: dict[str, Any] = {}
    if asked:
        card = getattr(model.api, "card")  # noqa: B009 - another API has none, and `asking` refused that
        digest, told = card.asked(**asked).digest, {"asked": dict(asked)}
    if model.config.max_connections is None and model.config.adaptive_connections is None:
        model.config = model.config.model_copy(update={"max_connections": model.api.max_connections()})
    return {"card_digest": digest} | told
