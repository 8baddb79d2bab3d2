"""A vLLM server as a child process: its start, log, models and end. A plan says what it serves.

The server listens on loopback with a random key, passed in the environment, never on the command line. Its log is
kept; when a start fails, the error quotes the cause from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from em_evals import files
from em_evals.content.cards import ModelCard
from em_evals.engines.vllm import package, served_adapters
from em_evals.engines.vllm.app import DRAIN, REGISTER
from em_evals.engines.vllm.command import command, environment
from em_evals.engines.vllm.main import FETCHED
from em_evals.engines.vllm.variants import Plan, Variant, as_json
from em_evals.errors import EmEvalsError
from em_evals.models import bases, memory

_START_SECONDS = 1800
"""Large models take minutes to load and compile after the download; a server that died is noticed at once."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what a user may ask for
_CAUSE = re.compile(r"(?:^|\s)((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (.+)$")
_NO_CAUSE = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineCore encountered an issue",
    "cancelled",
)
_FATAL = ("EngineCore failed to start", "EngineCore encountered a fatal error")


@dataclass(eq=False)
class Server:
    """A running server.

    Attributes:
        url: its address, without a path.
        key: the API key for clients.
        plan: its capacity.
        process: None for a remote server.
        log: its log file.
    """

    url: str
    key: str
    plan: Plan
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    admin: str = ""
    pipe: int = -1
    _ending: threading.Lock = field(default_factory=threading.Lock)

    @property
    def alive(self) -> bool:
        """Whether its process runs (a remote server counts as running)."""
        return self.process is None or self.process.poll() is None

    def add(self, name: str, variant: Variant, asked: str | None = None) -> None:
        """Make it serve a variant under a name; the variant is loaded when this returns.

        Args:
            name: what clients call it.
            variant: what it does to the base.
            asked: how its chats are asked where that is not vLLM's own way (chat.py).

        Raises:
            EmEvalsError: vLLM refuses the adapter or directions.
        """
        body = {"name": name, "variant": as_json(variant), "asked": asked}
        headers = {"Authorization": f"Bearer {self.admin}"}
        answer = httpx.put(f"{self.url}{REGISTER}", json=body, headers=headers, timeout=600, trust_env=False)
        if answer.status_code != 200:
            raise EmEvalsError(error_of(answer))

    def drain(self, seconds: float) -> None:
        """Let it take no further requests, and wait until those that run are answered, at most so long."""
        headers, end = {"Authorization": f"Bearer {self.admin}"}, time.monotonic() + seconds
        with contextlib.suppress(httpx.TransportError):
            while self.alive and time.monotonic() < end:
                answer = httpx.put(f"{self.url}{DRAIN}", headers=headers, timeout=30, trust_env=False)
                if answer.status_code != 200 or not answer.json()["running"]:
                    return
                time.sleep(0.2)

    def stop(self, grace: float = 20) -> None:
        """End it and its children, by force after `grace` seconds; only once, as its pid may be reused."""
        with self._ending:
            if self.process is None or self.pipe < 0:
                return
            if self.alive and grace:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(grace)
            # Children that outlived it, for example a worker that hangs.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.pipe)
            self.pipe = -1


def error_of(answer: httpx.Response) -> str:
    """Return the message of an answer with an error status."""
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code} ({answer.text.strip()[:200]})."


def start(
    card: ModelCard,
    plan: Plan,
    merged: Path | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    key: str | None = None,
    given_up: threading.Event | None = None,
) -> Server:
    """Start a server for a card's base and wait until it answers.

    Args:
        card: names the base and how to load it.
        plan: the capacity that it needs.
        merged: the adapter that the plan merges.
        host: address to listen on.
        port: None for a free one.
        key: the API key for clients; None for a random one.
        given_up: when set, the server is ended instead of waited for.

    Raises:
        EmEvalsError: it does not start; quotes the cause from its log.
    """
    if reason := package.unusable():
        raise EmEvalsError(f"{reason}; or say `backend: transformers` in the card.")
    if port is not None:
        _check_free(host, port)
    memory.release_gpu()
    for attempt in range(3):
        server = _launch(card, plan, merged, host, port or _free_port(host), key or secrets.token_urlsafe(32))
        try:
            _wait(server, given_up or threading.Event())
            return server
        except BaseException as error:
            server.stop()
            # Another process took the free port in between.
            if not (port is None and attempt < 2 and "address already in use" in str(error).lower()):
                raise
    raise EmEvalsError(f"no free port on {host}.")


def _launch(card: ModelCard, plan: Plan, merged: Path | None, host: str, port: int, key: str) -> Server:
    model = bases.locate(card.base)
    if merged is not None:
        dtype = bases.choose_dtype(card.engine.dtype, bases.choose_device(card.engine.device))
        model = str(served_adapters.merged(card, merged, dtype))
    admin = secrets.token_urlsafe(32)
    folder = files.cache_folder() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{port}.log"
    theirs, ours = os.pipe()  # the server reads until this process is gone
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - the arguments are ours
                [
                    sys.executable,
                    "-m",
                    "em_evals.engines.vllm.main",
                    str(theirs),
                    *command(card, plan, model, host, port),
                ],
                env=environment(card, plan, key, admin),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    # A server that listens everywhere is contacted on loopback.
    asked = EVERYWHERE.get(host, host)
    return Server(f"http://{asked}:{port}", key, plan, process, log, admin, ours)


def _wait(server: Server, given_up: threading.Event) -> None:
    deadline: float | None = None
    # The environment's proxy does not lead to this machine.
    with httpx.Client(timeout=5, trust_env=False) as client:
        while server.alive and (deadline is None or time.monotonic() < deadline):
            if deadline is None and (server.log is None or FETCHED.encode() in server.log.read_bytes()):
                deadline = time.monotonic() + _START_SECONDS
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{server.url}/health").status_code == 200:
                    return
            if given_up.wait(0.2):
                raise EmEvalsError("the start of vLLM was given up.", server.log)
    raise EmEvalsError(f"vLLM did not start: {cause(server.log)}", server.log)


def cause(log: Path | None) -> str:
    """Return the sentence in a log that says why the server ended."""
    lines = log.read_text(errors="replace").splitlines() if log is not None and log.is_file() else []
    # What ended the engine stands behind its last fatal line; errors before it were those of single requests.
    fatal = [number for number, line in enumerate(lines) if any(mark in line for mark in _FATAL)]
    lines = lines[fatal[-1] :] if fatal else lines
    found = [match for line in lines if (match := _CAUSE.search(line.strip()))]
    said = [f"{match[1].rsplit('.', 1)[-1]}: {match[2]}" for match in found]
    useful = [text for text in said if not any(empty in text for empty in _NO_CAUSE)]
    if useful:
        return useful[0][:500]
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"no error in its log; its last line is: {last.strip()[:300]}" if last else "it wrote nothing"


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EmEvalsError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port."
            ) from None
