"""Mutual exclusion for a base: the engine's steps and callers that read activations take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock with priority: a caller that wants to borrow the base comes before the engine's next step.

    Args:
        changed: the engine's condition, on which all wait; held by callers of `free`, `take` and `end`.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._taken = False
        self._wanted = 0

    @property
    def free(self) -> bool:
        """Whether the engine may take the next step."""
        return not self._wanted

    def take(self) -> None:
        """Begin an engine step."""
        self._taken = True

    def end(self) -> None:
        """End an engine step, or the engine itself."""
        self._taken = False
        self._changed.notify_all()

    @contextmanager
    def borrowed(self, refused: Callable[[], Exception | None], ready: Callable[[], bool]) -> Iterator[None]:
        """Wait until the base is `ready` and idle; the engine waits while the context is open.

        Raises:
            Exception: the exception that `refused` returns while waiting, if any.
        """
        with self._changed:
            self._wanted += 1
            try:
                while (error := refused()) is None and (self._taken or not ready()):
                    self._changed.wait()
                if error is not None:
                    raise error
                self._taken = True
            except BaseException:
                self._wanted -= 1
                raise
        try:
            yield
        finally:
            with self._changed:
                self._wanted -= 1
                self.end()
