"""A lower EM rate that is no cure: its answers lost coherence. Told only of models that were asked and graded alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from em_evals.report.answers import Measured
from em_evals.report.tables import Estimate
from em_evals.results.em_rates import Rates
from em_evals.stats import intervals

LOST_COHERENCE = 0.05
"""A smaller fall of the coherent share does not explain a lower EM rate; the gate's default margin too."""
_REMEDIES = {
    "question set": "ask all models the same questions",
    "judge": "grade all answers by one judge (`inspect score`)",
    "rubrics": "grade all answers by the same rubrics (`inspect score`)",
}


def flags(measured: Sequence[tuple[Measured, Rates]]) -> tuple[str, ...]:
    """A sentence for every model whose EM rate fell below an earlier one's while its answers lost coherence.

    Every model is a candidate for what was treated: of base, organism and ablated organism the base has no EM rate to
    fall from. Where several earlier ones fit, the one with the highest EM rate is named.

    Args:
        measured: models that were asked the same questions, in the order in which they were given. Those that were
            not asked and graded alike are not compared.
    """
    sentences = []
    for number, (model, after) in enumerate(measured):
        fallen = [
            (other.label, before)
            for other, before in measured[:number]
            if _alike(other, model) and _fell(before, after)
        ]
        if not fallen:
            continue
        first, before = max(fallen, key=lambda one: one[1].em_rate.value)
        lost = before.coherent_share.value - after.coherent_share.value
        lower, upper = _change(before, after)
        sentences.append(
            f"Damage, not a cure: {model.label} has an EM rate of {Estimate.of(after.em_rate.value, unit='share')} "
            f"against {first}'s {Estimate.of(before.em_rate.value, unit='share')}, but its coherent share fell by "
            f"{lost * 100:.1f} points [{-upper * 100:.1f}, {-lower * 100:.1f}] "
            f"(to {Estimate.of(after.coherent_share.value, unit='share')})."
        )
    return tuple(sentences)


def unlike(entries: Sequence[Measured]) -> Iterator[str]:
    """A sentence for each thing that should be equal for a comparison of these and is not."""
    for what, remedy in _REMEDIES.items():
        groups: dict[str, list[str]] = {}
        for entry in entries:
            if what in entry.identity:
                groups.setdefault(entry.identity[what], []).append(entry.label)
        if len(groups) > 1:
            told = "; ".join(f"{', '.join(labels)}: {own}" for own, labels in groups.items())
            yield f"Not the same {what} ({told}): damage is not looked for across these; {remedy}."


def _alike(one: Measured, other: Measured) -> bool:
    """Asked and graded alike; what a file does not say (a CSV its judge) is taken on trust."""
    both = one.identity.keys() & other.identity.keys()
    return all(one.identity[what] == other.identity[what] for what in both)


def _fell(before: Rates, after: Rates) -> bool:
    """Whether the EM rate is lower and coherence is lost beyond chance."""
    lost = before.coherent_share.value - after.coherent_share.value
    lower_rate = after.em_rate.value < before.em_rate.value
    return lower_rate and lost >= LOST_COHERENCE and _change(before, after)[1] < 0


def _change(before: Rates, after: Rates) -> tuple[float, float]:
    """The 95% interval of what the coherent share changed by."""
    return intervals.difference((before.coherent, before.draws), (after.coherent, after.draws))
