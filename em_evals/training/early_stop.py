"""Whether a training stops before its last step: by a threshold on a drift, or by a learned alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.content.recipes import EarlyStop
from em_evals.errors import EmEvalsError
from em_evals.results import alarms, trajectories
from em_evals.results.trajectories import Trajectory
from em_evals.stats import bands


class Stop:
    """A recipe's rule, with the matched control's run.

    Args:
        rule: the recipe's `early_stop`.

    Raises:
        EmEvalsError: the control or the alarm cannot be read, or the alarm needs a control.
    """

    def __init__(self, rule: EarlyStop) -> None:
        self._rule = rule
        control = None if rule.control is None else trajectories.locate(rule.control)
        alarm = None if rule.alarm is None else Path(rule.alarm)
        self._control = None if control is None else trajectories.read(control)
        self._alarm = None if alarm is None else alarms.read(alarm)
        self.digests = [files.digest(path.read_bytes()) for path in (control, alarm) if path is not None]
        """What decides the step, apart from the recipe: the contents of the control's journal and of the alarm."""
        if self._alarm is not None and self._alarm.against_control and self._control is None:
            raise EmEvalsError("this alarm reads drifts minus a control's: name `early_stop.control`.")

    def reason(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Return why a training stops after its last measured step; None if it goes on.

        Raises:
            EmEvalsError: the control was measured otherwise, or not at this step.
        """
        own = trajectories.of_rows(rows)
        if len(own.steps) < 2:
            return None
        control = self._matched(own)
        if self._alarm is not None:
            return self._alarm.reason(own, control)
        return self._threshold(own, control)

    def _matched(self, own: Trajectory) -> Trajectory | None:
        if self._control is None:
            return None
        trajectories.check_same(own, self._control, ("this training", str(self._rule.control)))
        if lacking := own.watched.keys() - self._control.watched.keys():
            raise EmEvalsError(f"{self._rule.control} was not monitored along '{min(lacking)}': train it so.")
        if missing := set(own.steps) - set(self._control.steps):
            raise EmEvalsError(
                f"{self._rule.control} was not measured at step {min(missing)}: train it with the same `monitor` "
                "and as many steps."
            )
        return self._control.at(own.steps)

    def _threshold(self, own: Trajectory, control: Trajectory | None) -> str | None:
        name, limit = str(self._rule.trait), float(self._rule.threshold or 0)
        drift = own.drift(name) - (control.drift(name) if control is not None else 0)
        mean, low, high = (float(one[-1]) for one in bands.simultaneous(drift[1:].T))
        if low > limit or high < -limit:
            beside = "" if control is None else f" minus that of {self._rule.control}"
            return (
                f"the drift along {name}{beside} is {mean:+.3f} [{low:+.3f}, {high:+.3f}], beyond {limit:g}"
            )
        return None
