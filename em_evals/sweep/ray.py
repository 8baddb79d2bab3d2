"""Workers on a Ray cluster: actors that Ray places, restarts after a node's death, and starts when nodes come up."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.sweep.perform import perform_json
from em_evals.sweep.steps import Step
from em_evals.sweep.workers import Worker

SILENT = 20.0
"""Seconds without an answer of the head after which it is gone. Ray's own limit is 60, and ends the process."""
_ANSWERS_IN = 2.0
"""Seconds to wait for one answer."""


@dataclass(frozen=True)
class Request:
    """What one worker needs; Ray's own units.

    Attributes:
        cpus: cores.
        gpus: GPUs; a base that is split over several needs as many.
        memory: bytes of main memory; 0: not asked for.
    """

    cpus: float = 2
    gpus: float = 0
    memory: int = 0


class Head:
    """The process of the cluster's first node that places all workers. Without it nothing new is placed.

    Args:
        address: HOST:PORT where it answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._answered = time.monotonic()

    def answers(self) -> bool:
        """Return whether it takes connections now. Calls of Ray would wait for it, some without an end."""
        try:
            socket.create_connection(self._place, timeout=_ANSWERS_IN).close()
        except OSError:
            return False
        self._answered = time.monotonic()
        return True

    def check(self) -> None:
        """Refuse to go on without it.

        Raises:
            EmEvalsError: it has been silent for `SILENT` seconds.
        """
        if time.monotonic() - self._answered < _ANSWERS_IN or self.answers():
            return
        if time.monotonic() - self._answered > SILENT:
            raise EmEvalsError(
                f"the head of the Ray cluster ({self.address}) has not answered for {SILENT:.0f} seconds; "
                "start the cluster again."
            )


class RayWorker(Worker):
    """An actor. It keeps the bases that it has loaded, as a local process does.

    Args:
        make: starts an actor; called again when one is lost.
        died: Ray's errors for a lost process or node.
        head: the cluster's.
        light: whether it takes only steps that need no GPU.
    """

    def __init__(
        self, make: Callable[[], Any], died: tuple[type[BaseException], ...], head: Head, light: bool = False
    ) -> None:
        self.base, self.light = "", light
        self.died = died
        self._head = head
        self._make = make
        self._actor = make()
        self._here = self._actor.is_here.remote()
        self._last: Future[str] | None = None

    def is_ready(self) -> bool:
        """Return whether Ray has placed the actor; a lost one is asked for again, wherever there is a place."""
        import ray

        if self._last is not None and isinstance(self._last.exception(timeout=0), self.died):
            return self._replace()
        if not ray.wait([self._here], timeout=0)[0]:
            return False
        try:
            ray.get(self._here)
        except self.died:
            return self._replace()
        return True

    def check(self) -> None:
        """Refuse to go on with a cluster whose head is gone.

        Raises:
            EmEvalsError: it is.
        """
        self._head.check()

    def sees(self, path: Path) -> Any:
        """Ask the actor's node whether it sees a file; Ray's reference of the answer."""
        return self._actor.sees.remote(str(path))

    def start(self, step: Step, folder: Path, home: Path) -> Future[str]:
        """Start a step in the actor."""
        self.base = step.base or self.base
        asked = self._actor.perform.remote(json.dumps(asdict(step)), str(folder), str(home))
        future: Future[str] = asked.future()
        self._last = future
        return future

    def stop(self) -> None:
        """End the actor and what it runs."""
        import ray

        if ray.is_initialized() and self._head.answers():
            ray.kill(self._actor)

    def _replace(self) -> bool:
        """Ask for another actor, if somebody can place it; it is not ready yet."""
        if self._head.answers():
            self._last = None
            self._actor = self._make()
            self._here = self._actor.is_here.remote()
        return False


def connect(
    address: str | None, request: Request, count: int | None, folder: Path | None, light: int = 0
) -> list[RayWorker]:
    """Join a cluster and start workers.

    Args:
        address: `ray://HOST:PORT`, `HOST:PORT`, or None for the cluster that this machine belongs to; where there is
            none, Ray starts one on this machine.
        request: what each worker needs.
        count: how many; None: as many as the cluster holds now.
        folder: the sweep's; every node must see it under the same path. None: nodes have folders of their own.
        light: steps that need no GPU; at most as many workers as the others are take them, and reserve nothing.

    Raises:
        EmEvalsError: Ray cannot be reached, no node can hold a worker, or a node does not see the folder.
    """
    import ray
    from ray import exceptions

    number = joined(address, request, count)
    # A step whose node died is started again by the sweep, which counts the tries.
    actor = partial(ray.remote(_Performer).options, max_restarts=0, max_task_retries=0)
    kind = actor(num_cpus=request.cpus, num_gpus=request.gpus, memory=request.memory or None)
    died = (
        exceptions.RayActorError,
        exceptions.ActorUnschedulableError,
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
    )
    head = Head(address.removeprefix("ray://") if address else ray.get_runtime_context().gcs_address)
    workers = [RayWorker(kind.remote, died, head) for _ in range(number)]
    for place in range(min(number, light)):
        make = partial(_make_light, partial(actor, num_cpus=0, num_gpus=0), place)
        workers.append(RayWorker(make, died, head, light=True))
    if folder is not None:
        _check_seen(workers, folder)
    return workers


def _make_light(actor: Callable[..., Any], place: int) -> Any:
    """Start an actor that only waits and reads; on a node that takes work, which a cluster's head may not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [one["NodeID"] for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU")]
    if not nodes:
        return actor().remote()
    where = NodeAffinitySchedulingStrategy(sorted(nodes)[place % len(nodes)], soft=False)
    return actor(scheduling_strategy=where).remote()


def joined(address: str | None, request: Request, count: int | None) -> int:
    """Join a cluster as `connect` does, and return how many workers to start.

    Raises:
        EmEvalsError: Ray cannot be reached, or no node can hold a worker.
    """
    import ray

    if not ray.is_initialized():
        _join(address)
    number = count or _fits(ray.nodes(), request)
    if number < 1:
        raise EmEvalsError(
            f"no node of the cluster has what a worker asks for ({request.cpus:g} cores, {request.gpus:g} GPUs); "
            "lower --cpus or --gpus."
        )
    return number


class _Performer:
    """The actor's code."""

    def perform(self, step: str, folder: str, home: str) -> str:
        return perform_json(step, folder, home)

    def sees(self, path: str) -> bool:
        return Path(path).is_file()

    def is_here(self) -> bool:
        return True


def _join(address: str | None) -> None:
    """Join the cluster; without an address, the one that this machine belongs to, or one that Ray starts here.

    Raises:
        EmEvalsError: no cluster answers.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address is not None:
                raise
            ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise EmEvalsError(f"no Ray cluster answers at {address or 'this machine'}: {reason}") from None


def _fits(nodes: list[dict[str, Any]], request: Request) -> int:
    """Count the workers that the living nodes hold."""
    wanted = {"CPU": request.cpus, "GPU": request.gpus, "memory": request.memory}
    return sum(
        min(int(node["Resources"].get(name, 0) // each) for name, each in wanted.items() if each)
        for node in nodes
        if node["Alive"]
    )


def _check_seen(workers: list[RayWorker], folder: Path) -> None:
    """Refuse a folder that a worker's node does not see."""
    import ray

    token = folder / f".seen-{secrets.token_hex(4)}"
    with files.atomic(token) as temporary:
        temporary.write_text("", encoding="utf-8")
    try:
        # Workers for which there is no node yet are not waited for: they check nothing, and fail by themselves.
        asked = [one.sees(token.absolute()) for one in workers]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=60)
        if not all(ray.get(ready)):
            raise EmEvalsError(
                "a node of the cluster does not see this folder; choose one that all share, or a --store.",
                folder,
            )
    finally:
        token.unlink(missing_ok=True)
