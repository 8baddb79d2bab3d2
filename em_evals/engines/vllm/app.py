"""Cards as model names on vLLM's OpenAI-compatible server: an ASGI middleware inside the server's process.

A request names a card; here the name is replaced with what vLLM knows: a LoRA, a slot of the steering tables, and a
salt that separates prefixes of different interventions in the prefix cache. The process that started the server
registers cards on a route with a key of its own (PUT /em-evals/models): clients can choose among them, and can neither
load files nor reach an unsteered model by another route.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import AsyncExitStack
from typing import Any

from em_evals import parsing
from em_evals.engines.protocol import Draw, Request
from em_evals.engines.vllm import request_schema, thoughts, wire
from em_evals.engines.vllm.asgi import (
    App,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    authorized,
    body_of,
    called,
    header_of,
    key_of,
    replayed,
    respond,
    respond_in_events,
    with_name,
)
from em_evals.engines.vllm.chat import Chats, events
from em_evals.engines.vllm.chat_messages import about_tools
from em_evals.engines.vllm.leases import Leases
from em_evals.engines.vllm.limits import ENDING, BusyError, Running
from em_evals.engines.vllm.meant import finite, rewrite, stamp
from em_evals.engines.vllm.plugin import PLAN, SLOT
from em_evals.engines.vllm.variants import SETS, Variant, from_json
from em_evals.errors import EmEvalsError, nearest

API_KEY = "VLLM_API_KEY"
"""Environment variable, vLLM's: clients must send this key."""
ADMIN_KEY = "EM_EVALS_ADMIN_KEY"
"""Environment variable: a client with this key may add models."""
BASE = "em-evals-base"
"""vLLM's own name of the base; clients never use it."""
REGISTER, BASE_ROUTE, DRAIN = "/em-evals/models", "/em-evals/base", "/em-evals/drain"
STAMP = "x-em-evals-model"
"""Header of a request: the `stamp` of the model that the name stood for when it was looked up."""

_GENERATE = {"/v1/completions", "/v1/chat/completions"}
_TOKENS = {"/tokenize", "/detokenize"}
_OPEN = {"/health", "/ping", "/version"}


class Cards:
    """The middleware; vLLM creates it (`--middleware`).

    Args:
        app: the rest of vLLM's application.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._admin, self._key = os.environ[ADMIN_KEY], os.environ[API_KEY]
        plan = json.loads(os.environ[PLAN])
        self._base: str = plan["base"]
        self._models: dict[str, Variant] = {}
        self._chats: dict[str, Chats] = {}
        self._by_key: dict[str, Variant] = {}
        self._loras = Leases(plan["loras"], self._load_lora)
        self._sets = Leases(SETS if plan["steps"] else 0, self._write_set)
        self._plan = plan
        self._running = Running()
        self._state: Any = None
        self._lora_ids: dict[int, tuple[int, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one request."""
        if scope["type"] == "websocket":
            return  # no route here uses websockets; returning closes it
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._state = scope["app"].state
        path, method = scope["path"], scope["method"]
        try:
            if path == REGISTER and method == "PUT":
                await self._register(scope, receive, send)
            elif path == DRAIN and method == "PUT":
                await respond(send, 200, {"running": self._drained(scope)})
            elif path in _OPEN and self._running.closed:
                raise RefusedError(503, ENDING)
            elif path not in _OPEN and method != "OPTIONS" and not authorized(scope, self._key):
                raise RefusedError(401, "this server needs its API key (Authorization: Bearer …).")
            elif path == "/v1/models" and method == "GET":
                await self._app(scope, receive, self._listing(send))
            elif path == BASE_ROUTE and method == "GET":
                config = self._state.engine_client.model_config
                await respond(send, 200, {"base": self._base, "max_model_len": config.max_model_len})
            elif path in _GENERATE and method == "POST":
                with self._running.one(key_of(scope)):
                    await self._generate(scope, receive, send)
            elif path in _TOKENS and method == "POST":
                with self._running.one(key_of(scope)):
                    await self._tokens(scope, receive, send)
            elif method in {"GET", "HEAD", "OPTIONS"}:
                await self._app(scope, receive, send)
            else:
                raise RefusedError(404, f"this server answers {' and '.join(sorted(_GENERATE))}; not {path}.")
        except (RefusedError, BusyError) as refused:
            status = (
                refused.status if isinstance(refused, RefusedError) else 503 if self._running.closed else 429
            )
            body = {"error": {"message": str(refused), "type": "em_evals", "code": status}}
            await respond(send, status, body)

    # Models

    async def _register(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add a model under a name; it has been loaded once when this answers 200."""
        if not authorized(scope, self._admin):
            raise RefusedError(403, "only the process that started this server may add models.")
        fields = json.loads(await body_of(receive))
        variant = from_json(fields["variant"])
        chats = None
        if fields.get("asked"):
            try:
                chats = await asyncio.to_thread(Chats, fields["asked"])
            except EmEvalsError as error:
                raise RefusedError(400, str(error)) from None
        async with AsyncExitStack() as held:
            await self._hold(variant, held)
        self._models[fields["name"]] = variant
        if chats is not None:
            self._chats[fields["name"]] = chats
        await respond(send, 200, {"name": fields["name"], "key": variant.key})

    def _drained(self, scope: Scope) -> int:
        """Take no further request, and return how many run."""
        if not authorized(scope, self._admin):
            raise RefusedError(403, "only the process that started this server may end it.")
        self._running.closed = True
        return self._running.counts.total()

    async def _hold(self, variant: Variant, held: AsyncExitStack) -> tuple[str, int]:
        """Return a variant's model name in vLLM and its steering slot, both kept until `held` closes."""
        model, slot = BASE, 0
        self._by_key.setdefault(variant.adapter_key, variant)
        self._by_key.setdefault(variant.steering_key, variant)
        if variant.adapter_key and variant.adapter_key != self._plan["merged"]:
            if not self._plan["loras"]:
                raise RefusedError(409, "this server was started without adapters.")
            await held.enter_async_context(self._loras.hold(variant.adapter_key))
            model = _lora_name(variant.adapter_key)
        if variant.steering_key:
            if not self._plan["steps"]:
                raise RefusedError(409, "this server was started without steering.")
            slot = 1 + await held.enter_async_context(self._sets.hold(variant.steering_key))
        return model, slot

    async def _load_lora(self, place: int, key: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        models = self._state.openai_serving_models
        if place in self._lora_ids:
            number, name = self._lora_ids.pop(place)
            models.lora_requests.pop(name, None)
            await self._state.engine_client.remove_lora(number)
        variant, name = self._by_key[key], _lora_name(key)
        result = await models.load_lora_adapter(
            LoadLoRAAdapterRequest(lora_name=name, lora_path=str(variant.adapter))
        )
        if not isinstance(result, str):
            reason = " ".join(str(result.error.message).split())[:400]
            raise RefusedError(404, f"the adapter {variant.adapter} cannot be served ({reason}).")
        self._lora_ids[place] = (models.lora_requests[name].lora_int_id, name)

    async def _write_set(self, place: int, key: str) -> None:
        steering = [one.model_dump(mode="json", exclude_unset=True) for one in self._by_key[key].steering]
        answers = await self._state.engine_client.collective_rpc(
            "em_evals_set", args=(1 + place, json.dumps(steering))
        )
        for wrong in filter(None, answers):
            raise RefusedError(400, wrong)

    # Requests

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, name = await self._request(scope, receive)
        if scope["path"].endswith("/chat/completions"):
            if name not in self._chats and about_tools(request):
                raise RefusedError(400, "the chats of this server take no tools: `em-evals serve` does.")
            if name in self._chats and self._chats[name].takes(request):
                await self._chat(scope, request, name, receive, send)
                return
        variant = self._models[name]
        async with AsyncExitStack() as held:
            model, slot = await self._hold(variant, held)
            rewrite(request, variant, model, slot)
            with finite(name):
                await self._app(*replayed(scope, request, receive), with_name(send, model, name))

    async def _chat(
        self, scope: Scope, request: dict[str, Any], name: str, receive: Receive, send: Send
    ) -> None:
        """Answer a chat that vLLM's own route would not answer as `local/` does (chat.py)."""
        chats = self._chats[name]
        try:
            asked = chats.requests(request)
            draws = await asyncio.gather(*[self._thought(scope, one, name, receive) for one in asked.draws])
        except EmEvalsError as error:
            raise RefusedError(400, str(error)) from None
        whole = chats.completion(name, asked, draws)
        if request.get("stream"):
            counted = (request.get("stream_options") or {}).get("include_usage")
            await respond_in_events(send, events(whole, bool(counted)))
        else:
            await respond(send, 200, whole)

    async def _thought(self, scope: Scope, one: Request, name: str, receive: Receive) -> Draw:
        """Make a draw; one whose thought reaches its limit takes a second request (thoughts.py)."""
        if one.thought is None:
            return await self._draw(scope, one, name, receive)
        tokenizer = self._chats[name].tokenizer
        drawn = await self._draw(scope, thoughts.first(one), name, receive)
        more = thoughts.second(tokenizer, one, drawn)
        answer = None if more is None else await self._draw(scope, more, name, receive)
        return thoughts.joined(tokenizer, one, drawn, answer)

    async def _draw(self, scope: Scope, one: Request, name: str, receive: Receive) -> Draw:
        room = self._state.engine_client.model_config.max_model_len - len(one.prompt)
        if room <= 0:
            raise RefusedError(400, "the chat does not fit into the model's context.")
        variant, body = self._models[name], wire.body(self._chats[name].tokenizer, one, name, room)
        path = "/v1/completions"
        async with AsyncExitStack() as held:
            rewrite(body, variant, *await self._hold(variant, held))
            with finite(name):
                status, found = await called(
                    self._app, {**scope, "path": path, "raw_path": path.encode()}, body, receive
                )
        if status != 200:
            raise RefusedError(status, str((found.get("error") or {}).get("message") or found))
        return wire.read(self._chats[name].tokenizer, one, found["choices"][0], room)

    async def _tokens(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await self._request(scope, receive)
        await self._app(*replayed(scope, {**request, "model": BASE}, receive), send)

    async def _request(self, scope: Scope, receive: Receive) -> tuple[dict[str, Any], str]:
        """Return a request, every field of which is valid, and the name of its model."""
        try:
            request = parsing.json_value(await body_of(receive))
        except EmEvalsError as error:
            raise RefusedError(400, f"the request is not a JSON object: {error.what}") from None
        if not isinstance(request, dict):
            raise RefusedError(400, "the request is not a JSON object.")
        name = str(request.get("model"))[:200]
        if name not in self._models:
            raise RefusedError(404, f"this server has no model '{name}'; {nearest(name, self._models)}")
        meant = header_of(scope, STAMP)
        if meant and meant != stamp(self._models[name].key, self._base):
            raise RefusedError(
                409, f"'{name}' is another model here than when /v1/models was read; read it again."
            )
        own = request.get("vllm_xargs")
        if isinstance(own, dict) and SLOT in own:
            raise RefusedError(400, f"`{SLOT}` is set by the server; choose a model by its name.")
        if (sentence := request_schema.wrong(scope["path"], request)) is not None:
            raise RefusedError(400, sentence)
        return request, name

    def _listing(self, send: Send) -> Send:
        """Wrap `send` for /v1/models: list the cards in place of vLLM's own names."""
        start: Message = {}
        parts: list[bytes] = []

        async def rewritten(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            if start["status"] != 200:
                await send(start)
                await send({"type": "http.response.body", "body": b"".join(parts)})
                return
            found = json.loads(b"".join(parts))
            own = next(entry for entry in found["data"] if entry["id"] == BASE)
            found["data"] = [
                {**own, "id": name, "root": self._base, "em_evals": {"key": one.key, "base": self._base}}
                for name, one in self._models.items()
            ]
            await respond(send, 200, found)

        return rewritten


def _lora_name(key: str) -> str:
    return f"lora-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
