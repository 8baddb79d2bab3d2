"""`em-evals insight drift`: trajectories of monitored trainings minus their control, beside nulls.

What any fine-tune moves is no sign of a trait: the matched control is subtracted, and the largest drift over steps is
compared with that of random directions of equal norm, uniform and with the covariance of the base's activations, and
with the style traits that were monitored too. Each null takes its own maximum over steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.results import trajectories
from em_evals.results.records.claims import Claim, Specificity
from em_evals.results.records.drift import Drift, DriftPoint, TraitDrift
from em_evals.results.trajectories import Trajectory
from em_evals.stats import bands

Floats = NDArray[np.float64]

STYLE = "style traits"
DRAWS = 199


@dataclass(frozen=True, eq=False)
class Pair:
    """A run and its control, at their common steps."""

    name: str
    run: Trajectory
    control_name: str | None
    control: Trajectory | None

    def drift(self, trait: str) -> Floats:
        """Return [points, prompts], minus the control's; prompts are paired."""
        own = self.run.drift(trait)
        return own if self.control is None else own - self.control.drift(trait)

    def along(self, units: Floats, layer: int) -> Floats:
        """Return [points, directions], mean drifts along unit vectors, minus the control's."""
        own = self.run.along(units, layer)
        return own if self.control is None else own - self.control.along(units, layer)


def drift(
    runs: Sequence[str],
    controls: Sequence[str] = (),
    traits: Sequence[str] = (),
    found: Mapping[str, Direction] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Drift:
    """Compare monitored trainings with their controls and with directions that carry nothing of a trait.

    Args:
        runs: trained cards, folders of trainings, or journals; seeds of one recipe, if several.
        controls: one for all, or one for each run, in order.
        traits: names in the journals; none: all of them.
        found: name -> direction, for the nulls; None: the files that the journal names.
        draws: of each null.
        seed: of the draws.

    Raises:
        EmEvalsError: a run was not monitored, or numbers of two runs cannot be compared.
    """
    pairs = matched(runs, controls)
    notes: list[str] = []
    watched = pairs[0].run.watched
    known = [
        name
        for name in watched
        if all(name in one.watched for pair in pairs for one in (pair.run, pair.control) if one is not None)
    ]
    if unknown := [name for name in traits if name not in known]:
        raise EmEvalsError(
            f"'{unknown[0]}' was not monitored in every run and control; there are: {', '.join(known)}."
        )
    wanted = list(traits) or known
    given = dict(found) if found is not None else directions_of(pairs[0].run, wanted, notes)
    chance = np.random.default_rng(seed)
    drawn = {name: _drawn(given.get(name), watched[name].layer, pairs[0], draws, chance) for name in wanted}
    styles = [name for name in known if watched[name].kind == "style"]
    drifts = [
        one
        for name in wanted
        for one in _of_trait(name, pairs, drawn[name], [s for s in styles if s != name])
    ]
    if len(runs) > 1 and len(controls) == 1:
        notes.append(
            f"all runs share {controls[0]}: a band over runs holds for this one training of the control."
        )
    if not controls:
        notes.append("no control was given: what any fine-tune moves is in these drifts.")
    return Drift(
        runs=list(runs),
        controls=list(controls),
        prompts=len(pairs[0].run.projections[wanted[0]][0]),
        drifts=drifts,
        notes=notes,
        provenance={name: watched[name].digest for name in wanted} | {"seed": str(seed), "draws": str(draws)},
    )


def matched(runs: Sequence[str], controls: Sequence[str]) -> list[Pair]:
    """Return each run with its control at their common steps.

    Raises:
        EmEvalsError: there are several controls, but not one for each run; or two runs cannot be compared.
    """
    if not runs:
        raise EmEvalsError("name a run: a trained card, a training's folder or its training.jsonl.")
    if len(controls) > 1 and len(controls) != len(runs):
        raise EmEvalsError(
            f"{len(runs)} runs and {len(controls)} controls: give one control for all, or one each."
        )
    own = [trajectories.read(trajectories.locate(name)) for name in runs]
    beside = [trajectories.read(trajectories.locate(name)) for name in controls]
    refuse_copies(runs, own)
    every = [*zip(runs, own, strict=True), *zip(controls, beside, strict=True)]
    for name, one in every[1:]:
        trajectories.check_same(own[0], one, (runs[0], name))
    steps = sorted(set.intersection(*(set(one.steps) for _, one in every)))
    if len(steps) < 2:
        raise EmEvalsError("these runs were monitored at no common step but the first.")
    pairs = []
    for i, (name, one) in enumerate(zip(runs, own, strict=True)):
        place = min(i, len(controls) - 1)
        control = beside[place].at(steps) if controls else None
        pairs.append(Pair(name, one.at(steps), controls[place] if controls else None, control))
    return pairs


def refuse_copies(names: Sequence[str], runs: Sequence[Trajectory]) -> None:
    """Refuse a run given twice: a copy is no second seed, and the band over both would have no width."""
    for (name, one), (other_name, other) in combinations(zip(names, runs, strict=True), 2):
        same_names = one.steps == other.steps and one.projections.keys() == other.projections.keys()
        if same_names and all(
            np.array_equal(one.projections[key], other.projections[key]) for key in one.projections
        ):
            raise EmEvalsError(
                f"{name} and {other_name} are one run: their projections are equal at every step. Give it once."
            )


def directions_of(run: Trajectory, names: Sequence[str], notes: list[str]) -> dict[str, Direction]:
    """Return the directions whose files are still there and hold the same numbers; say in `notes` which are not."""
    found = {}
    for name in names:
        told = run.watched[name]
        path = Path(told.path)
        if path.is_file() and directions.digest_of(str(path)) == told.digest:
            found[name] = directions.read(path)
        else:
            notes.append(
                f"{name}: {told.path} is not the direction that was monitored; no covariance-matched null."
            )
    return found


def _drawn(
    direction: Direction | None, layer: int, pair: Pair, draws: int, chance: np.random.Generator
) -> dict[str, Floats]:
    """Return null -> unit vectors [draws, width] at the trait's layer."""
    width = pair.run.means[layer].shape[1]
    if not draws:
        return {}
    found = {nulls.RANDOM: nulls.random((width,), draws, chance)}
    folds = None if direction is None else direction.folds
    if folds is not None and (folds.weights > 0).sum() >= 2:
        matched = nulls.covariance_matched(folds.means[:, [layer]], draws, chance, folds.weights)
        found[nulls.COVARIANCE] = matched[:, 0]
    return found


def _of_trait(
    name: str, pairs: Sequence[Pair], drawn: Mapping[str, Floats], styles: Sequence[str]
) -> list[TraitDrift]:
    """Return a trait's drift in each run, and the mean over runs where there are several."""
    told = pairs[0].run.watched[name]
    found = []
    parts: list[tuple[Floats, dict[str, Floats]]] = []
    for pair in pairs:
        own = pair.drift(name)
        beside = {kind: pair.along(units, told.layer) for kind, units in drawn.items()}
        if styles:
            beside[STYLE] = np.stack([pair.drift(style).mean(1) for style in styles], -1)
        parts.append((own.mean(1), beside))
        found.append(_traced(pair.name, pair.control_name, name, pairs[0].run, own.T, beside, "prompts"))
    if len(pairs) > 1:
        curves = np.stack([mean for mean, _ in parts])
        beside = {kind: np.mean([own[kind] for _, own in parts], axis=0) for kind in parts[0][1]}
        controls = {pair.control_name for pair in pairs if pair.control_name}
        control = (
            next(iter(controls)) if len(controls) == 1 else f"{len(controls)} controls" if controls else None
        )
        found.append(
            _traced(f"mean of {len(pairs)} runs", control, name, pairs[0].run, curves, beside, "runs")
        )
    return found


def _traced(
    run: str,
    control: str | None,
    trait: str,
    about: Trajectory,
    curves: Floats,
    beside: Mapping[str, Floats],
    units: str,
) -> TraitDrift:
    """Return a record of curves ([units, points]) and null curves ([points, draws])."""
    mean, low, high = bands.simultaneous(curves)
    told = about.watched[trait]
    points = [
        DriftPoint(step=step, value=a, interval=(b, c))
        for step, a, b, c in zip(about.steps, mean.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    matched = beside.get(nulls.COVARIANCE)
    return TraitDrift.model_validate(
        {
            "run": run,
            "control": control,
            "trait": trait,
            "kind": told.kind,
            "layer": told.layer,
            "units": units,
            "points": points,
            "floor": [] if matched is None else np.quantile(np.abs(matched), 0.95, axis=1).tolist(),
            "claim": _claim(trait, mean, low, high, beside, control),
        }
    )


def _claim(
    trait: str, mean: Floats, low: Floats, high: Floats, beside: Mapping[str, Floats], control: str | None
) -> Claim:
    drawn = {kind: np.abs(values).max(0) for kind, values in beside.items()}
    found = nulls.claim(
        f"largest |drift| along {trait}",
        [np.abs(mean).max()],
        drawn,
        required=(nulls.RANDOM, nulls.COVARIANCE),
    )
    largest = int(np.abs(mean).argmax())
    verdict = _verdict(found, float(low[largest]), float(high[largest]), control)
    return found.model_copy(update={"layer": None, "verdict": verdict})


def _verdict(found: Claim, low: float, high: float, control: str | None) -> Specificity:
    """Return the verdict of the nulls, if the band excludes 0 at the step of the largest drift, which is the one shown.

    Without a control nothing is specific.
    """
    if np.isnan(low):
        return "not estimable"
    if low <= 0 <= high:
        return "not specific"
    return "not estimable" if found.verdict == "specific" and control is None else found.verdict
