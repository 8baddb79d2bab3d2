"""Requests and answers of ASGI, the interface between vLLM's HTTP server and its middleware."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

_LARGEST_BODY = 64 * 1024**2
_RETRY_SECONDS = 1

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RefusedError(Exception):
    """A request that is answered with an error status.

    Args:
        status: HTTP status.
        sentence: what is wrong and what to do.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def body_of(receive: Receive) -> bytes:
    """Return a request's whole body.

    Raises:
        RefusedError: it is too large, or the client has gone.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(499, "the client has gone.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LARGEST_BODY:
            raise RefusedError(413, "the request is larger than 64 MiB.")
        if not message.get("more_body"):
            return b"".join(parts)


def replayed(scope: Scope, request: dict[str, Any], receive: Receive) -> tuple[Scope, Receive]:
    """Return the scope and `receive` of a changed request; after its body come the client's other messages."""
    body = json.dumps(request).encode()
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    handed = False

    async def again() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}, again


async def called(
    app: App, scope: Scope, request: dict[str, Any], receive: Receive
) -> tuple[int, dict[str, Any]]:
    """Send a request to an application; return the status and the JSON of its answer."""
    status, parts = 0, []

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(*replayed(scope, request, receive), send)
    found: dict[str, Any] = json.loads(b"".join(parts))
    return status, found


def with_name(send: Send, model: str, name: str) -> Send:
    """Wrap `send`: answers get the requested name. In a text these bytes would be escaped, so none is changed."""
    old, new = f'"model":"{model}"'.encode(), f'"model":{json.dumps(name)}'.encode()
    start: Message = {}

    async def renamed(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        body = message.get("body", b"").replace(old, new)
        if start:
            headers = [
                (key, str(len(body)).encode() if key.lower() == b"content-length" else value)
                for key, value in start["headers"]
            ]
            await send({**start, "headers": headers})
            start = {}
        await send({**message, "body": body})

    return renamed


def authorized(scope: Scope, key: str) -> bool:
    """Check whether a request carries a key."""
    return hmac.compare_digest(key_of(scope), key.encode())


def header_of(scope: Scope, name: str) -> str:
    """Return a header of a request; empty without it."""
    return bytes(dict(scope["headers"]).get(name.encode(), b"")).decode("latin-1")


def key_of(scope: Scope) -> bytes:
    """Return the key that a request carries; empty without one."""
    return bytes(dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer "))


async def respond(send: Send, status: int, value: Any) -> None:
    """Send an answer as JSON."""
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", str(_RETRY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def respond_in_events(send: Send, events: list[str]) -> None:
    """Send an answer as server-sent events."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    for one in events:
        await send({"type": "http.response.body", "body": one.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})
