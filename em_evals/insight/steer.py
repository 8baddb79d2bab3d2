"""`em-evals steer CARD`: push a direction up and down and take it out, beside a random one and the control's.

Layers x scales x arms, weighed by forced choice and by freeform answers, all conditions in one queue of the engine. The
layer is chosen on one half of pairs and questions (where the direction's own arm alone is measured), everything is
reported on the other (split.py). What counts as damage is effects.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from em_evals import content
from em_evals.cards import ResolvedCard, resolve
from em_evals.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.grading.forced_choice import Pair, load_pairs
from em_evals.insight import effects
from em_evals.insight.answers import Answer, Asking, base_losses, drawn, repetition
from em_evals.insight.arms import as_long_as, random_like, read_for, stored
from em_evals.insight.effects import Effect, Outcome
from em_evals.insight.finished import Finished
from em_evals.insight.judged import grades
from em_evals.insight.split import Halves, found_on, halves
from em_evals.insight.weighing import Condition, margins
from em_evals.intervention import Intervention
from em_evals.questions import Question, load_questions
from em_evals.records import AblationPoint, Measured, SteeringContrast, SteeringPoint, SteeringStudy

Arm = Literal["direction", "random", "control"]

_ABLATIONS: dict[str, dict[str, str]] = {
    "ablated at all layers, mean, first token spared": {"reference": "mean", "skip": "sink"},
    "ablated at all layers, zero": {"reference": "zero"},
}


@dataclass(frozen=True)
class Settings:
    """What a study measures.

    Attributes:
        layers: decoder blocks to push at; None: six, evenly spread.
        scales: in lengths of the direction, or of the base's mean activation if `relative`.
        pairs: forced-choice pairs, the first `per_theme` of each theme (None: all).
        questions: a question set, its first `limit` questions (None: all), `draws` answers of `max_tokens` each.
        judge: Inspect's name of a model that grades the answers; None: no judgement of coherence.
        seed: of the random direction and of the draws.
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


@dataclass(frozen=True)
class Push:
    """One condition of the grid: an arm pushed at a layer, or (layer None) taken out everywhere."""

    arm: Arm
    layer: int | None
    scale: float
    how: str
    intervention: Intervention


def steer(
    name: str, direction: str, control: str | None, settings: Settings, output: Path, logs: Path
) -> SteeringStudy:
    """Run a study, or what an interrupted run of it left to do.

    Args:
        name: the card to steer.
        direction: a direction's name or file.
        control: the control organism's direction; None: no such arm.
        settings: what to measure.
        output: the study's file; conditions that are finished, and the random direction, are kept in `OUTPUT.parts`.
        logs: where the judge's log goes.

    Raises:
        EmEvalsError: no such card or direction, another base, a layer that there is not, too few pairs.
    """
    card = resolve(name)
    arms = _arms(card, direction, control, settings.seed)
    parts = output.with_name(f"{output.name}.parts")
    pushes = _pushes(arms, settings, parts)
    divided = halves(
        load_pairs(settings.pairs),
        settings.per_theme,
        load_questions(settings.questions).questions,
        settings.limit,
        found_on(*arms.values()),
    )
    finished = Finished(parts / "finished.jsonl")

    def measure(
        some: Sequence[Push], pairs: Sequence[Pair], questions: tuple[Question, ...]
    ) -> list[Outcome]:
        conditions = [Condition.of(card), *(Condition.of(card, push.intervention) for push in some)]
        return _outcomes(card, conditions, pairs, questions, settings, finished, logs)

    grid = [push for push in pushes if push.arm == "direction" and push.layer is not None]
    chosen = _chosen(grid, measure(grid, divided.choosing, divided.choosing_questions), divided, settings)
    outcomes = measure(pushes, divided.reporting, divided.reporting_questions)
    return _study(card, direction, control, settings, pushes, outcomes, divided, *chosen)


def _arms(card: ResolvedCard, direction: str, control: str | None, seed: int) -> dict[Arm, Direction]:
    main = read_for(direction, card)
    arms: dict[Arm, Direction] = {"direction": main, "random": random_like(main, seed)}
    if control is not None:
        arms["control"] = as_long_as(read_for(control, card), main)
    return arms


def _pushes(arms: dict[Arm, Direction], settings: Settings, parts: Path) -> list[Push]:
    """Every condition but the unsteered one."""
    depth = arms["direction"].layers
    layers = settings.layers if settings.layers is not None else _spread(depth)
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise EmEvalsError(f"there is no layer {wrong[0]}; this direction's are 0 to {depth - 1}.")
    if not layers or not settings.scales or 0 in settings.scales:
        raise EmEvalsError("a study needs at least one layer and one scale, and scale 0 changes nothing.")
    pushes = []
    for arm, direction in arms.items():
        file = str(stored(direction, parts))
        for layer in layers:
            for scale in settings.scales:
                one = Intervention(
                    op="add", direction=file, layers=(layer,), scale=scale, relative=settings.relative
                )
                pushes.append(Push(arm, layer, scale, f"scale {scale:+g}", one))
        for how, fields in _ABLATIONS.items():
            one = Intervention.model_validate({"op": "ablate", "direction": file, **fields})
            pushes.append(Push(arm, None, 0.0, how, one))
    return pushes


def _spread(depth: int, count: int = 6) -> tuple[int, ...]:
    """Layers evenly over the depth, the middles of `count` equal parts."""
    return tuple(sorted({int((i + 0.5) * depth / count) for i in range(min(count, depth))}))


def _outcomes(
    card: ResolvedCard,
    conditions: Sequence[Condition],
    pairs: Sequence[Pair],
    questions: tuple[Question, ...],
    settings: Settings,
    finished: Finished,
    logs: Path,
) -> list[Outcome]:
    """Every condition measured on these pairs and questions; the first is the unsteered model."""
    asking = Asking(questions, settings.draws, settings.max_tokens, settings.seed)
    models = [one.identity(card) for one in conditions]
    of_pairs = repr([astuple(pair) for pair in pairs])
    wordings = [(one.id, one.paraphrases[0], one.system) for one in questions]
    of_questions = repr((wordings, asking.draws, asking.max_tokens, asking.seed))

    def weigh(indices: list[int]) -> Iterator[Any]:
        return margins(card, [conditions[i] for i in indices], pairs)

    def ask(indices: list[int]) -> Iterator[Any]:
        for answers in drawn(card, [conditions[i] for i in indices], asking):
            yield [astuple(answer) for answer in answers]

    found = finished.measured("forced choice", _keys("margins", models, of_pairs), weigh)
    told = finished.measured("answers", _keys("answers", models, of_questions), ask)
    answers = [[Answer(name, text, tuple(tokens)) for name, text, tokens in one] for one in told]
    if settings.judge is not None:
        flat = [answer for group in answers for answer in group]
        graded = iter(grades(flat, questions, settings.questions, settings.judge, logs))
        draws = [[next(graded) for _ in group] for group in answers]
        worse = [[100 - draw.coherence for draw in group] for group in draws]
    else:
        draws = [[] for _ in answers]

        def lose(indices: list[int]) -> Iterator[Any]:
            return base_losses(card, [answers[i] for i in indices], asking)

        worse = finished.measured("loss of the base", _keys("losses", models, of_questions), lose)
    return [
        Outcome(
            margin,
            _by_question(group, losses),
            _by_question(group, [repetition(answer.tokens) for answer in group]),
            _events(grade),
        )
        for margin, group, losses, grade in zip(found, answers, worse, draws, strict=True)
    ]


def _keys(what: str, models: Sequence[str], of: str) -> list[str]:
    return [content.digest(what.encode(), model.encode(), of.encode()) for model in models]


def _by_question(answers: Sequence[Answer], values: Sequence[float]) -> dict[str, float]:
    """The mean over a question's draws that have a number."""
    groups: dict[str, list[float]] = {}
    for answer, value in zip(answers, values, strict=True):
        if value == value:
            groups.setdefault(answer.question, []).append(value)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def _events(draws: Sequence[Any]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for draw in draws:
        events, number = counts.get(draw.question_id, (0, 0))
        counts[draw.question_id] = (events + draw.misaligned_coherent, number + 1)
    return counts


def _study(
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
    judged = settings.judge is not None
    unsteered, steered = outcomes[0], outcomes[1:]
    on, asked = divided.reporting, [one.id for one in divided.reporting_questions]
    seen = [effects.effect(one, unsteered, on, asked, judged) for one in steered]
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


def _chosen(
    grid: Sequence[Push], outcomes: Sequence[Outcome], divided: Halves, settings: Settings
) -> tuple[int, str]:
    """The layer at which the margins follow the direction's scale most, and a sentence that says how it was chosen."""
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
        "both domains alike, damaged conditions left out)."
    )


def _contrasts(
    pushes: Sequence[Push], steered: Sequence[Outcome], divided: Halves, layer: int
) -> list[SteeringContrast]:
    """The direction against the other arms, at the chosen layer and where it is ablated."""
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
