"""Workers: where steps run. One process each on this machine; sweep/ray.py and sweep/slurm.py have the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from em_evals.sweep.perform import perform_json
from em_evals.sweep.steps import Step

DIED = (BrokenProcessPool,)
_LOOK_AGAIN = 1.0
"""Seconds between looks for the sweep's process."""


class Worker(Protocol):
    """Runs one step at a time.

    Attributes:
        base: the base that its last step loaded.
        died: errors that mean that the process or machine ended, and not the step.
        light: whether it holds no GPU, and takes only steps that need none.
    """

    base: str
    light: bool = False
    died: tuple[type[BaseException], ...]

    def is_ready(self) -> bool:
        """Return whether a step would start now; a lost worker's successor may wait for a place."""
        ...

    def check(self) -> None:
        """Raise EmEvalsError if what places the workers is gone, and no step can end any more."""
        return

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Start a step; the future gives its record as JSON."""
        ...

    def stop(self) -> None:
        """End the worker and what it runs."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Hand the steps that start meanwhile, on any worker of the kind, over as one where that is better."""
        return nullcontext()


class LocalWorker(Worker):
    """A process of this machine, started with its first step and again after it died.

    Args:
        device: the number of its GPU; None: none, or all.
        threads: threads of its matrix products.
        light: whether it takes only steps that need no GPU.
    """

    died: tuple[type[BaseException], ...] = DIED

    def __init__(self, device: int | None, threads: int, light: bool = False) -> None:
        self.base, self.light = "", light
        self._settings = {"OMP_NUM_THREADS": str(threads)}
        if device is not None or light:
            self._settings["CUDA_VISIBLE_DEVICES"] = "" if device is None else str(device)
        self._pool: ProcessPoolExecutor | None = None
        self._future: Future[str] | None = None

    def is_ready(self) -> bool:
        """Return whether a step would start now: a process starts with its step."""
        return True

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Start a step in the process."""
        self.base = step.base or self.base
        if self._pool is None or (
            self._future and isinstance(self._future.exception(timeout=0), BrokenProcessPool)
        ):
            self._pool = ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self._settings,)
            )
        self._future = self._pool.submit(perform_json, json.dumps(asdict(step)), str(folder), str(home))
        return self._future

    def stop(self) -> None:
        """End the process, and the step that it runs."""
        if self._pool is None:
            return
        running = self._future is not None and not self._future.done()
        for process in list((self._pool._processes or {}).values()) if running else ():
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


class Here(Worker):
    """This process: steps run one after another, so that a debugger sees them."""

    died: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self.base = ""

    def is_ready(self) -> bool:
        """Return whether a step would start now."""
        return True

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Run a step to its end.

        Raises:
            KeyboardInterrupt: interrupted.
        """
        self.base = step.base or self.base
        future: Future[str] = Future()
        try:
            future.set_result(perform_json(json.dumps(asdict(step)), str(folder), str(home)))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing is left to end."""


def local(count: int | None, light: int = 0) -> list[LocalWorker]:
    """Return workers for this machine.

    Args:
        count: how many; None: one for each GPU, or one for each two cores.
        light: steps that need no GPU; at most as many workers as the others are take them.
    """
    gpus = _gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = count or gpus or max(1, cores // 2)
    threads = max(1, cores // number)
    workers = [LocalWorker(place % gpus if gpus else None, threads) for place in range(number)]
    return workers + [LocalWorker(None, 1, light=True) for _ in range(min(number, light))]


def _gpus() -> int:
    """Count the GPUs without importing torch."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([one for one in shown.split(",") if one.strip()])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    told = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def _begin(settings: dict[str, str]) -> None:
    """Prepare a worker's process: settings stand before torch is imported; the sweep itself handles interrupts."""
    os.environ.update(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A spawned process spawns its own by default, and then every lock is a named semaphore: tqdm's would outlive a
    # stopped worker until Python's resource tracker warns of it. The platform's default is what a command has alone.
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(sweep: int) -> None:
    """End this process when the sweep's is gone, killed perhaps: the next run would do the same step beside it."""
    while os.getppid() == sweep:
        time.sleep(_LOOK_AGAIN)
    os._exit(1)
