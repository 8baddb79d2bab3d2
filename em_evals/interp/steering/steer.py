"""`em-evals steer CARD`: steer with a direction and ablate it, compared with a random one and the control's.

Layers x scales x arms, scored by forced choice and by freeform answers, all conditions in one queue of the engine.
The layer is chosen on one half of pairs and questions (where only the direction's own arm is measured), everything is
reported on the other (halves.py). effects.py defines damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.direction_algebra import found_on
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair, load_pairs
from em_evals.content.questions import Question, load_questions
from em_evals.errors import EmEvalsError
from em_evals.grading import judge
from em_evals.interp.controls import as_long_as, random_like, read_for
from em_evals.interp.effects import Outcome, incoherence
from em_evals.interp.fixed_answers import Condition, score_answers
from em_evals.interp.resume import Finished
from em_evals.interp.steering.answers import Answer, Asking, base_losses, drawn, repetition
from em_evals.interp.steering.grades import grades
from em_evals.interp.steering.halves import halves
from em_evals.interp.steering.specificity import claim
from em_evals.interp.steering.study import Arm, Push, Settings, chosen, study
from em_evals.results.records.studies import SteeringStudy

_ABLATIONS: dict[str, dict[str, str]] = {
    "ablated at all layers, mean, first token spared": {"reference": "mean", "skip": "sink"},
    "ablated at all layers, zero": {"reference": "zero"},
}


def steer(
    name: str, direction: str, control: str | None, settings: Settings, output: Path, logs: Path
) -> SteeringStudy:
    """Run a study, or resume an interrupted run of it.

    Args:
        name: the card to steer.
        direction: a direction's name or file.
        control: the control organism's direction; None: no such arm.
        settings: what to measure.
        output: the study's file; finished conditions are kept in `OUTPUT.parts`.
        logs: the folder of the judge's log.

    Raises:
        EmEvalsError: no such card, direction or layer, another base, too few pairs.
    """
    if settings.judge is not None:
        judge.check(settings.judge)
    card = resolve(name)
    arms = _arms(card, direction, control, settings.seed)
    parts = output.with_name(f"{output.name}.parts")
    pushes = _pushes(arms, settings)
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
    layer = chosen(grid, measure(grid, divided.choosing, divided.choosing_questions), divided, settings)
    outcomes = measure(pushes, divided.reporting, divided.reporting_questions)
    found = study(card, direction, control, settings, pushes, outcomes, divided, *layer)
    if not settings.nulls:
        return found
    layers = list(dict.fromkeys(push.layer for push in grid if push.layer is not None))
    beside = claim(
        card, arms["direction"], arms.get("control"), settings, layers, divided.reporting, finished
    )
    return found.model_copy(update={"claim": beside})


def _arms(card: ResolvedCard, direction: str, control: str | None, seed: int) -> dict[Arm, Direction]:
    main = read_for(direction, card)
    arms: dict[Arm, Direction] = {"direction": main, "random": random_like(main, seed)}
    if control is not None:
        arms["control"] = as_long_as(read_for(control, card), main)
    return arms


def _pushes(arms: dict[Arm, Direction], settings: Settings) -> list[Push]:
    """Return every condition except the unsteered one."""
    depth = arms["direction"].layers
    layers = settings.layers if settings.layers is not None else spread(depth)
    if wrong := [layer for layer in layers if not 0 <= layer < depth]:
        raise EmEvalsError(f"there is no layer {wrong[0]}; this direction's are 0 to {depth - 1}.")
    if not layers or not settings.scales or 0 in settings.scales:
        raise EmEvalsError("a study needs at least one layer and one scale, and scale 0 changes nothing.")
    pushes = []
    for arm, direction in arms.items():
        for layer in layers:
            for scale in settings.scales:
                one = Intervention(
                    op="add", direction=direction, layers=(layer,), scale=scale, relative=settings.relative
                )
                pushes.append(Push(arm, layer, scale, f"scale {scale:+g}", one))
        for how, fields in _ABLATIONS.items():
            one = Intervention.model_validate({"op": "ablate", "direction": direction, **fields})
            pushes.append(Push(arm, None, 0.0, how, one))
    return pushes


def spread(depth: int, count: int = 6) -> tuple[int, ...]:
    """Return layers evenly over the depth: the middles of `count` equal parts."""
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
    """Measure every condition on these pairs and questions; the first is the unsteered model."""
    asking = Asking(questions, settings.draws, settings.max_tokens, settings.seed)
    models = [one.identity(card) for one in conditions]
    wordings = [(one.id, one.paraphrases[0], one.system) for one in questions]
    of_questions = repr((wordings, asking.draws, asking.max_tokens, asking.seed))

    def ask(indices: list[int]) -> Iterator[Any]:
        for answers in drawn(card, [conditions[i] for i in indices], asking):
            yield [astuple(answer) for answer in answers]

    found = score_answers(card, conditions, pairs, finished)
    told = finished.measured("answers", _keys("answers", models, of_questions), ask)
    answers = [[Answer(name, text, tuple(tokens)) for name, text, tokens in one] for one in told]
    if settings.judge is not None:
        flat = [answer for group in answers for answer in group]
        graded = iter(grades(flat, questions, settings.questions, settings.judge, logs, settings.judge_cache))
        draws = [[next(graded) for _ in group] for group in answers]
        coherence = [[draw.coherence for draw in group] for group in draws]
        worse = [incoherence(group, coherence[0]) for group in coherence]
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
    return [files.digest(what, model, of) for model in models]


def _by_question(answers: Sequence[Answer], values: Sequence[float]) -> dict[str, float]:
    """Return the mean over each question's draws that are not NaN."""
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
