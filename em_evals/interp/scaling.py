"""`em-evals insight scaling`: does the EM rate follow parameters, training tokens or parameters per token?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from em_evals.errors import EmEvalsError
from em_evals.results.records.scaling import Scaling, ScalingBase, ScalingPredictor, ScalingSlope
from em_evals.results.scaling import Base, Table
from em_evals.stats import scaling
from em_evals.stats.intervals import fixed_questions
from em_evals.stats.scaling import Cell, Predictor, Slope


def study(
    table: Table, bases: Mapping[str, Base], name: str, provenance: Mapping[str, str] | None = None
) -> Scaling:
    """Estimate slopes, say what the bases can tell apart, and conclude.

    Args:
        table: organisms' rates.
        bases: sizes of bases; those with public checkpoints are named as what would settle the question.
        name: the table's name, for the record.
        provenance: digests of the files, for the record.

    Raises:
        EmEvalsError: fewer than three bases, or all have one size and as many tokens.
    """
    found, reasons = [], []
    for predictor in scaling.PREDICTORS:
        try:
            found.append(scaling.predictor(predictor, table.cells))
        except ValueError as error:
            reasons.append(str(error))
    if not found:
        raise EmEvalsError(f"no slope can be estimated: {reasons[0]}.")
    design = scaling.design(table.cells)
    together = scaling.partial(table.cells)
    kept = list(together.kept) if together is not None and not design.reasons else []
    distilled = scaling.separation(table.cells)
    ladders = list(dict.fromkeys(base.family for base in bases.values() if base.checkpoints))
    return Scaling(
        table=name,
        bases=_bases(table.cells),
        families=len({cell.family for cell in table.cells}),
        runs=len({cell.run for cell in table.cells}),
        sources=list(table.sources),
        left_out=list(table.left_out),
        predictors=[_predictor(one, table.cells) for one in found],
        vif=design.vif if math.isfinite(design.vif) else None,
        tokens_given_size=_slope(design.tokens_given_size),
        partial={key: _kept_slope(one) for key, one in (together.slopes if together else {}).items()},
        kept=kept,
        reasons=list(design.reasons),
        distilled=distilled,
        would_settle=ladders,
        conclusion=_conclusion(found, design, kept, together, distilled, ladders, table.cells),
        provenance=dict(provenance or {}),
    )


def _conclusion(
    found: list[Predictor],
    design: scaling.Design,
    kept: list[str],
    together: scaling.Partial | None,
    distilled: tuple[float, float] | None,
    ladders: list[str],
    cells: tuple[Cell, ...],
) -> list[str]:
    """Return the result in sentences; numbers first, then what they cannot say."""
    said = []
    for one in found:
        slope = one.least_squares
        low, high = slope.interval
        alone = [value for value in one.without.values() if math.isfinite(value)]
        ends = "" if math.isnan(low) else f" [{math.exp(low):.1f}, {math.exp(high):.1f}]"
        reach = f"; slope {slope.value:+.2f}"
        if alone:  # of three bases none can be left out
            reach += f", without one base {min(alone):+.2f} to {max(alone):+.2f}"
        said.append(
            f"Per tenfold of {one.name.removeprefix('log ')} the odds of a misaligned answer change by a factor of "
            f"{math.exp(slope.value):.1f}{ends} over {len(one.without)} bases (permutation p {slope.p:.2g}{reach})."
        )
    if distilled is not None:
        said.append(
            f"Distilled bases differ from the others by {distilled[0]:+.2f} in the mean logit "
            f"(permutation p {distilled[1]:.2g}, not planned in advance)."
        )
    if design.reasons:
        said.append(
            "These bases cannot tell whether P, T or P/T drives the rate: " + "; ".join(design.reasons) + "."
        )
        if ladders:
            said.append(
                "Checkpoints of one pretraining would (P fixed, T growing); public ones exist in the families "
                + ", ".join(ladders)
                + "."
            )
    elif together is not None and scaling.is_ladder(cells):
        rising = together.slopes["log T"].value > 0
        follows = "rises with T" if rising else "falls with T, as it does if it follows P/T"
        said.append(
            "Parameters are fixed in every family, so that T and P/T are one variable; the test at 5% finds "
            + (f"a slope: EM {follows}." if kept else "no slope on it.")
        )
    elif together is not None:
        said.append(
            "With log P and log T in one model within families, Holm's test at 5% keeps "
            + (f"{' and '.join(kept)}." if kept else "neither: no effect is shown.")
        )
    return said


def _bases(cells: tuple[Cell, ...]) -> list[ScalingBase]:
    """Return the bases by size, with their pooled rates."""
    found = []
    for name in dict.fromkeys(cell.base for cell in cells):
        own = [cell for cell in cells if cell.base == name]
        misaligned, draws = sum(c.misaligned for c in own), sum(c.draws for c in own)
        first = own[0]
        found.append(
            ScalingBase(
                name=name,
                family=first.family,
                parameters=first.parameters,
                tokens=first.tokens,
                distilled=first.distilled,
                organisms=len({cell.run for cell in own}),
                misaligned=misaligned,
                draws=draws,
                interval=fixed_questions(misaligned, draws),
            )
        )
    return sorted(found, key=lambda base: (base.family, base.parameters))


def _predictor(one: Predictor, cells: tuple[Cell, ...]) -> ScalingPredictor:
    """Return the record of a predictor."""
    return ScalingPredictor(
        name=one.name,
        bases=len({cell.base for cell in scaling.known(one.name, cells)}),
        least_squares=_kept_slope(one.least_squares),
        mixed=_slope(one.mixed),
        within_family=_slope(one.within_family),
        without=dict(one.without),
        without_family=dict(one.without_family),
    )


def _slope(one: Slope | None) -> ScalingSlope | None:
    """Return the record of a slope."""
    return None if one is None else _kept_slope(one)


def _kept_slope(one: Slope) -> ScalingSlope:
    """Return the record of a slope that exists."""
    return ScalingSlope(value=one.value, interval=one.interval, p=one.p)
