"""Choose a trait's layer by steering (persona vectors, arXiv 2507.21509, section 3.2 and appendix B.4).

The direction is added at one layer at a time with the same coefficient, the model answers the trait's test questions,
and a judge grades the trait and coherence. The layer of the highest mean trait score is chosen among those at which
answers stay coherent (a mean above 75).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.rubrics import OF_TRAIT
from em_evals.content.trait_questions import test_questions
from em_evals.content.traits import Trait
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.fixed_answers import Condition
from em_evals.interp.resume import Finished
from em_evals.interp.steering.answers import Answer, Asking, drawn
from em_evals.interp.steering.grades import scores
from em_evals.interp.steering.steer import spread
from em_evals.results.records.claims import Claim

COHERENT = 75.0
MEASURE = "largest mean trait score over layers, steered"


@dataclass(frozen=True)
class Steering:
    """How the layer is chosen.

    Attributes:
        judge: PROVIDER/MODEL, or a judge card.
        layers: decoder blocks to compare; None: six, evenly spread.
        coefficient: h + coefficient · v at one block, the same at all of them.
        draws: answers per question.
        max_tokens: of an answer.
        limit: first test questions; None: all.
        nulls: draws of each null distribution (random and covariance-matched of equal norm); 0: none.
        seed: of answers and null draws.
        cache: whether the judge's earlier replies are used and kept.
    """

    judge: str
    layers: tuple[int, ...] | None = None
    coefficient: float = 2.0
    draws: int = 1
    max_tokens: int = 200
    limit: int | None = None
    nulls: int = 0
    seed: int = 0
    cache: bool = True


@dataclass(frozen=True)
class Chosen:
    """The chosen layer and the evidence for it: metadata of a direction.

    Attributes:
        layer: the block.
        layers: the blocks that were compared; `trait` and `coherence` are the judge's means at each.
        unsteered: the mean trait score without steering.
        coefficient: of the steering.
        claim: the trait score beside that of null directions.
        note: what to know about the choice.
    """

    layer: int
    layers: tuple[int, ...]
    trait: tuple[float, ...]
    coherence: tuple[float, ...]
    unsteered: float
    coefficient: float
    claim: Claim
    note: str

    def as_metadata(self) -> dict[str, Any]:
        """Return what a direction's file keeps."""
        steering = {
            "layers": list(self.layers),
            "trait": list(self.trait),
            "coherence": list(self.coherence),
            "unsteered": self.unsteered,
            "coefficient": self.coefficient,
            "claim": self.claim.model_dump(mode="json"),
            "note": self.note,
        }
        return {"layer": self.layer, "steering": files.without_nan(steering)}


def choose(
    card: ResolvedCard, trait: Trait, named: str, direction: Direction, how: Steering, folder: Path
) -> Chosen:
    """Steer at each layer, grade the answers to the trait's test questions, and choose.

    Args:
        card: the model that is steered.
        trait: the trait; its rubric grades.
        named: its name or file.
        direction: its direction.
        how: what is compared.
        folder: for the answers so far (an interrupted choice resumes) and the judge's log.

    Raises:
        EmEvalsError: no such layer, no test questions, or the judge grades nothing.
    """
    layers = how.layers if how.layers is not None else spread(direction.layers)
    if wrong := [layer for layer in layers if not 0 <= layer < direction.layers]:
        raise EmEvalsError(f"there is no layer {wrong[0]}; this direction's are 0 to {direction.layers - 1}.")
    arms = [("direction", direction), *_arms(direction, how)]
    conditions = [Condition.of(card)]
    for _, one in arms:
        conditions += [
            Condition.of(card, Intervention(op="add", direction=one, layers=(layer,), scale=how.coefficient))
            for layer in layers
        ]
    graded = _graded(card, trait, named, conditions, how, folder)
    trait_means = np.array([_mean(own, trait.name) for own in graded])
    coherence = np.array([_mean(own, "coherence") for own in graded])
    if np.isnan(trait_means).all():
        raise EmEvalsError(
            f"the judge graded none of the steered answers for {trait.name}; see its log in {folder}."
        )
    steered = trait_means[1:].reshape(len(arms), len(layers))
    fluent = coherence[1:].reshape(len(arms), len(layers))
    return _choice(layers, steered, fluent, float(trait_means[0]), [name for name, _ in arms], how)


def _choice(
    layers: Sequence[int],
    steered: NDArray[np.float64],
    fluent: NDArray[np.float64],
    unsteered: float,
    names: Sequence[str],
    how: Steering,
) -> Chosen:
    """Choose from mean scores [arms, layers]; the first arm is the direction's own."""
    usable = np.where(fluent > COHERENT, steered, np.nan)
    none = bool(np.isnan(usable[0]).all())
    values = steered if none else usable
    beside = {
        name: values[[place for place, own in enumerate(names) if own == name]]
        for name in dict.fromkeys(names[1:])
    }
    claim = nulls.claim(MEASURE, values[0], beside, required=(nulls.RANDOM, nulls.COVARIANCE))
    place = int(np.nanargmax(values[0]))
    note = f"layer {layers[place]}: there the steered answers show the trait most ({values[0][place]:.1f} of 100)"
    if none:
        note += f"; at no layer does their mean coherence exceed {COHERENT:g}, so it did not count: lower --coefficient"
    return Chosen(
        layers[place],
        tuple(layers),
        tuple(map(float, steered[0])),
        tuple(map(float, fluent[0])),
        unsteered,
        how.coefficient,
        claim.model_copy(update={"layer": layers[place]}),
        f"{note}.",
    )


def _arms(direction: Direction, how: Steering) -> Iterator[tuple[str, Direction]]:
    """Yield null directions of the direction's norm at each layer."""
    chance = np.random.default_rng(how.seed)
    for kind in (nulls.RANDOM, nulls.COVARIANCE) if how.nulls else ():
        found = nulls.of(direction, kind, how.nulls, chance)
        for one in found if found is not None else ():
            yield kind, Direction(one, direction.base_mean, direction.mean_norm, {})


def _graded(
    card: ResolvedCard,
    trait: Trait,
    named: str,
    conditions: Sequence[Condition],
    how: Steering,
    folder: Path,
) -> list[list[dict[str, float]]]:
    """Return the grades of each condition's answers."""
    questions = test_questions(trait)[: how.limit]
    asking = Asking(questions, how.draws, how.max_tokens, how.seed)
    asked = repr((trait.digest, how.limit, how.draws, how.max_tokens, how.seed)).encode()
    keys = [files.digest(b"trait", one.identity(card), asked) for one in conditions]

    def ask(missing: list[int]) -> Iterator[Any]:
        for answers in drawn(card, [conditions[i] for i in missing], asking):
            yield [astuple(answer) for answer in answers]

    folder.mkdir(parents=True, exist_ok=True)
    told = Finished(folder / "steered.jsonl").measured(f"steering with {trait.name}", keys, ask)
    flat = [Answer(name, text, tuple(tokens)) for one in told for name, text, tokens in one]
    rubrics = [f"{OF_TRAIT}{named}", "coherence"]
    values = iter(scores(flat, questions, rubrics, how.judge, folder, how.cache))
    return [[next(values) for _ in one] for one in told]


def _mean(graded: Sequence[dict[str, float]], name: str) -> float:
    """Return the mean of a grade over the answers that have one."""
    known = [one[name] for one in graded if not math.isnan(one.get(name, math.nan))]
    return sum(known) / len(known) if known else math.nan
