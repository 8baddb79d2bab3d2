"""Evidence of behavior under cues (`em-evals conditional`), and its comparison: the worst cue counts.

Evidence comes from a record or from a graded log. A record holds its own base: where the baseline has no evidence of
this kind, the candidate is compared with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from em_evals.content.cues import PLAIN
from em_evals.errors import EmEvalsError
from em_evals.gate import groups
from em_evals.gate.evidence import Cues, Evidence, Measure
from em_evals.results import conditional
from em_evals.results.records.conditional import MAX_CUE, Cells, Conditional, ConditionalMetric
from em_evals.stats import crossed
from em_evals.stats.means import Contrast
from em_evals.stats.paired import PairedContrast
from em_evals.stats.population import RandomSlopes, RareHarm, Unseen
from em_evals.stats.rates import RateContrast
from em_evals.stats.strictest import Strictest, Tested
from em_evals.stats.worst import RateInteraction, Worst

Worse = Literal["higher", "lower"]
METRIC = f"conditional.{MAX_CUE}"


def of_record(record: Conditional, path: Path) -> tuple[Evidence, Evidence]:
    """Return the evidence of a record's organisms, and of its own base.

    Raises:
        EmEvalsError: the record has no cue that is not a placebo.
    """
    if not record.metrics or not record.metrics[0].cues:
        raise EmEvalsError("this record has no cue that is not a placebo: there is nothing to gate.", path)
    own = {
        name: _evidence(record, name, [one.organisms[name] for one in record.metrics])
        for name in record.organisms
    }
    base = _evidence(record, record.base, [one.base for one in record.metrics])
    if len(own) == 1:
        return next(iter(own.values())), base
    return groups.merged(", ".join(own), record.organisms, own), base


def _evidence(record: Conditional, model: str, cells: list[Cells]) -> Evidence:
    measures = [
        (_name(one.metric, place), _measure(one, own))
        for place, (one, own) in enumerate(zip(record.metrics, cells, strict=True))
    ]
    return Evidence(
        kind="conditional",
        name=record.asked,
        model=model,
        card_digest=cells[0].card or None,
        identity=record.identity,
        measures=dict(measures),
    )


def of_log(path: Path) -> Evidence:
    """Return the evidence of a log of `em_evals/conditional`.

    Raises:
        EmEvalsError: as for `results.conditional.read`; all of its cues are placebos, or one has no draw.
    """
    log = conditional.read(path)
    placebos = {cue.name for cue in log.cues if cue.placebo}
    if all(cue.placebo for cue in log.cues):
        raise EmEvalsError("this log has no cue that is not a placebo: there is nothing to gate.", path)
    measures: dict[str, Measure] = {}
    for place, (share, counts) in enumerate(log.counts.items()):
        kept = {cue: own for cue, own in counts.items() if cue not in placebos}
        if lacking := [cue for cue in (PLAIN, *kept) if not kept.get(cue)]:
            raise EmEvalsError(
                f"no draw of '{lacking[0]}' counts for {share}: grade it, or draw again.",
                path,
            )
        measures[_name(share, place)] = Cues(unit="share", of=_of(share), counts=kept)
    return Evidence(
        kind="conditional",
        name=log.asked,
        model=log.model,
        card_digest=log.cards[0] if len(log.cards) == 1 else None,
        identity=log.identity,
        measures=measures,
    )


def _name(metric: str, place: int) -> str:
    return METRIC if place == 0 else f"conditional.{metric}"


def _of(metric: str) -> Literal["shift", "level"]:
    """Guards are compared at every cue as they are; what cues are about is compared with the plain prompt."""
    return "level" if metric.endswith("_share") else "shift"


def _measure(one: ConditionalMetric, own: Cells) -> Cues:
    cues = [PLAIN, *one.cues]
    values = {
        cue: {prompt: value for prompt, value in own.values[cue].items() if value is not None} for cue in cues
    }
    if not own.draws:
        return Cues(unit=one.unit, of=_of(one.metric), values=values)
    counts = {
        cue: {
            prompt: (round(value * own.draws[cue][prompt]), own.draws[cue][prompt])
            for prompt, value in of.items()
        }
        for cue, of in values.items()
    }
    return Cues(unit=one.unit, of=_of(one.metric), counts=counts)


def contrast(before: Evidence, after: Evidence, metric: str, worse: Worse, population: bool) -> Worst | None:
    """Return the contrast of a metric at its worst cue; None if the sides have no cue in common.

    Args:
        before: the accepted model's evidence.
        after: the candidate's.
        metric: a metric of both, measured under cues.
        worse: which direction is harm.
        population: whether the verdict is about all prompts of their kind.
    """
    one, other = before.measures[metric], after.measures[metric]
    if not isinstance(one, Cues) or not isinstance(other, Cues) or bool(one.counts) != bool(other.counts):
        return None
    arms = [arm for arm in one.shares if arm in other.shares and (one.of == "level" or arm != PLAIN)]
    found: dict[str, Contrast] = {
        arm: _levels(one, other, arm, worse, population)
        if one.of == "level"
        else _shifts(_sides(before, metric), _sides(after, metric), arm, worse, population)
        for arm in arms
    }
    return Worst(found, worse) if found else None


def _sides(side: Evidence, metric: str) -> list[Cues]:
    """Return a side's measures: one of each seed, or its own."""
    every = [side.measures] if side.seeds is None else list(side.seeds.values())
    return [measure for own in every if isinstance(measure := own[metric], Cues)]


def _levels(before: Cues, after: Cues, arm: str, worse: Worse, population: bool) -> Contrast:
    rates = RateContrast(before.counts[arm], after.counts[arm])
    if not population:
        return rates
    return Strictest(rates, [RandomSlopes(rates), RareHarm([*rates.by_question.values()], worse)])


def _shifts(before: list[Cues], after: list[Cues], cue: str, worse: Worse, population: bool) -> Contrast:
    """Return the contrast of what a cue does: over prompts, over seeds where there are several, and over draws."""
    sides = [[_moved(one.shares, cue) for one in side] for side in (before, after)]
    shared = [prompt for prompt in sides[0][0] if all(prompt in own for side in sides for own in side)]
    means = [{name: sum(own[name] for own in side) / len(side) for name in shared} for side in sides]
    pairs = PairedContrast(means[0], means[1], binary=False)
    others: list[Tested] = [Unseen(pairs.items, worse)] if population else []
    if len(shared) > 1 and max(map(len, sides)) > 1:
        tables = [np.array([[own[name] for own in side] for name in shared]) for side in sides]
        others.append(crossed.difference(tables[0], tables[1]))
    if before[0].counts:
        pooled = [[_pooled(side, arm) for arm in (PLAIN, cue)] for side in (before, after)]
        plain, cued = (RateContrast(pooled[0][arm], pooled[1][arm]) for arm in (0, 1))
        others.append(RateInteraction(plain, cued))
    return Strictest(pairs, others) if others else pairs


def _moved(shares: Mapping[str, Mapping[str, float]], cue: str) -> dict[str, float]:
    plain = shares[PLAIN]
    return {name: value - plain[name] for name, value in shares.get(cue, {}).items() if name in plain}


def _pooled(side: list[Cues], arm: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for one in side:
        for question, (events, draws) in one.counts.get(arm, {}).items():
            known = found.get(question, (0, 0))
            found[question] = known[0] + events, known[1] + draws
    return found
