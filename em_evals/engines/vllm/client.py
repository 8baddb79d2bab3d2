"""A client of a vLLM server, ours or a remote one: what it serves, under which names, and how long texts may be."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from em_evals.content import adapter_folders
from em_evals.content.cards import ModelCard
from em_evals.engines.vllm.app import BASE_ROUTE, STAMP
from em_evals.engines.vllm.meant import stamp
from em_evals.engines.vllm.server import Server, error_of
from em_evals.engines.vllm.variants import BARE
from em_evals.errors import EmEvalsError

API_KEY = "EM_EVALS_API_KEY"
"""Environment variable: the API key of a remote server."""


class NoServerError(EmEvalsError):
    """Nothing answers at an address."""


class Client:
    """HTTP connections to a server, and what it was last found to serve.

    Args:
        card: names the base and, for a remote server, its address.
        server: ours; None for a remote one.
        api_key: of a remote server.
        url: of a remote server; default: the card's first.

    Attributes:
        url: the server's address.
        http: the connections.
        names: the server's name of each variant, by the variant's key; of our own server, those added so far.
        model_len: maximum tokens of prompt and draw together; 0 until it is known.
    """

    def __init__(
        self, card: ModelCard, server: Server | None = None, api_key: str = "", url: str | None = None
    ) -> None:
        self._card, self._own = card, server is not None
        self.url = server.url if server is not None else str(url or card.servers[0]).rstrip("/")
        key = server.key if server is not None else api_key
        self._listed: list[str] = []
        self.names: dict[str, str] = {}
        self._stamps: dict[str, str] = {}
        self.model_len = 0
        self.http = httpx.AsyncClient(
            base_url=self.url.removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=30),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=not self._own,  # the environment's proxy does not lead to this machine
        )

    async def learn(self) -> None:
        """Query what is served.

        Raises:
            EmEvalsError: the server refuses, or a remote one cannot be reached.
            httpx.TransportError: our own server cannot be reached.
        """
        try:
            answer = await self.http.get("/v1/models")
        except httpx.TransportError as error:
            if self._own:
                raise
            raise NoServerError(
                f"there is no server at {self.url} ({error}): start one with `em-evals serve`."
            ) from None
        if answer.status_code != 200:
            hint = f" Set {API_KEY} to its key." if answer.status_code == 401 else ""
            raise EmEvalsError(f"the server at {self.url} refuses: {error_of(answer)}{hint}")
        if self._own:
            told = await self.http.get(BASE_ROUTE)
            self.model_len = int(told.json()["max_model_len"])
        else:
            self._read(answer.json()["data"])

    def _read(self, models: list[dict[str, Any]]) -> None:
        self._listed = [str(entry["id"]) for entry in models]
        self.names = {}
        for entry in models:
            ours = entry.get("em_evals")
            root = str(ours["base"] if ours else entry.get("root") or entry["id"])
            if not adapter_folders.same_base(root, self._card.base):
                continue
            # A server without our cards serves its base as it is.
            self.names[ours["key"] if ours else BARE.key] = str(entry["id"])
            if ours:
                self._stamps[ours["key"]] = stamp(ours["key"], root)
            self.model_len = int(entry.get("max_model_len") or 0) or self.model_len

    def headers(self, key: str) -> dict[str, str]:
        """Return what a request sends along, so that a server which has another model under that name refuses it."""
        return {STAMP: self._stamps[key]} if key in self._stamps else {}

    async def name(self, key: str) -> str:
        """Return a remote server's name of a variant; queries again, since it may have been added.

        Raises:
            EmEvalsError: it serves no such variant, or cannot be queried.
        """
        if key not in self.names:
            await self.learn()
        if key not in self.names:
            raise EmEvalsError(
                f"the server at {self.url} serves {', '.join(self._listed) or 'nothing'}, and none of them is "
                f"this card on {self._card.base} (adapter, interventions and base are compared by content): start it "
                "with `em-evals serve CARD`."
            )
        return self.names[key]

    async def ending(self) -> bool:
        """Check whether the server is ending: vLLM answers 500 to requests in flight when its engine died."""
        for _ in range(10):
            # A broken connection raises: callers treat that as the server's end too.
            if (await self.http.get("/health")).status_code != 200:
                return True
            await asyncio.sleep(0.1)
        return False
