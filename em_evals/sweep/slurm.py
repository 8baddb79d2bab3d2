"""Workers on Slurm: each step a job, through submitit. The command that started the sweep waits, and goes on later."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.sweep.perform import perform_json
from em_evals.sweep.steps import Step


class JobLostError(Exception):
    """A job ended without a result: cancelled, out of memory, or its node died."""


class SlurmWorker:
    """A place in the queue: one job at a time.

    Args:
        executor: submitit's.
    """

    died: tuple[type[BaseException], ...] = (JobLostError,)

    def __init__(self, executor: Any) -> None:
        self.base = ""
        self._executor = executor
        self._job: Any = None

    def is_ready(self) -> bool:
        """Return whether a step would start now: a job may always be queued."""
        return True

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Submit a job."""
        job = self._job = self._executor.submit(
            perform_json, json.dumps(asdict(step)), str(folder), str(home)
        )
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=_watch, args=(job, future), daemon=True).start()
        return future

    def stop(self) -> None:
        """Cancel the job that runs."""
        if self._job is not None and not self._job.done():
            self._job.cancel()


def connect(
    folder: Path, count: int | None, options: dict[str, Any], cluster: str = "slurm"
) -> list[SlurmWorker]:
    """Return places in Slurm's queue.

    Args:
        folder: the sweep's; jobs' scripts and output land in its `.slurm`.
        count: jobs at once; None: 64.
        options: submitit's parameters (`timeout_min`, `slurm_partition`, `gpus_per_node`, `cpus_per_task`, `mem_gb`).
        cluster: submitit's name of the scheduler; `local` runs jobs as processes, to try a plan.

    Raises:
        EmEvalsError: there is no Slurm here, or an option is unknown.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder.absolute() / ".slurm", cluster=cluster)
        executor.update_parameters(**options)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise EmEvalsError(f"submitit cannot use Slurm here: {str(error).splitlines()[0][:300]}") from None
    return [SlurmWorker(executor) for _ in range(count or 64)]


def _watch(job: Any, future: Future[str]) -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        future.set_result(job.result())
    except (UncompletedJobError, FailedJobError) as error:
        future.set_exception(JobLostError(str(error).splitlines()[0]))
    except BaseException as error:
        future.set_exception(error)
