"""Levels of repeated looks at growing data: alpha spending.

Testing again after each batch of draws, at the same level each time, is optional stopping: harm of exactly the margin
passes 6 to 12% of the time over 4 to 11 looks at a nominal 2.5%. A spending function says how much of alpha may be
used up by look k (Lan and DeMets, Biometrika 70, 1983; levels fixed look by look: Slud and Wei, JASA 77, 1982).

We add the levels by Bonferroni's inequality instead of integrating the joint distribution of the looks. That costs a
few draws, and in return the total holds whatever the dependence between looks is: for draws clustered in questions,
for exact and bootstrap tests, for families adjusted by Holm, and for any number of draws between looks. The number of
looks need not be planned.
"""

from __future__ import annotations

FIRST = 0.8
"""Share of alpha that the first look spends if looks are not planned: most candidates are judged once."""


def level(alpha: float, look: int, planned: int | None = None) -> float:
    """Return the one-sided level of a look.

    - `planned` looks: alpha / planned for each of them and 0 after the last.
    - No plan: 0.8 alpha for the first look, 0.2 alpha / (k (k - 1)) for look k > 1. All looks together spend
      alpha (1 - 0.2 / k) up to look k, hence never more than alpha.

    Args:
        alpha: the level of all looks together.
        look: its number, from 1.
        planned: the number of planned looks; None if there is no plan.

    Example:
        >>> [round(level(0.025, look), 5) for look in (1, 2, 3)], level(0.025, 1, planned=1)
        ([0.02, 0.0025, 0.00083], 0.025)
    """
    if planned is not None:
        return alpha / planned if look <= planned else 0.0
    return FIRST * alpha if look == 1 else (1 - FIRST) * alpha / (look * (look - 1))


def spent(alpha: float, look: int, planned: int | None = None) -> float:
    """Return the level that the first `look` looks spend together."""
    return sum(level(alpha, one, planned) for one in range(1, look + 1))
