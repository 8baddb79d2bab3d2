"""Workers on Slurm, through submitit: each step a job, steps that start at once a job array.

The command that started the sweep waits, and goes on later.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.sweep.perform import perform_json
from em_evals.sweep.steps import Step
from em_evals.sweep.workers import Worker


class JobLostError(Exception):
    """A job ended without a result: cancelled, out of memory, or its node died."""


class Submissions:
    """Submits jobs; those that are submitted together become one job array.

    Args:
        executor: submitit's.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._waiting: list[tuple[Any, Future[str]]] | None = None

    def submit(self, *arguments: str) -> tuple[Any, Future[str]]:
        """Return a job that performs a step, and the future of its record."""
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        job = self._executor.submit(perform_json, *arguments)
        if self._waiting is None:
            _watch_from_aside(job, future)
        else:
            self._waiting.append((job, future))
        return job, future

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold jobs back, and submit them at the end; if Slurm refuses them, all of them are lost."""
        from submitit.core.utils import FailedJobError

        self._waiting = []
        try:
            with self._executor.batch():
                yield
        except FailedJobError as error:
            for _, future in self._waiting:
                future.set_exception(JobLostError(str(error).splitlines()[0]))
            self._waiting = []
        finally:
            waiting, self._waiting = self._waiting, None
        for job, future in waiting:
            _watch_from_aside(job, future)


class SlurmWorker(Worker):
    """A place in the queue: one job at a time.

    Args:
        submissions: those of all places of its kind.
        light: whether it takes only steps that need no GPU.
    """

    died: tuple[type[BaseException], ...] = (JobLostError,)

    def __init__(self, submissions: Submissions, light: bool = False) -> None:
        self.base, self.light = "", light
        self._submissions = submissions
        self._job: Any = None
        self._future: Future[str] = Future()

    def is_ready(self) -> bool:
        """Return whether a step would start now: a job may always be queued."""
        return True

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Submit a job."""
        self._job, self._future = self._submissions.submit(json.dumps(asdict(step)), str(folder), str(home))
        return self._future

    def stop(self) -> None:
        """Cancel the job that runs."""
        # A job that Slurm refused has no state to ask for.
        if self._job is not None and not self._future.done() and not self._job.done():
            self._job.cancel()

    def together(self) -> AbstractContextManager[None]:
        """Submit the steps that start meanwhile as one job array."""
        return self._submissions.together()


def connect(
    folder: Path, count: int | None, options: dict[str, Any], cluster: str = "slurm", light: int = 0
) -> list[SlurmWorker]:
    """Return places in Slurm's queue.

    Args:
        folder: the sweep's; jobs' scripts and output land in its `.slurm`.
        count: jobs at once; None: 64.
        options: submitit's parameters (`timeout_min`, `slurm_partition`, `gpus_per_node`, `cpus_per_task`, `mem_gb`);
            those under `light` are for steps that need no GPU, which get the others but GPUs.
        cluster: submitit's name of the scheduler; `local` runs jobs as processes, to try a plan.
        light: steps that need no GPU; at most as many places as the others are take them.

    Raises:
        EmEvalsError: there is no Slurm here, or an option is unknown.
    """
    own = options.get("light") or {}
    heavy = {key: value for key, value in options.items() if key != "light"}
    if not isinstance(own, dict):
        raise EmEvalsError("--slurm light=…: write light.KEY=VALUE.")
    number = count or 64
    submissions = _submissions(folder, heavy, cluster)
    workers = [SlurmWorker(submissions) for _ in range(number)]
    if light:
        without = {key: value for key, value in heavy.items() if "gpu" not in key and key != "slurm_gres"}
        apart = _submissions(folder, without | own, cluster)
        workers += [SlurmWorker(apart, light=True) for _ in range(min(number, light))]
    return workers


def _submissions(folder: Path, options: dict[str, Any], cluster: str) -> Submissions:
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder.absolute() / ".slurm", cluster=cluster)
        executor.update_parameters(**options)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise EmEvalsError(f"submitit cannot use Slurm here: {str(error).splitlines()[0][:300]}") from None
    return Submissions(executor)


def _watch_from_aside(job: Any, future: Future[str]) -> None:
    threading.Thread(target=_watch, args=(job, future), daemon=True).start()


def _watch(job: Any, future: Future[str]) -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        future.set_result(job.result())
    except (UncompletedJobError, FailedJobError) as error:
        future.set_exception(JobLostError(str(error).splitlines()[0]))
    except BaseException as error:
        future.set_exception(error)
