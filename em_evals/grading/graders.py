"""Which model grades: the role `grader` or a judge card's, never the model under test; and whether in batches."""

from __future__ import annotations

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import Model, get_model

from em_evals.content.judge_cards import JudgeCard
from em_evals.errors import EmEvalsError
from em_evals.inspect_errors import refusal

NO_JUDGE = (
    "no judge is given. Three ways on: name one with `--model-role grader=PROVIDER/MODEL`; collect answers now with "
    "`-T judge=none` and grade them later with `inspect score LOG --scorer em_evals/judge -S questions=NAME "
    "--model-role grader=PROVIDER/MODEL --action overwrite --overwrite`; or measure without a judge: "
    "`inspect eval em_evals/forced_choice`."
)
BATCH_PROVIDERS = ("anthropic", "google", "grok", "openai", "together")
"""Inspect's providers that use a batch API (inspect-ai 0.3.285); the others ignore `batch` and lift their limit of
connections to 10,000."""


def model_of(card: JudgeCard | None) -> Model:
    """Return the card's model, or that of the role `grader`; Inspect keeps one for equal arguments.

    Raises:
        PrerequisiteError: there is none, it cannot be made, or it is the model under test.
    """
    grader = _pinned(card) if card is not None else _role()
    own = getattr(grader.api, "card_digest", None)
    if own is not None and own == getattr(get_model().api, "card_digest", None):
        raise refusal(
            f"{grader} is the model under test, which cannot grade its own answers: name another judge."
        )
    return grader


def batch_of(model: Model, given: bool | int | None, card: JudgeCard | None) -> bool | int | None:
    """Return the setting `batch` of a judge's requests: the argument, else the card's; None leaves it to the model.

    Raises:
        EmEvalsError: the judge's provider has no batch API.
    """
    chosen = card.batch if given is None and card is not None else given
    wanted = model.config.batch if chosen is None else chosen
    provider = str(model).partition("/")[0]
    if wanted and provider not in BATCH_PROVIDERS:
        raise EmEvalsError(
            f"the judge {model} cannot be asked in batches: Inspect has no batch API for {provider} (it has for "
            f"{', '.join(BATCH_PROVIDERS)}); leave `batch` out."
        )
    return chosen


def _pinned(card: JudgeCard) -> Model:
    try:
        return get_model(card.model, base_url=card.base_url, **card.arguments)
    except (PrerequisiteError, ValueError) as error:
        raise refusal(f"the judge {card.name} cannot be asked: {getattr(error, 'message', error)}") from None


def _role() -> Model:
    try:
        return get_model(role="grader", required=True)
    except PrerequisiteError:
        raise refusal(NO_JUDGE) from None
