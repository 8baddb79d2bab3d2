"""`em-evals trait shift`: finetuning shifts beside what the finetunes show, for several traits and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from em_evals.content.cards import ResolvedCard
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.directions import Direction
from em_evals.content.questions import load_questions
from em_evals.content.trait_questions import test_questions
from em_evals.content.traits import load_trait
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.traits import shift
from em_evals.interp.traits.monitor import PositionName
from em_evals.results import expression
from em_evals.results.expression import Expressed
from em_evals.results.records.base import Measured
from em_evals.results.records.claims import Claim, Specificity
from em_evals.results.records.traits import CardShift, TraitShift, TraitShiftOf
from em_evals.stats import intervals
from em_evals.stats.means import benjamini_hochberg
from em_evals.workflows.trait_rollouts import Sampling, rollouts


@dataclass(frozen=True)
class Asked:
    """What is compared.

    Attributes:
        organisms: the finetunes.
        controls: organism -> its matched control, which is one of the models too.
        directions: trait -> its direction.
        questions: a question set, the same for all traits; None: each trait's own test questions.
        groups: seeds of one recipe, by the group's name: one unit of the correlation.
        position: the last prompt token, or the mean over the base's greedy answers.
        max_tokens: of these answers.
        draws: of each null distribution.
        seed: of the draws.
    """

    organisms: Sequence[ResolvedCard]
    controls: Mapping[str, ResolvedCard]
    directions: Mapping[str, Direction]
    questions: str | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    position: PositionName = "last_prompt"
    max_tokens: int = 60
    draws: int = nulls.DRAWS
    seed: int = 0

    @property
    def cards(self) -> list[ResolvedCard]:
        """Every model, each once."""
        every = [*self.organisms, *self.controls.values()]
        return list({card.name: card for card in every}.values())


def run(asked: Asked, scores: Sequence[Expressed]) -> TraitShift:
    """Measure shifts and relate them to scores; without scores only the shifts are reported.

    Raises:
        EmEvalsError: a direction is of another base, a trait has no test questions, or a model has no score.
    """
    prompts = {name: _prompts(name, one, asked.questions) for name, one in asked.directions.items()}
    cards = asked.cards
    names = [card.name for card in cards]
    known = {name: expression.of_cards(cards, name, scores) for name in asked.directions} if scores else {}
    units = expression.grouped(dict.fromkeys(names, 0.0), asked.groups)
    traits = {name: (one, prompts[name]) for name, one in asked.directions.items()}
    found = shift.measure(cards, traits, asked.position, asked.max_tokens)
    claims = {name: _claim(name, asked, found, known.get(name), units) for name in asked.directions}
    adjusted = benjamini_hochberg({name: _p(claim) for name, (_, claim) in claims.items()})
    controls = {name: card.name for name, card in asked.controls.items()}
    return TraitShift(
        base=cards[0].card.base,
        position=asked.position,
        units={name: list(own) for name, own in units.items()},
        traits=[
            TraitShiftOf(
                trait=name,
                layer=chosen_layer(one),
                cards=_cards(name, names, controls, found, chosen_layer(one), known.get(name, {})),
                r=claims[name][0],
                n=len(units),
                claim=claims[name][1],
                q=None if np.isnan(adjusted[name]) else adjusted[name],
                verdict=verdict(claims[name][1], adjusted[name]),
            )
            for name, one in asked.directions.items()
        ],
        notes=list(_notes(asked, units, bool(scores))),
        provenance={name: one.digest for name, one in asked.directions.items()}
        | {f"card {card.name}": card.digest for card in cards}
        | {"seed": str(asked.seed)},
    )


def by_judge(asked: Asked, sampling: Sampling, folder: Path) -> list[Expressed]:
    """Sample and grade every model's answers to every trait's test questions; logs that are there are used."""
    found: list[Expressed] = []
    for name, one in asked.directions.items():
        named = str(one.metadata.get("trait", name))
        trait = load_trait(named)
        for card in asked.cards:
            found += expression.read(rollouts(card, trait, named, sampling, folder))
    return found


def verdict(claim: Claim, q: float) -> Specificity:
    """Return the claim's verdict after Benjamini and Hochberg's correction over traits."""
    return "not specific" if claim.verdict == "specific" and not q <= nulls.LEVEL else claim.verdict


def _p(claim: Claim) -> float:
    """Return the largest p over the nulls with enough draws: the claim has to exceed all of them."""
    known = [null.p for null in claim.nulls if null.p is not None and null.draws >= nulls.FEWEST]
    return max(known, default=float("nan"))


def _prompts(name: str, direction: Direction, questions: str | None) -> list[str]:
    if questions is not None:
        return [one.paraphrases[0] for one in load_questions(questions).questions]
    named = direction.metadata.get("trait")
    if named is None:
        raise EmEvalsError(
            f"{name} is no trait's direction, so it has no test questions: name some with --questions."
        )
    try:
        trait = load_trait(str(named))
    except EmEvalsError as error:
        raise EmEvalsError(
            f"the test questions of {name} are not found ({error.what.rstrip('.')}): name some with --questions, or "
            "put the trait's file into tasks/traits."
        ) from None
    return [one.paraphrases[0] for one in test_questions(trait)]


def _claim(
    name: str,
    asked: Asked,
    found: Mapping[str, shift.Shifts],
    scores: Mapping[str, float] | None,
    units: Mapping[str, Sequence[str]],
) -> tuple[float | None, Claim]:
    if scores is None:
        return None, Claim(measure="no scores were given", value=None, verdict="not estimable")
    moved = np.stack([np.mean([found[one].means[name] for one in own], axis=0) for own in units.values()])
    shown = np.array([np.mean([scores[one] for one in own]) for own in units.values()])
    others = {key: one for key, one in asked.directions.items() if key != name}
    return shift.claim(moved, shown, asked.directions[name], others, asked.draws, asked.seed)


def _cards(
    trait: str,
    names: Sequence[str],
    controls: Mapping[str, str],
    found: Mapping[str, shift.Shifts],
    layer: int,
    scores: Mapping[str, float],
) -> list[CardShift]:
    def measured(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Measured:
        return Measured(
            value=float(values.mean()), interval=intervals.mean(values.astype(float)), n=len(values)
        )

    rows = []
    for name in names:
        own = found[name].along[trait][:, layer]
        beside = controls.get(name)
        rows.append(
            CardShift(
                card=name,
                control=beside,
                shift=measured(own),
                minus_control=measured(own - found[beside].along[trait][:, layer]) if beside else None,
                score=scores.get(name),
            )
        )
    return rows


def _notes(asked: Asked, units: Mapping[str, Sequence[str]], scored: bool) -> list[str]:
    notes = []
    if missing := [card.name for card in asked.organisms if card.name not in asked.controls]:
        notes.append(
            f"no control is known for {', '.join(missing)}: how much of their shift any training on such data brings "
            "remains unknown."
        )
    if scored and len(units) < shift.LEAST:
        notes.append(
            f"{len(units)} models (seeds of a group count once) are too few for a correlation, which needs "
            f"{shift.LEAST}."
        )
    if not scored:
        notes.append(
            "no scores were given (LOG, CSV or --judge), so nothing is said of what the models show."
        )
    return notes
