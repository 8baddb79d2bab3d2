"""Options of commands that run on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.sweep.ray import Request

Where = Annotated[str, typer.Option(help="Where rows are read: here (this process), ray, ray://HOST:PORT.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray: workers (default: what the cluster holds).")]
Cpus = Annotated[float, typer.Option(min=0.1, help="Ray: cores of a worker.")]
Gpus = Annotated[float, typer.Option(min=0, help="Ray: GPUs of a worker.")]


def is_ray(on: str) -> bool:
    """Return whether `--on` names a Ray cluster: `ray`, or `ray://HOST:PORT`."""
    return on == "ray" or on.startswith("ray://")


def asked(on: str, cpus: float, gpus: float) -> tuple[str | None, Request] | None:
    """Return what `requested` does, and None for this process.

    Raises:
        EmEvalsError: `on` is neither.
    """
    if on == "here":
        return None
    if not is_ray(on):
        raise EmEvalsError(f"--on {on}: choose here, ray or ray://HOST:PORT.")
    return requested(on, cpus, gpus)


def requested(on: str, cpus: float, gpus: float) -> tuple[str | None, Request]:
    """Return the cluster's address (None: the one that this machine belongs to) and what a worker needs."""
    from em_evals.sweep.ray import Request

    return (on if on != "ray" else None), Request(cpus, gpus)
