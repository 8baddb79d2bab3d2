"""How many requests run at once: a count for each key."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

MAX_REQUESTS = "EM_EVALS_MAX_REQUESTS"
"""Environment variable: how many requests with one key may run at once."""
DEFAULT_REQUESTS = 2048


ENDING = "this server is ending, and takes no further requests: ask another, or this one later."


class BusyError(Exception):
    """As many requests run as are allowed, or the server is ending; the text says what to do."""


class Running:
    """The requests that run now; the environment says how many of one key may."""

    def __init__(self) -> None:
        self.most = int(os.environ.get(MAX_REQUESTS) or DEFAULT_REQUESTS)
        self.counts: Counter[str] = Counter()
        """By the digest of the key."""
        self.closed = False
        """Whether no further request is taken."""

    @contextmanager
    def one(self, key: bytes) -> Iterator[None]:
        """Count a request while it runs.

        Raises:
            BusyError: no further one of this key may run.
        """
        if self.closed:
            raise BusyError(ENDING)
        name = hashlib.sha256(key).hexdigest()
        if self.counts[name] >= self.most:
            raise BusyError(
                f"{self.most} requests with this key run already, the most that this server allows "
                "(`em-evals serve --max-requests`): send this one again later."
            )
        self.counts[name] += 1
        try:
            yield
        finally:
            self.counts[name] -= 1
