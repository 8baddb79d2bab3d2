"""The running servers that a card names (`backend: server`): each request goes to one that serves its model.

The one with the fewest requests of this process is asked. A server that breaks a connection, or that is ending, is
left alone for a while, and its requests are repeated on another: their seeds make them the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from em_evals.content.cards import ModelCard
from em_evals.engines.vllm.client import Client, NoServerError
from em_evals.errors import EmEvalsError

_AWAY_SECONDS, _LONGEST_AWAY = 10.0, 600.0
"""How long a lost server is not asked while others answer; twice as long after each further loss."""
_TRIES = 2
"""How often a request may be lost for each server that there is."""


class LostError(Exception):
    """The connection to a server broke with a request in flight.

    Attributes:
        server: a server of ours, or the client of another.
    """

    def __init__(self, server: object) -> None:
        super().__init__()
        self.server = server


class Remotes:
    """Servers that others run.

    Args:
        card: names the base and the addresses.
        api_key: of all servers.
    """

    def __init__(self, card: ModelCard, api_key: str) -> None:
        self._clients = [Client(card, api_key=api_key, url=url) for url in card.servers]
        self._busy = dict.fromkeys(self._clients, 0)
        self._away: dict[Client, tuple[float, float]] = {}  # seconds, and until when
        self._choosing = asyncio.Lock()

    @property
    def model_len(self) -> int:
        """Maximum tokens of prompt and draw together; 0 until it is known."""
        return next((one.model_len for one in self._clients if one.model_len), 0)

    async def ask(self) -> None:
        """Query a server's limits, if that has not been done.

        Raises:
            EmEvalsError: no server answers.
        """
        failed: EmEvalsError | None = None
        async with self._choosing:
            for client in [] if self.model_len else self._in_turn():
                try:
                    await client.learn()
                    return
                except NoServerError as error:
                    failed = error
                    self._leave(client)
        if failed is not None:
            raise failed

    @asynccontextmanager
    async def serving(self, key: str) -> AsyncIterator[tuple[Client, str]]:
        """Yield the client of a server that serves a variant, and the variant's name there.

        Raises:
            EmEvalsError: no server does.
            LostError: the connection broke.
        """
        async with self._choosing:
            client, name = await self._chosen(key)
            self._busy[client] += 1
        try:
            yield client, name
        except httpx.TransportError as error:
            raise LostError(client) from error
        finally:
            self._busy[client] -= 1

    def lost(self, error: LostError, tries: int) -> None:
        """Leave a server alone for a while; its names are learned again, since it may come back with other cards.

        Args:
            error: whose server is lost.
            tries: how often this request was lost.

        Raises:
            EmEvalsError: there is no other, or all of them lose this request.
        """
        assert isinstance(error.server, Client)  # noqa: S101 - `serving` made it
        self._leave(error.server)
        count = len(self._clients)
        if count == 1 or tries > _TRIES * count:
            urls = " and ".join(one.url for one in self._clients)
            told = f"server at {urls} does" if count == 1 else f"servers at {urls} do"
            raise EmEvalsError(f"the {told} not answer ({error.__cause__!r}); ask who runs it.")

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.http.aclose()

    def _leave(self, client: Client) -> None:
        client.names.clear()
        seconds = min(2 * self._away.get(client, (_AWAY_SECONDS / 2, 0))[0], _LONGEST_AWAY)
        self._away[client] = (seconds, time.monotonic() + seconds)

    def _in_turn(self) -> list[Client]:
        """Return those that were not lost lately first, the least busy of them before others."""
        now = time.monotonic()
        return sorted(self._clients, key=lambda one: (self._away.get(one, (0, 0))[1] > now, self._busy[one]))

    async def _chosen(self, key: str) -> tuple[Client, str]:
        failed: EmEvalsError | None = None
        for client in self._in_turn():
            try:
                name = await client.name(key)
            except NoServerError as error:
                self._leave(client)
                failed = failed or error
            except EmEvalsError as error:
                # Another may serve it: cards are changed on one server after the other.
                failed = error
            else:
                self._check_length(client)
                self._away.pop(client, None)
                return client, name
        assert failed is not None  # noqa: S101 - a card names at least one server
        raise failed

    def _check_length(self, client: Client) -> None:
        """Refuse servers that end answers at different places: which of them is asked is chance."""
        for other in self._clients:
            if client.model_len and other.model_len and client.model_len != other.model_len:
                raise EmEvalsError(
                    f"{client.url} reads {client.model_len} tokens and {other.url} {other.model_len}: where an answer "
                    "ends would depend on which is asked; start both with the same `engine.max_model_len`."
                )
