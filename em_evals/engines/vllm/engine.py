"""The vLLM engine: draws over HTTP from a local server of our own, or from a remote one.

The local server starts with the first draw, for every variant that was reserved by then (`reserve`): on a CPU one
adapter that all share is merged into the weights (vLLM compiles nothing with LoRAs there), several are served as LoRAs.
A later variant that needs more than the server has (a larger rank, steering) makes it restart, once the draws in flight
are done. A start that fails is an error for every draw that waited for it. A server that dies is restarted and its
draws are repeated: their seeds make them the same.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from em_evals.content.cards import ModelCard
from em_evals.content.intervention import Intervention
from em_evals.engines.protocol import Draw, Request, no_activations
from em_evals.engines.vllm import package, thoughts, wire
from em_evals.engines.vllm import server as vllm_server
from em_evals.engines.vllm.client import API_KEY, Client
from em_evals.engines.vllm.remotes import LostError, Remotes
from em_evals.engines.vllm.server import Server
from em_evals.engines.vllm.variants import Plan, Variant, plan, variant
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.lora import written

if TYPE_CHECKING:
    from em_evals.engines.hf.loaded import Loaded

Result = TypeVar("Result")

_CONNECTIONS = 512
"""Limit: many machines allow 1,024 open files per process. Twice the rows of a batch keeps vLLM busy."""
_WATCH_SECONDS = 2
_OTHER_MODEL, _RENAMED = (404, 409), 4
"""Statuses of a remote server that has no such model any more, and how often a draw looks for the model again."""
_DEATHS = 3
"""Deaths in a row, without a draw in between, before the engine gives up."""


class VLLMEngine:
    """A base on a vLLM server. See `models.engine.Engine`.

    Args:
        card: names the base, how to load it, and where the server is (`backend: server`).
        api_key: of a remote server; None: from EM_EVALS_API_KEY.
    """

    def __init__(self, card: ModelCard, api_key: str | None = None) -> None:
        self._card = card
        self._remote = bool(card.servers)
        if not self._remote and (reason := package.unusable()):
            raise EmEvalsError(f"{reason}; or say `backend: transformers` in the card.")
        self.tokenizer = bases.load_tokenizer(card)
        key = api_key or os.environ.get(API_KEY) or "none"
        self._remotes = Remotes(card, key) if self._remote else None
        self._known: dict[str, Variant] = {}
        self._identities: dict[Any, Variant] = {}
        self._server: Server | None = None
        self._client: Client | None = None
        self._context = bases.context_length(card)
        self._deaths = 0
        self._in_flight = 0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._starting = asyncio.Lock()
        self._start: asyncio.Task[None] | None = None
        self._given_up = threading.Event()
        self._failures, self._failure = 0, EmEvalsError("")
        rows = card.engine.max_num_seqs * (card.engine.data_parallel_size or 1)
        self._places = asyncio.Semaphore(min(2 * rows, _CONNECTIONS))
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"em-evals {card.base}", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    @property
    def model_len(self) -> int:
        """Maximum tokens of prompt and draw together; a remote server is queried, it may allow less than the base.

        Raises:
            EmEvalsError: it cannot be queried.
        """
        if self._remotes and not self._served_len() and not self._closed:
            asyncio.run_coroutine_threadsafe(self._remotes.ask(), self._loop).result()
        return min(self._context, self._served_len() or self._context)

    def _served_len(self) -> int:
        asked = self._remotes or self._client
        return asked.model_len if asked is not None else 0

    @property
    def scored_len(self) -> int:
        """Maximum tokens of a prompt that is only scored: vLLM draws one token all the same."""
        return self.model_len - 1

    def reserve(self, adapter: str | None, interventions: tuple[Intervention, ...]) -> None:
        """Reserve capacity for draws of this model before the server starts."""
        one = self._variant(adapter, interventions)
        self._known[one.key] = one

    def submit(self, request: Request) -> Future[Draw]:
        """Queue a draw; see `Engine.submit`."""
        if self._closed:
            raise EmEvalsError("this engine is closed; make a new one.")
        return asyncio.run_coroutine_threadsafe(self._draw(request), self._loop)

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Draw]]:
        """Queue draws; the server batches them as they arrive."""
        return [self.submit(request) for request in requests]

    def close(self) -> None:
        """Stop the server and fail what is still queued."""
        if self._closed:
            return
        self._closed = True
        self._given_up.set()
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._server is not None:
            self._server.stop()

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task(), self._start}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._start is not None:  # a start that was given up ends by itself and leaves no server behind
            await asyncio.gather(self._start, return_exceptions=True)
        if self._client is not None:
            await self._client.http.aclose()
        if self._remotes is not None:
            await self._remotes.close()

    def activations(
        self, adapter: str | None = None, interventions: Sequence[Intervention] = ()
    ) -> AbstractContextManager[Loaded]:
        """Refuse: the model is in a server's processes; see `Engine.activations`."""
        raise no_activations("server" if self._remote else "vllm")

    # The server

    def _variant(self, adapter: str | None, interventions: tuple[Intervention, ...]) -> Variant:
        """Return the variant of a request; a retrained adapter or a rewritten direction is another one."""
        done = tuple(one.digest for one in interventions)
        identity = (adapter, written(adapter) if adapter else 0, done)
        if identity not in self._identities:
            self._identities[identity] = variant(self._card, adapter, interventions)
        return self._identities[identity]

    @property
    def plan(self) -> Plan | None:
        """The plan of the engine's own server; None while there is none."""
        return self._server.plan if self._server is not None else None

    @asynccontextmanager
    async def _serving(self, one: Variant, failures: int) -> AsyncIterator[tuple[Client, str]]:
        """Yield a client of a server that serves a variant, and its name there; the server stays up meanwhile.

        Args:
            one: the variant.
            failures: failed starts before the draw was requested; a start that fails later fails the draw.
        """
        if self._remotes is not None:
            async with self._remotes.serving(one.key) as found:
                yield found
            return
        async with self._starting:
            try:
                name = await self._name(one, failures)
            except httpx.TransportError as error:
                raise LostError(self._server) from error
            client, server = self._client, self._server
            assert client is not None  # noqa: S101 - a server that runs has a client
            self._in_flight += 1
        try:
            yield client, name
        except httpx.TransportError as error:
            raise LostError(server) from error
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _name(self, one: Variant, failures: int) -> str:
        self._known[one.key] = one
        while (
            self._start
            is not None  # begun for a draw that was cancelled; the current server is about to be replaced
            or self._server is None
            or not self._server.alive
            or not self._server.plan.covers(one)
        ):
            if self._failures > failures:
                raise self._failure
            if self._start is None:
                async with self._changed:
                    await self._changed.wait_for(lambda: not self._in_flight)
                self._start = asyncio.create_task(self._started())
            # A cancelled draw must not cancel the start for the others.
            await asyncio.shield(self._start)
        assert self._client is not None  # noqa: S101 - a server that runs has a client
        if one.key not in self._client.names:
            await asyncio.to_thread(self._server.add, one.key, one)
            self._client.names[one.key] = one.key
        return one.key

    async def _started(self) -> None:
        """Start a server for all known variants, in place of the current one."""
        known = list(self._known.values())
        try:
            on_cpu = bases.choose_device(self._card.engine.device).type == "cpu"
            wanted = plan(known, self._card.engine.max_loras, merge=on_cpu)
            merged = next((one.adapter for one in known if one.adapter_key == wanted.merged), None)
            if self._client is not None:
                await self._client.http.aclose()
                self._client = None
            if self._server is not None:
                await asyncio.to_thread(self._server.stop)
                self._server = None
            server = await _in_daemon_thread(
                lambda: vllm_server.start(
                    self._card, wanted, merged if wanted.merged else None, given_up=self._given_up
                )
            )
            client = Client(self._card, server)
            try:
                await client.learn()
            except BaseException as error:
                await client.http.aclose()
                await asyncio.to_thread(server.stop)
                if isinstance(error, httpx.TransportError):
                    raise EmEvalsError(
                        f"the vLLM server died at its start: {vllm_server.cause(server.log)}", server.log
                    ) from None
                raise
            self._server, self._client = server, client
            self._watcher = asyncio.create_task(self._watch(server))
        except (EmEvalsError, OSError) as error:  # OSError: a full disk while an adapter is merged
            if isinstance(error, OSError):
                error = EmEvalsError(f"the vLLM server cannot be started ({error}).")
            self._failures, self._failure = self._failures + 1, error
            raise error from None
        finally:
            self._start = None

    async def _watch(self, server: Server) -> None:
        """Kill a server whose engine has died: vLLM's front end may wait forever for its answers."""
        async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
            while server.alive:
                await asyncio.sleep(_WATCH_SECONDS)
                try:
                    well = (await client.get(f"{server.url}/health")).status_code == 200
                except httpx.TransportError:
                    well = False
                if not well:
                    await asyncio.to_thread(server.stop, 0)

    # Draws

    async def _draw(self, request: Request) -> Draw:
        if not request.prompt:
            raise EmEvalsError("the prompt is empty: there is no token to continue.")
        failures = self._failures
        one = await asyncio.to_thread(self._variant, request.adapter, request.interventions)
        async with self._places:
            if request.thought is None:
                return await self._drawn(request, one, failures)
            drawn = await self._drawn(thoughts.first(request), one, failures)
            more = thoughts.second(self.tokenizer, request, drawn)
            answer = None if more is None else await self._drawn(more, one, failures)
            return thoughts.joined(self.tokenizer, request, drawn, answer)

    async def _drawn(self, request: Request, one: Variant, failures: int) -> Draw:
        """Repeat the draw until a server finishes it."""
        for tries in count(1):
            try:
                async with self._serving(one, failures) as (client, name):
                    room = (client.model_len or self._context) - len(request.prompt)
                    if room <= 0:
                        return Draw("", [], "model_length")
                    asked = wire.body(self.tokenizer, request, name, room)
                    answer = await client.http.post(
                        "/v1/completions", json=asked, headers=client.headers(one.key)
                    )
                    if answer.status_code >= 500 and await client.ending():
                        raise httpx.RemoteProtocolError("its engine died")
            except LostError as lost:
                await self._replace(lost, tries)
                continue
            if self._remotes and answer.status_code in _OTHER_MODEL and tries <= _RENAMED:
                client.names.clear()  # the server was started again with other cards
                continue
            if answer.status_code != 200:
                raise EmEvalsError(vllm_server.error_of(answer))
            self._deaths = 0
            return wire.read(self.tokenizer, request, answer.json()["choices"][0], room)
        raise AssertionError

    async def _replace(self, lost: LostError, tries: int) -> None:
        """Give up a lost server, so that the next draw starts one. A remote server is not ours to start.

        Raises:
            EmEvalsError: no remote one is left, or ours dies again and again.
        """
        if self._remotes is not None:
            self._remotes.lost(lost, tries)
            return
        async with self._starting:
            if self._server is not lost.server or self._server is None:
                return  # another draw that lost it has done this
            server, self._server = self._server, None
            await asyncio.to_thread(server.stop)
            self._deaths += 1
            if self._deaths >= _DEATHS:
                self._deaths = 0
                raise EmEvalsError(
                    f"the vLLM server died {_DEATHS} times without a draw: {vllm_server.cause(server.log)}",
                    server.log,
                )


async def _in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Run in a thread that the interpreter does not wait for at exit, unlike an executor's."""
    done: Future[Result] = Future()

    def run() -> None:
        # An error is passed to the awaiting task through the future.
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, name="em-evals vllm start", daemon=True).start()
    return await asyncio.wrap_future(done)
