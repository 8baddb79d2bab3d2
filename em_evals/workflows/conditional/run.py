"""The study of `em-evals conditional`, of cards by forced choice or of graded logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from em_evals import __version__, files
from em_evals.content import cards
from em_evals.content.cards import ResolvedCard
from em_evals.content.cues import CueSet
from em_evals.content.pairs import load_pairs
from em_evals.errors import EmEvalsError
from em_evals.results import conditional
from em_evals.results.records.conditional import OVERALL, Conditional, ConditionalMetric
from em_evals.workflows.conditional.contrasts import NATS, SHARE, Adjust, study


def of_cards(
    names: Sequence[str],
    base: str | None,
    control: str | None,
    cues: CueSet,
    pairs: str = "forced_choice",
    themes: str | None = None,
    per_theme: int = 0,
    adjust: Adjust = "holm",
) -> Conditional:
    """Score pairs under cues, offline.

    Args:
        names: cards of organisms; several are seeds of one recipe.
        base: the base's card; None: the first organism's own base.
        control: the matched control's card.
        cues: the cues.
        pairs: a set of pairs, by name or path.
        themes: only these themes, separated by commas.
        per_theme: number of first pairs per theme; 0 for all.
        adjust: the correction over cues.

    Raises:
        EmEvalsError: a card, the pairs or a theme cannot be found, or a model cannot be scored.
    """
    organisms = [cards.resolve(name) for name in names]  # wrong cards are reported before torch is imported
    reference = cards.resolve(base) if base is not None else _base_of(organisms[0])
    beside = cards.resolve(control) if control is not None else None
    chosen = load_pairs(pairs)
    chosen = chosen.select(themes.split(",")) if themes else chosen
    kept = set(chosen.first(per_theme)) if per_theme else {pair.id for pair in chosen.pairs}
    asked = [pair for pair in chosen.pairs if pair.id in kept]

    from em_evals.workflows.conditional.forced_choice import measured

    by_name = {card.name: measured(card, cues.cues, asked) for card in organisms}
    other = measured(reference, cues.cues, asked)
    matched = measured(beside, cues.cues, asked) if beside is not None else None
    scored = files.digest(*(pair.id for pair in asked))
    return Conditional(
        organisms=list(by_name),
        base=reference.name,
        control=beside.name if beside is not None else None,
        asked=chosen.name,
        cues=cues.name,
        adjust=adjust,
        metrics=[study("margin_per_token", NATS, cues.cues, by_name, other, matched, adjust)],
        identity={
            "question set": f"{chosen.name} {chosen.digest}",
            "pairs scored": f"{len(asked)} ({scored})",
            "cues": cues.digest,
        },
        provenance={"em-evals": __version__},
    )


def _base_of(organism: ResolvedCard) -> ResolvedCard:
    own = organism.card
    return cards.resolve(own.base, {"revision": own.revision} if own.revision else None)


def of_logs(
    names: Sequence[str], base: str | None, control: str | None, adjust: Adjust = "holm"
) -> Conditional:
    """Compare graded logs of `em_evals/conditional`.

    Args:
        names: logs of organisms; several are seeds of one recipe.
        base: the base's log.
        control: the matched control's log.
        adjust: the correction over cues.

    Raises:
        EmEvalsError: no base is named, a log is no such log, or two were not measured the same way.
    """
    if base is None:
        raise EmEvalsError("name the base's log: --base LOG, of the same questions and cues.")
    organisms = [conditional.read(Path(name)) for name in names]
    reference = conditional.read(Path(base))
    beside = conditional.read(Path(control)) if control is not None else None
    for one in (*organisms[1:], reference, *([beside] if beside is not None else [])):
        conditional.same_way(organisms[0], one)
    models = [one.model for one in organisms]
    labels = models if len(set(models)) == len(models) else [one.path.stem for one in organisms]
    metrics = [
        study(
            share,
            SHARE,
            organisms[0].cues,
            {label: one.cells(share) for label, one in zip(labels, organisms, strict=True)},
            reference.cells(share),
            beside.cells(share) if beside is not None else None,
            adjust,
        )
        for share in conditional.EVENTS
    ]
    return Conditional(
        organisms=labels,
        base=reference.model,
        control=beside.model if beside is not None else None,
        asked=organisms[0].asked,
        cues=organisms[0].cue_set,
        adjust=adjust,
        metrics=metrics,
        identity=organisms[0].identity,
        notes=_selection(metrics),
        provenance={"em-evals": __version__},
    )


_SELECTION = {
    "coherent_share": "coherence",
    "refusal_share": "refusals",
    "ungraded_share": "the share without a grade",
}


def _selection(metrics: Sequence[ConditionalMetric]) -> list[str]:
    """Return where a cue changes more than alignment."""
    return [
        f"{effect.cue} also changes {_SELECTION[one.metric]} ({effect.estimate:+.3f}): a change of the EM rate under "
        "it is a selection of answers, not only an effect on them."
        for one in metrics
        if one.metric in _SELECTION
        for effect in one.effects
        if effect.found and effect.cue != OVERALL
    ]
