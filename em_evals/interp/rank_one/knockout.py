"""Disable rank-1 adapters one block at a time: which carry the narrow task, and which the general shift?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair
from em_evals.interp.effects import by_domain
from em_evals.interp.fixed_answers import Condition, score_answers
from em_evals.interp.resume import Finished
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import Knockout, Moved

Serves = Literal["narrow", "general", "both", "neither"]

_SERVES: dict[tuple[bool, bool], Serves] = {
    (True, False): "narrow",
    (False, True): "general",
    (True, True): "both",
    (False, False): "neither",
}
_WORDS = {
    "narrow": "serves the narrow domain",
    "general": "serves the general one",
    "both": "serves both domains",
    "neither": "serves neither domain that these pairs can show",
}


def knockouts(
    card: ResolvedCard, blocks: Mapping[int, Sequence[str]], pairs: Sequence[Pair], finished: Finished
) -> tuple[list[Knockout], Moved]:
    """Score the whole model, the model without each block's adapters, and its base, in one batch.

    Args:
        card: the organism.
        blocks: its adapted blocks and their modules; a block's modules are disabled together.
        pairs: forced-choice pairs.
        finished: the results so far.

    Returns:
        A knock-out for each block, and how far the whole model is from its base.
    """
    off = [Intervention(op="scale_adapter", layers=(layer,), scale=0.0) for layer in blocks]
    conditions = [Condition(), Condition.of(card), *(Condition.of(card, one) for one in off)]
    base, whole, *without = score_answers(card, conditions, pairs, finished, f"knock-outs of {card.name}")
    # Bonferroni: the intervals of all blocks and both domains hold together.
    confidence = 1 - 0.05 / (2 * max(1, len(blocks)))
    found = [
        _knockout(card.name, layer, modules, *by_domain(whole, margin, pairs, confidence))
        for (layer, modules), margin in zip(blocks.items(), without, strict=True)
    ]
    inside, outside = by_domain(base, whole, pairs)
    return found, Moved(card=card.name, in_domain=inside, out_of_domain=outside)


def _knockout(
    model: str, layer: int, modules: Sequence[str], narrow: Measured, general: Measured
) -> Knockout:
    serves = _SERVES[_below(narrow), _below(general)]
    sentence = (
        f"the adapter of block {layer} {_WORDS[serves]}: without it the in-domain margin changes by {_shown(narrow)}, "
        f"the out-of-domain one by {_shown(general)} nats per token."
    )
    return Knockout(
        model=model,
        layer=layer,
        modules=list(modules),
        narrow=narrow,
        general=general,
        serves=serves,
        sentence=sentence,
    )


def _below(value: Measured) -> bool:
    return value.interval[1] is not None and value.interval[1] < 0


def _shown(value: Measured) -> str:
    if value.value is None or value.interval[0] is None or value.interval[1] is None:
        return "an unknown amount (too few pairs)"
    return f"{value.value:+.3f} [{value.interval[0]:+.3f}, {value.interval[1]:+.3f}]"
