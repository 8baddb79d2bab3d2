"""Which model of a sweep is another's control, and which its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from em_evals.content import cards
from em_evals.content.sweep_plans import SweepPlan
from em_evals.sweep.models import SweepModel


@dataclass(frozen=True)
class Relatives:
    """Names of models by the names of those that they belong to.

    Attributes:
        controls: a model's matched control: of the card that is its card's control, with the same factors.
        bases: a model's base, where the plan has it as a model of its own.
    """

    controls: Mapping[str, str]
    bases: Mapping[str, str]


def of(plan: SweepPlan, models: Sequence[SweepModel]) -> Relatives:
    """Find controls and bases among a plan's models."""
    control_cards = dict(plan.controls)
    for card in dict.fromkeys(model.card for model in models if model.trained):
        organism = cards.read_card(card)[0].control_of
        if organism is not None:
            control_cards.setdefault(organism, card)
    by_kind = {(model.card, repr(sorted(model.factors.items()))): model.name for model in models}
    controls = {}
    for model in models:
        wanted = (control_cards.get(model.card, ""), repr(sorted(model.factors.items())))
        if wanted in by_kind:
            controls[model.name] = by_kind[wanted]
    bare = {
        model.base: model.name
        for model in models
        if not model.is_written and cards.resolve(model.card).adapter_path is None
    }
    bases = {
        model.name: bare[model.base] for model in models if bare.get(model.base, model.name) != model.name
    }
    return Relatives(controls, bases)
