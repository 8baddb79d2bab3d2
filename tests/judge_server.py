"""A scripted model on a real port: an OpenAI-compatible chat-completions server for tests.

`reply` maps the last user message to what the model says; the server turns that into what a judge of its `mode`
would send. Requests are kept, so that tests can count and read them.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from inspect_ai.model import GenerateConfig, Model, get_model

from em_evals.grading.judge import PROBE

API_KEY = "sk-test-0123456789-secret"

Mode = Literal[
    "numbers",
    "no_logprobs",
    "refuses_logprobs",
    "no_alternatives",
    "digits",
    "one_digit",
    "unauthorized",
    "five_alternatives",
    "sixteen_tokens",
    "no_temperature",
    "forbids_logprobs",
    "unexplained",
    "zeros",
    "above_one",
    "huge",
    "unlisted",
    "no_choices",
]
"""What a server does with every request, whatever the prompt."""

_REFUSALS = {
    "refuses_logprobs": (400, "logprobs are not supported with this model"),
    "forbids_logprobs": (403, "You are not allowed to request logprobs from this model"),
    "unexplained": (400, "Bad request"),
}


@dataclass(frozen=True)
class Reply:
    """What the model says, and the probabilities of its first token.

    `before` are tokens that it writes first, each of which it is sure of. With `status` the server answers nothing
    else but an error: its HTTP status, with `text` as its sentence and `code`; `after` are the seconds of Retry-After.
    """

    text: str
    first: dict[str, float] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    status: int = 200
    code: str = "invalid_request_error"
    after: int | None = None


def number(value: int) -> Reply:
    """A sure whole-number judge: most mass on one number, the rest on its neighbours, as a real judge shows it."""
    rest = {str(other): 0.1 / 5 for other in (0, 20, 50, 90, 100)}
    return Reply(str(value), {str(value): 0.9, **{k: p for k, p in rest.items() if k != str(value)}})


class JudgeServer:
    """Serves on 127.0.0.1 until the context ends.

    `handler` serves the requests; a subclass of `Handler` may know further paths.

    The judge's request without an answer is answered by `probe` and kept apart, in `probes`.
    """

    handler: type[Handler]

    def __init__(
        self, reply: Callable[[str], Reply], mode: Mode = "numbers", probe: Callable[[], Reply] | None = None
    ) -> None:
        self.reply = reply
        self.mode = mode
        self.probe = probe or (lambda: number(85))
        self.requests: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self.handler)
        self._http.judge = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Also for who keeps a connection: a server that is gone answers nobody."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._http.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def count(self) -> int:
        return len(self.requests)

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]

    def model(self, name: str = "test-judge", **config: Any) -> Model:
        """This server as an Inspect model."""
        return model_at(self.url, name, **config)

    def answer(self, request: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        """Status and body for one request."""
        prompt = request["messages"][-1]["content"]
        probed = prompt == PROBE.render("", "")
        with self._lock:
            (self.probes if probed else self.requests).append(request)
        if self.mode == "unauthorized":
            # The worst case: a server that repeats the key it was given.
            return 401, _error(f"Incorrect API key provided: {key}", "invalid_api_key")
        if refused := _refusal(self.mode, request):
            return refused[0], _error(refused[1], "invalid_request_error")
        reply = self.probe() if probed else self.reply(prompt)
        if reply.status != 200:
            return reply.status, _error(reply.text, reply.code, reply.after)
        return 200, _completion(request, reply, self.mode)


def _refusal(mode: Mode, request: dict[str, Any]) -> tuple[int, str] | None:
    """Status and sentence of a server that does not take a parameter."""
    asked, tokens = request.get("logprobs"), request.get("max_tokens") or request.get("max_completion_tokens")
    if asked and mode in _REFUSALS:
        return _REFUSALS[mode]
    if mode == "five_alternatives" and request.get("top_logprobs", 0) > 5:
        return 400, "top_logprobs must be less than or equal to 5"
    if mode == "sixteen_tokens" and tokens is not None and tokens < 16:
        return 400, f"Invalid 'max_tokens': integer below minimum value. Expected >= 16, got {tokens}"
    if mode == "no_temperature" and "temperature" in request:
        return 400, "Unsupported value: 'temperature' does not support a value of your choice"
    return None


def model_at(url: str, name: str = "test-judge", **config: Any) -> Model:
    """An Inspect model that talks to `url`; few retries, so that failures come soon."""
    settings = GenerateConfig(**{"max_retries": 1, "timeout": 30, **config})
    return get_model(
        f"openai-api/judge/{name}", base_url=url, api_key=API_KEY, config=settings, memoize=False
    )


class _Server(ThreadingHTTPServer):
    judge: JudgeServer
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.path.endswith("/chat/completions"):
            status, body = self.server.judge.answer(request, key)
        else:
            status, body = 404, _error(f"no such path: {self.path}", "not_found")
        self.send(status, json.dumps(body).encode(), body.get("error", {}).get("after"))

    def send(self, status: int, data: bytes, after: int | None = None) -> None:
        """Send a response; `after`: seconds of Retry-After."""
        self.send_response(status)
        if after is not None:
            self.send_header("Retry-After", str(after))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header(
            "x-should-retry", "false"
        )  # to OpenAI's client, which would wait by itself before Inspect does
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


JudgeServer.handler = Handler


def _error(message: str, code: str, after: int | None = None) -> dict[str, Any]:
    found = {"message": message, "type": code, "code": code, "param": None}
    return {"error": found if after is None else found | {"after": after}}


def _completion(request: dict[str, Any], reply: Reply, mode: Mode) -> dict[str, Any]:
    first = _digits(reply.first) if mode in ("digits", "one_digit") else reply.first
    cut = (request.get("max_tokens") or request.get("max_completion_tokens")) == 1
    text = max(first, key=lambda token: first[token]) if cut and first else reply.text
    if cut and reply.before:
        text = reply.before[0]
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "length" if cut else "stop",
        "logprobs": None,
    }
    if request.get("logprobs") and first and mode not in ("no_logprobs", *_REFUSALS):
        most = 1 if mode == "one_digit" else request.get("top_logprobs", 0)
        written = [*({token: 1.0} for token in reply.before), first]
        shown = written[: request.get("max_tokens") or request.get("max_completion_tokens") or None]
        choice["logprobs"] = {"content": [_position(one, most, mode) for one in shown], "refusal": None}
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [] if mode == "no_choices" else [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _position(first: dict[str, float], most: int, mode: Mode) -> dict[str, Any]:
    """The log-probabilities of one token, real or as servers fake them."""
    likely = sorted(first.items(), key=lambda item: -item[1])[:most]
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in likely]
    if len(top) == 1 and mode not in ("one_digit", "no_alternatives"):
        top.append({"token": "\x00", "logprob": -20.0, "bytes": None})  # real lists are never this short
    written = top[0]
    if mode == "zeros":
        top = [{**one, "logprob": 0.0} for one in top]
    elif mode == "above_one":
        top = [{**one, "logprob": -0.2} for one in top]
    elif mode == "huge":
        top = [{**one, "logprob": 1e308} for one in top]
    elif mode == "unlisted":
        written = {**written, "token": "token_id:1"}
    return {**written, "top_logprobs": [] if mode == "no_alternatives" else top}


def _digits(first: dict[str, float]) -> dict[str, float]:
    """The same judge behind a tokenizer that writes numbers digit by digit."""
    merged: Counter[str] = Counter()
    for token, probability in first.items():
        merged[token[0] if token.isdigit() else token] += probability
    return dict(merged)
