"""`em-evals insight convergence CARD…`: do organisms share one direction?

The question of Soligo et al. 2025 (arXiv 2506.11618). Cosines between the directions at each layer, the controls'
included, over the floor of random pairs; and transfer: one organism's direction ablated from another, compared with a
random direction.

The floor that counts is the cosine of the two organisms' own controls: an organism and its control share prompts,
style and recipe, so this cosine measures what these have in common. One common control for all is not such a floor: it
may share prompts with an organism that shares none with the other. shared_direction.py compares the two.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from em_evals.content import adapter_folders
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.direction_algebra import beyond_rounding, cosine, found_on, random_cosine
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair, load_pairs
from em_evals.errors import EmEvalsError
from em_evals.interp.controls import random_like, read_for
from em_evals.interp.effects import by_domain
from em_evals.interp.fixed_answers import Condition, score_answers
from em_evals.interp.resume import Finished
from em_evals.interp.seed_effects import Scored, effects, groups_of
from em_evals.interp.shared_direction import corrected, shared
from em_evals.interp.steering.halves import names_of
from em_evals.results.records.studies import Convergence, Cosines, Moved, Transfer
from em_evals.results.seed_groups import Groups

CONTROL = "control"
"""Name of a common control's direction among the sources; a card's own is `control of CARD`."""
_ENOUGH = 16


def convergence(
    names: Sequence[str],
    files: Sequence[Path],
    controls: Sequence[str],
    output: Path,
    pairs: str = "forced_choice",
    per_theme: int | None = 10,
    seed: int = 0,
    groups: Groups | None = None,
) -> Convergence:
    """Compare organisms' directions and ablate each from every organism.

    Args:
        names: the organisms' cards, on one base.
        files: a folder that holds CARD.safetensors for each, or as many files in the same order.
        controls: the controls' directions, names or files: each card's own, in the same order, or one for all, or none.
        output: the record's file; finished conditions are kept in `OUTPUT.parts`.
        pairs: forced-choice pairs.
        per_theme: use the first N pairs of each theme; None for all.
        seed: of the random directions.
        groups: cards that are seeds of one recipe, by the group's name; further groups come from training records.

    Raises:
        EmEvalsError: one model under two names, a group that is none, cards of different bases, directions that are
            missing or made for another base, or controls that are neither one for all nor one for each.
    """
    cards = [resolve(name) for name in names]
    _one_base(cards)
    alike, told = groups_of(cards, groups or {})
    sources = {
        card.name: read_for(str(file), card) for card, file in zip(cards, _files(names, files), strict=True)
    }
    harmless = _controls(cards, controls)
    own = dict(zip(names, harmless, strict=True)) if len(controls) > 1 else {}
    sources |= harmless
    compared = sorted(cosines(sources), key=lambda pair: _place(pair, harmless))
    chosen, notes = _pairs(pairs, per_theme, sources.values())
    organisms = {name: direction for name, direction in sources.items() if name not in harmless}
    transfer, moved, scored = _transfer(
        cards, sources, own, chosen, output.with_name(f"{output.name}.parts"), seed
    )
    return Convergence(
        cards=list(names),
        controls=own,
        cosines=compared,
        shared=shared(organisms, {name: harmless[control] for name, control in own.items()}, seed),
        transfer=transfer,
        moved=moved,
        over_seeds=effects(alike, scored, compared, chosen),
        notes=[*told, *notes],
        provenance={
            "digests": " ".join(card.digest for card in cards),
            "pairs": pairs,
            "per_theme": str(per_theme),
            "seed": str(seed),
            "transfer": "ablated at all layers toward the base's mean, first token spared; margins minus those of the "
            "untouched organism",
        },
    )


def cosines(sources: Mapping[str, Direction]) -> list[Cosines]:
    """Compute the cosine of each pair of directions at each layer, and the floor of random pairs.

    The floor is that of directions uniform over all orientations. Activations are not uniform: those of any two
    fine-tunes may lie far above it, and the cosine of their controls is the floor that counts.

    Raises:
        EmEvalsError: they were made for different bases.
    """
    return [
        Cosines(
            one=one,
            other=other,
            by_layer=[
                float(value) if there else None
                for value, there in zip(
                    cosine(first, second), beyond_rounding(first) & beyond_rounding(second), strict=True
                )
            ],
            floor=[random_cosine(first.width)] * first.layers,
            corrected=corrected(first, second),
        )
        for (one, first), (other, second) in combinations(sources.items(), 2)
    ]


def _transfer(
    cards: Sequence[ResolvedCard],
    sources: Mapping[str, Direction],
    own: Mapping[str, str],
    chosen: Sequence[Pair],
    parts: Path,
    seed: int,
) -> tuple[list[Transfer], list[Moved], Scored]:
    """Ablate every source, and a random direction matched to it, from every card; the base is measured for comparison.

    A card's own control (`own`) is ablated from that card only, and compared with that card's direction.
    """
    grid: list[tuple[str, str, ResolvedCard, Intervention]] = []
    for number, (source, direction) in enumerate(sources.items()):
        arms = {"direction": direction, "random": random_like(direction, seed + number)}
        targets = [card for card in cards if source not in own.values() or own[card.name] == source]
        for (arm, one), card in product(arms.items(), targets):
            ablate = Intervention(op="ablate", direction=one, reference="mean", skip="sink")
            grid.append((source, arm, card, ablate))
    conditions = [Condition(), *map(Condition.of, cards)]
    conditions += [Condition.of(card, ablate) for _, _, card, ablate in grid]
    found = score_answers(cards[0], conditions, chosen, Finished(parts / "finished.jsonl"))
    base, ablated = found[0], found[1 + len(cards) :]
    plain = {card.name: margin for card, margin in zip(cards, found[1:], strict=False)}
    transfer = []
    for (source, arm, card, _), margin in zip(grid, ablated, strict=True):
        inside, outside = by_domain(plain[card.name], margin, chosen)
        values: dict[str, Any] = {"source": source, "target": card.name, "arm": arm}
        transfer.append(Transfer(**values, in_domain=inside, out_of_domain=outside))
    moved = []
    for card in cards:
        inside, outside = by_domain(base, plain[card.name], chosen)
        moved.append(Moved(card=card.name, in_domain=inside, out_of_domain=outside))
    direct = zip(grid, ablated, strict=True)
    by_source = {
        (source, card.name): margin for (source, arm, card, _), margin in direct if arm == "direction"
    }
    return transfer, moved, Scored(base, plain, by_source)


def _pairs(name: str, per_theme: int | None, sources: Iterable[Direction]) -> tuple[list[Pair], list[str]]:
    """Return the pairs that no direction was found on, if enough are left, and notes on them."""
    every = load_pairs(name)
    seen = found_on(*sources)
    fresh = [pair for pair in every.pairs if not names_of(pair) & seen]
    notes = []
    if (left_out := len(every.pairs) - len(fresh)) and len(fresh) >= _ENOUGH:
        notes.append(f"{left_out} pairs that a direction was found on are left out.")
    elif left_out:
        notes.append(
            f"{left_out} of {len(every.pairs)} pairs are among those that a direction was found on, and too few others "
            "remain to leave them out: transfer is biased upward."
        )
        fresh = list(every.pairs)
    first = set(replace(every, pairs=tuple(fresh)).first(per_theme or len(fresh)))
    return [pair for pair in fresh if pair.id in first], notes


def _files(names: Sequence[str], files: Sequence[Path]) -> list[Path]:
    """Return each card's direction file."""
    if len(files) == 1 and files[0].is_dir():
        return [files[0] / f"{name}.safetensors" for name in names]
    if len(files) != len(names):
        raise EmEvalsError(
            f"{len(names)} cards and {len(files)} directions: give one for each, in the same order, or a folder that "
            "holds CARD.safetensors for each."
        )
    return list(files)


def _controls(cards: Sequence[ResolvedCard], controls: Sequence[str]) -> dict[str, Direction]:
    """Load the controls' directions, by their names among the sources."""
    if len(controls) <= 1:
        return {CONTROL: read_for(controls[0], cards[0])} if controls else {}
    if len(controls) != len(cards) or len(set(controls)) < len(cards):
        raise EmEvalsError(
            f"{len(controls)} control directions for {len(cards)} cards: give one for all, or each card's own, none "
            "twice and in the cards' order."
        )
    return {
        f"{CONTROL} of {card.name}": read_for(one, card) for card, one in zip(cards, controls, strict=True)
    }


def _place(pair: Cosines, controls: Container[str]) -> int:
    """Return a pair's sort key: organisms first, then the floor of their controls, then one with the other."""
    kinds = (pair.one in controls, pair.other in controls)
    return 2 if any(kinds) and not all(kinds) else int(all(kinds))


def _one_base(cards: Sequence[ResolvedCard]) -> None:
    first = cards[0].card
    for card in cards[1:]:
        alike = (card.card.revision, card.card.engine) == (first.revision, first.engine)
        if not alike or not adapter_folders.same_base(card.card.base, first.base):
            raise EmEvalsError(
                f"{cards[0].name} and {card.name} are on different bases ({first.base}, {card.card.base}), revisions "
                "or engine options: directions are comparable within one base only."
            )
