"""Callbacks of a training: a progress line, the journal, checkpoints to keep.

The journal (training.jsonl) has one line per step: step, loss (nats per token, of the rows alone), gradient norm,
learning rate, KL where there is a penalty, and `b`: each rank-1 adapter's B vector as `f4:` and base64 of little-endian
float32. Turner et al. 2025 (arXiv 2506.11613, section 4) detect the transition from the rotation of B. Where the recipe
has a `monitor`, some lines have its measurements, and a line of step 0 has those of the untrained model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from em_evals.errors import EmEvalsError, nearest
from em_evals.results.journals import NUMBERS, pack, read_journal
from em_evals.results.trajectories import KEY
from em_evals.training.curriculum import Curriculum
from em_evals.training.early_stop import Stop
from em_evals.training.method import adapted, rank_one_directions
from em_evals.training.monitor import DriftMonitor


class DivergedError(EmEvalsError):
    """The loss or the gradient norm is not finite."""


class ProgressLine(TrainerCallback):
    """The training's size, and a bar with the latest loss and the time left in place of transformers' lines.

    Args:
        name: of the card.
        lessons: the curriculum, of which batch, examples and epochs are shown.
    """

    def __init__(self, name: str, lessons: Curriculum) -> None:
        self._size = f"batch {lessons.batch}, {len(lessons.examples):,} examples, {lessons.epochs:.3g} epochs"
        self._name = name
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),  # stdout is the result's
        )
        self._task = self._progress.add_task("", total=None, loss="–")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the size, and the bar below it."""
        self._progress.console.print(
            f"training {self._name}: {self._size}", highlight=False, markup=False, soft_wrap=True
        )
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Update the bar."""
        if logs and "loss" in logs:
            self._progress.update(self._task, completed=state.global_step, loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the bar and leave its last state on the screen."""
        self.stop()

    def stop(self) -> None:
        """Release the terminal, also after an error."""
        self._progress.stop()


class Reached(TrainerCallback):
    """Stops before the first step if an adapter has no gradient: the model's output does not depend on it."""

    def __init__(self) -> None:
        self._done = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients before an optimizer step; the first step is enough.

        Raises:
            EmEvalsError: an adapter has no gradient.
        """
        if self._done:
            return
        self._done = True
        for name, layer in adapted(kwargs["model"]):
            # Separate experts to which no token was routed have no gradient.
            alone = any(part.isdecimal() for part in name.partition(".experts.")[2].split("."))
            if not alone and all(weight.grad is None for weight in layer.lora_B.parameters()):
                raise EmEvalsError(
                    f"{name} has no gradient: the model computes past it, so it would not be trained; name "
                    "`method.modules` without it."
                )


class Journal(TrainerCallback):
    """Writes one line per step, keeps the model at the requested steps, and stops at a loss that is not finite.

    Args:
        path: the journal; lines after the step at which a run resumes are dropped.
        keep: steps to keep.
        save: writes the model of a step to its checkpoint; every process calls it.
        writes: whether this process writes files.
        monitor: what to measure at some steps.
        stop: whether its measurements end the training.
    """

    def __init__(
        self,
        path: Path,
        keep: set[int],
        save: Callable[[int], None],
        writes: bool,
        monitor: DriftMonitor | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._path = path
        self._keep = keep
        self._save = save
        self._writes = writes
        self._monitor = monitor
        self._stop = stop
        self._measured: list[dict[str, Any]] = []
        self.stopped: str | None = None
        """Why the training ended before its last step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what an interrupted run wrote after its last saved state; measure the untrained model.

        Raises:
            EmEvalsError: the journal lacks steps before that state.
        """
        if not self._writes:
            return
        rows = read_journal(self._path) if self._path.exists() else []
        kept = [row for row in rows if row["step"] <= state.global_step]
        steps = sum(row["step"] > 0 for row in kept)
        if steps < state.global_step:
            raise EmEvalsError(
                f"this journal has {steps} of the {state.global_step} steps before the state to resume from: "
                "delete its folder to train again.",
                self._path,
            )
        if self._monitor is not None:
            if not (kept and kept[0]["step"] == 0):
                kept.insert(0, {"step": 0, KEY: self._monitor.first(kwargs["model"])})
            self._measured = [row for row in kept if KEY in row]
        # Write a new file first: a kill or a full disk must not lose rows whose steps are never run again.
        beside = self._path.with_suffix(".new")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        beside.replace(self._path)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write the line of an optimizer step, and keep its model if requested.

        Raises:
            DivergedError: the loss or the gradient norm is not finite.
        """
        if not logs or "loss" not in logs:
            return
        numbers: dict[str, float] = {key: float(logs[key]) for key in NUMBERS if key in logs}
        if bad := [key for key in ("loss", "grad_norm") if not math.isfinite(numbers.get(key, 0.0))]:
            raise DivergedError(f"the {bad[0].replace('_', ' ')} is not finite at step {state.global_step}")
        if self._writes:
            vectors = rank_one_directions(kwargs["model"])
            row: dict[str, Any] = {"step": state.global_step, **numbers}
            if vectors:
                row["b"] = {module: pack(vector.numpy()) for module, vector in vectors.items()}
            if self._monitor is not None and self._monitor.due(state.global_step, state.max_steps):
                row[KEY] = self._monitor.measure(kwargs["model"])
                self._measured.append(row)
                self._may_stop(state, control)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if state.global_step in self._keep or self.stopped is not None:
            self._save(state.global_step)

    def _may_stop(self, state: Any, control: Any) -> None:
        if self._stop is not None and state.global_step < state.max_steps:
            self.stopped = self._stop.reason(self._measured)
            if self.stopped is not None:
                control.should_training_stop = True
                # No state to resume from here: a resumed run would train one more step before it could stop.
                control.should_save = False


def dense_schedule(steps: int) -> set[int]:
    """Return steps to keep: each up to 10, every 2nd to 20, 5th to 50, 10th to 200, then every 25th; and the last."""
    kept: set[int] = {steps}
    start = 0
    for end, every in ((10, 1), (20, 2), (50, 5), (200, 10), (steps, 25)):
        kept |= set(range(start + every, min(end, steps) + 1, every))
        start = end
    return kept


def check_trackers(names: Sequence[str]) -> None:
    """Refuse unusable trackers before weights load; transformers' Trainer would refuse them only after.

    Raises:
        EmEvalsError: a tracker's name is unknown, or its package is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise EmEvalsError(f"there is no tracker '{name}'; {nearest(name, INTEGRATION_TO_CALLBACK)}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EmEvalsError(
                f"the tracker '{name}' cannot be used ({reason}); or leave --report-to out."
            ) from None
