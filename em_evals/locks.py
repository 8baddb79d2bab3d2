"""One process at a time on one output: a second one waits, and then finds what the first has measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from em_evals.errors import EmEvalsError


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of an output; wait, and report it on stderr, while another process holds it.

    The kernel frees the lock of a process that ends, however it ends.

    Args:
        path: the output. The lock is a hidden file beside it.

    Raises:
        EmEvalsError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    place = path.with_name(f".{path.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is working on {path.name}; waiting for it.", file=sys.stderr)  # noqa: T201
            lock.acquire()
    except OSError as error:
        raise EmEvalsError(
            f"cannot write here ({error.strerror or error}); free or choose another place.", path
        ) from None
    try:
        yield
    finally:
        lock.release()
