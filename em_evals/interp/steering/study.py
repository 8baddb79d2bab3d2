"""A steering study as a record: the chosen layer, each condition's effect, and the direction against the other arms.

Numbers in, records out; steer.py measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.interp import effects
from em_evals.interp.effects import Effect, Outcome
from em_evals.interp.steering.halves import Halves
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import AblationPoint, SteeringContrast, SteeringPoint, SteeringStudy

Arm = Literal["direction", "random", "control"]


@dataclass(frozen=True)
class Settings:
    """What a study measures.

    Attributes:
        layers: decoder blocks to steer at; None: six, evenly spread.
        scales: in units of the direction's norm, or of the base's mean activation norm if `relative`.
        pairs: forced-choice pairs, the first `per_theme` of each theme (None: all).
        questions: a question set, its first `limit` questions (None: all), `draws` answers of `max_tokens` each.
        judge: Inspect's name of a model that grades the answers; None: coherence is not judged.
        seed: of the random direction and of the draws.
        judge_cache: whether grades of earlier runs are used and kept.
        nulls: draws of each null distribution (random of equal norm, covariance-matched, permuted labels); 0: none.
    """

    layers: tuple[int, ...] | None = None
    scales: tuple[float, ...] = (-2.0, 2.0)
    relative: bool = False
    pairs: str = "forced_choice"
    per_theme: int | None = 6
    questions: str = "core"
    limit: int | None = None
    draws: int = 1
    max_tokens: int = 60
    judge: str | None = None
    seed: int = 0
    judge_cache: bool = True
    nulls: int = 0


@dataclass(frozen=True)
class Push:
    """One condition of the grid: an arm added at a layer, or (layer None) ablated at all layers."""

    arm: Arm
    layer: int | None
    scale: float
    how: str
    intervention: Intervention


def study(
    card: ResolvedCard,
    direction: str,
    control: str | None,
    settings: Settings,
    pushes: Sequence[Push],
    outcomes: Sequence[Outcome],
    divided: Halves,
    layer: int,
    note: str,
) -> SteeringStudy:
    """Return the record of the reporting half; `outcomes` has the unsteered model first, then each push's."""
    judged = settings.judge is not None
    unsteered, steered = outcomes[0], outcomes[1:]
    on, asked = divided.reporting, [one.id for one in divided.reporting_questions]
    seen = [
        replace(effects.effect(one, unsteered, on, asked, judged), p=p)
        for one, p in zip(steered, effects.joint(steered, unsteered, on), strict=True)
    ]
    points, ablations = [], []
    for push, outcome, effect in zip(pushes, steered, seen, strict=True):
        values: dict[str, Any] = {
            "arm": push.arm,
            "in_domain": effect.in_domain,
            "out_of_domain": effect.out_of_domain,
            "coherence": _coherence(outcome, asked) if judged else effect.worse,
            "repetition": effects.measured(outcome.repetition[name] for name in asked),
            "damaged": effect.damaged,
            "em_rate": effects.em_rate(outcome, asked),
            "verdict": effect.verdict,
            "p": effect.p,
        }
        if push.layer is None:
            ablations.append(AblationPoint(how=push.how, **values))
        else:
            points.append(SteeringPoint(layer=push.layer, scale=push.scale, **values))
    return SteeringStudy(
        card=card.name,
        digest=card.digest,
        direction=direction,
        coherence_is="coherence by the judge, 0 to 100"
        if judged
        else "loss of the base on the answers minus that on the unsteered answers to the same questions, nats per "
        "token; not a judgement of coherence",
        chosen_layer=layer,
        points=points,
        ablations=ablations,
        contrasts=_contrasts(pushes, steered, divided, layer),
        damage_rule=effects.DAMAGE_RULE.format(coherence=effects.BY_JUDGE if judged else effects.BY_LOSS),
        unsteered_coherence=_coherence(unsteered, asked) if judged else None,
        unsteered_repetition=effects.measured(unsteered.repetition[name] for name in asked),
        notes=[note, *divided.notes],
        provenance=_provenance(settings, control),
    )


def _coherence(outcome: Outcome, questions: Sequence[str]) -> Measured:
    return effects.measured(100 - outcome.worse[name] for name in questions if name in outcome.worse)


def chosen(
    grid: Sequence[Push], outcomes: Sequence[Outcome], divided: Halves, settings: Settings
) -> tuple[int, str]:
    """Choose the layer whose margins follow the direction's scale most; return it with a sentence that says how."""
    questions = [one.id for one in divided.choosing_questions]
    by_layer: dict[int, list[tuple[float, Effect]]] = {}
    for push, outcome in zip(grid, outcomes[1:], strict=True):
        one = effects.effect(outcome, outcomes[0], divided.choosing, questions, settings.judge is not None)
        by_layer.setdefault(push.layer or 0, []).append((push.scale, one))
    slopes = {layer: effects.slope(points) for layer, points in by_layer.items()}
    usable = {layer: slope for layer, slope in slopes.items() if slope is not None}
    if not usable:
        first = next(iter(slopes))
        return first, f"every scale damages the answers at every layer: {first} is the first, not a choice."
    best = max(usable, key=lambda layer: usable[layer])
    return best, (
        f"layer {best}: there the margins follow the scale most ({usable[best]:+.4f} nats per token and unit of scale, "
        "both domains equally weighted, damaged conditions left out)."
    )


def _contrasts(
    pushes: Sequence[Push], steered: Sequence[Outcome], divided: Halves, layer: int
) -> list[SteeringContrast]:
    """Compare the direction with the other arms, at the chosen layer and where it is ablated."""
    found = {
        (push.arm, push.how): outcome
        for push, outcome in zip(pushes, steered, strict=True)
        if push.layer in (layer, None)
    }
    contrasts = []
    for (arm, how), outcome in found.items():
        if arm != "direction":
            domains = effects.by_domain(outcome.margins, found["direction", how].margins, divided.reporting)
            contrasts.append(
                SteeringContrast(against=arm, how=how, in_domain=domains[0], out_of_domain=domains[1])
            )
    return contrasts


def _provenance(settings: Settings, control: str | None) -> dict[str, str]:
    named = replace(settings, layers=None)
    told = {name: str(getattr(named, name)) for name in named.__dataclass_fields__ if name != "layers"}
    return {**told, "control_direction": str(control)}
