"""A few places for many keys: a place is held while its key is in use, and reassigned only when idle.

For adapter slots and tables of interventions, whose contents must not change under a running request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Leases:
    """Places 0 … capacity - 1, for one event loop.

    Args:
        capacity: number of places.
        fill: called with a place and its new key, when the place held another key or none. If it raises, the place is
            empty.
    """

    def __init__(self, capacity: int, fill: Callable[[int, str], Awaitable[None]]) -> None:
        self._fill = fill
        self._places: dict[str, int] = {}  # in the order of last use
        self._users: dict[str, int] = {}
        self._empty = list(range(capacity))[::-1]
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[int]:
        """Yield the key's place, held until the context ends; waits while all places are in use by other keys."""
        place = await self._take(key)
        try:
            yield place
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                async with self._changed:
                    self._changed.notify_all()

    async def _take(self, key: str) -> int:
        async with self._changed:
            while key not in self._places:
                place = self._idle_place()
                if place is None:
                    await self._changed.wait()
                    continue
                try:
                    await self._fill(place, key)
                except BaseException:
                    self._empty.append(place)
                    raise
                self._places[key] = place
            self._users[key] = self._users.get(key, 0) + 1
            self._places[key] = self._places.pop(key)
            return self._places[key]

    def _idle_place(self) -> int | None:
        if self._empty:
            return self._empty.pop()
        for key in self._places:
            if not self._users.get(key):
                self._users.pop(key, None)
                return self._places.pop(key)
        return None
