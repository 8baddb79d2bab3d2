"""Learned alarms on drift: read from their files, and applied to a training's trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from em_evals.errors import EmEvalsError
from em_evals.results import records
from em_evals.results.records.drift import AlarmVerdict, DriftAlarm, DriftPoint
from em_evals.results.trajectories import Trajectory
from em_evals.stats import bands
from em_evals.stats.alarm import Fit

Floats = NDArray[np.float64]


def features(own: Trajectory, control: Trajectory | None, names: list[str]) -> Floats:
    """Return [points, prompts, names], drifts minus the control's at the same steps."""
    return np.stack([own.drift(name) - (0 if control is None else control.drift(name)) for name in names], -1)


@dataclass(frozen=True)
class Alarm:
    """A learned alarm.

    Attributes:
        record: its file's.
    """

    record: DriftAlarm

    @property
    def against_control(self) -> bool:
        """Whether it reads drifts minus a control's."""
        return self.record.against_control

    def apply(self, own: Trajectory, control: Trajectory | None, name: str) -> AlarmVerdict:
        """Return the predicted EM rate at each step after the first, and the verdict.

        Raises:
            EmEvalsError: the run was measured on other prompts or directions, or a control is missing or superfluous.
        """
        self._check(own, control, name)
        told = self.record
        center, scale, weights = (np.array(part) for part in (told.center, told.scale, told.weights))
        linear = Fit(center, scale, weights, told.intercept)
        scored = linear.logit(features(own, control, [one.name for one in told.watched]))[1:]
        mean, low, high = (special.expit(one) for one in bands.simultaneous(scored.T))
        above, surely = mean > told.threshold, low > told.threshold
        verdict = "alarm" if surely.any() else "inconclusive" if above.any() else "pass"
        worst = int(np.argmax(np.where(surely, 1 + mean, mean)))
        sentence = (
            f"{name}: {verdict}; predicted EM rate {mean[worst]:.1%} [{low[worst]:.1%}, {high[worst]:.1%}] over "
            f"prompts at step {own.steps[1:][worst]}, threshold {told.threshold:.1%}"
        )
        return AlarmVerdict.model_validate(
            {
                "run": name,
                "verdict": verdict,
                "rates": [
                    DriftPoint(step=step, value=a, interval=(b, c))
                    for step, a, b, c in zip(
                        own.steps[1:], *(one.tolist() for one in (mean, low, high)), strict=True
                    )
                ],
                "sentence": sentence,
            }
        )

    def reason(self, own: Trajectory, control: Trajectory | None) -> str | None:
        """Return why a training stops at its last measured step; None if it goes on.

        The mean prediction decides, as in the alarm's validation.
        """
        last = self.apply(own, control if self.against_control else None, "this training").rates[-1]
        if last.value is None or last.value <= self.record.threshold:
            return None
        low, high = (float("nan") if end is None else end for end in last.interval)
        return (
            f"the alarm predicts an EM rate of {last.value:.1%} [{low:.1%}, {high:.1%}], above "
            f"{self.record.threshold:.1%}"
        )

    def _check(self, own: Trajectory, control: Trajectory | None, name: str) -> None:
        if self.against_control != (control is not None):
            need = "needs a control's run" if self.against_control else "was learned without a control"
            raise EmEvalsError(f"this alarm {need}.")
        if own.prompts != self.record.prompts:
            raise EmEvalsError(f"{name} was monitored on other prompts than the alarm was learned on.")
        for one in self.record.watched:
            there = [run.watched.get(one.name) for run in (own, control) if run is not None]
            if any(
                found is None or (found.digest, found.layer) != (one.digest, one.layer) for found in there
            ):
                raise EmEvalsError(
                    f"the alarm reads the direction '{one.name}' at layer {one.layer}, along which {name} (or its "
                    "control) was not monitored."
                )


def read(path: Path) -> Alarm:
    """Read an alarm.

    Raises:
        EmEvalsError: the file is no alarm.
    """
    found = records.read(path)
    if not isinstance(found, DriftAlarm):
        raise EmEvalsError("this is not an alarm that `em-evals insight drift --fit` wrote.", path)
    return Alarm(found)
