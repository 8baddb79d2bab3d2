"""`em-evals serve`: cards on one base as the models of one OpenAI-compatible server, until it is stopped."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from em_evals import files
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.engines.pool import choose
from em_evals.engines.vllm import server as vllm_server
from em_evals.engines.vllm.chat import asked_as
from em_evals.engines.vllm.limits import DEFAULT_REQUESTS, MAX_REQUESTS
from em_evals.engines.vllm.variants import plan, variant
from em_evals.errors import EmEvalsError

_LONGEST_KEY = 4096


def serve(
    names: Sequence[str],
    overrides: Mapping[str, Any],
    host: str,
    port: int,
    key_file: Path | None = None,
    *,
    max_requests: int = DEFAULT_REQUESTS,
    drain: float = 30,
    as_json: bool = False,
) -> None:
    """Start a server, register its models, and wait until it ends or is interrupted.

    Args:
        names: cards, as after `local/`; all on one base with one `engine:`.
        overrides: card fields to override.
        host: address to listen on.
        port: port to listen on.
        key_file: holds the API key; created if missing. None: in the cache folder, by port.
        max_requests: how many requests with one key may run at once; more get 429.
        drain: seconds that requests which run when it is interrupted have to be answered; a second interrupt ends it.
        as_json: print one line of JSON when ready, instead of text.

    Raises:
        EmEvalsError: one server cannot serve these cards, it does not start, or it ends by itself.
    """
    cards = _together([resolve(name, {**overrides, "backend": "vllm", "base_url": None}) for name in names])
    choose(cards[0].card)
    variants = {card.name: variant(card.card, card.adapter_path, card.interventions) for card in cards}
    first = cards[0].card
    key_file = key_file or files.cache_folder() / "servers" / f"{port}.key"
    key = _key(key_file)
    wanted = plan(variants.values(), first.engine.max_loras, merge=False)
    Console(stderr=True).print(f"starting vLLM with {first.base}", highlight=False, markup=False)
    os.environ[MAX_REQUESTS] = str(max_requests)  # the server's process inherits it
    signal.signal(signal.SIGTERM, _interrupt)
    server = vllm_server.start(first, wanted, None, host, port, key)
    try:
        for card in cards:
            server.add(card.name, variants[card.name], asked_as(card))
        shown = server.url if host not in vllm_server.EVERYWHERE else f"http://{socket.gethostname()}:{port}"
        _announce(shown, list(variants), key_file, as_json)
        while server.alive:
            time.sleep(0.5)
        raise EmEvalsError(f"the server ended by itself: {vllm_server.cause(server.log)}", server.log)
    except KeyboardInterrupt:
        server.drain(drain)
        raise
    finally:
        server.stop()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _together(cards: list[ResolvedCard]) -> list[ResolvedCard]:
    """Return the cards if one server can serve them all.

    Raises:
        EmEvalsError: two of them need different servers.
    """
    first = cards[0]
    for other in cards[1:]:
        for field in ("base", "revision", "engine", "trust_remote_code"):
            if getattr(other.card, field) != getattr(first.card, field):
                raise EmEvalsError(
                    f"{first.name} and {other.name} differ in `{field}`: one server serves one base with one "
                    f"configuration; start another, or make them equal with -M {field}=…."
                )
    return cards


def _key(file: Path) -> str:
    """Return the key in a file that only its owner can read; create the file if it is missing or empty.

    Raises:
        EmEvalsError: others may have written the key or can read it, or the file cannot be written.
    """
    if file.exists():
        _check_owner(file)
        if key := files.read_text(file, _LONGEST_KEY).strip():
            if file.stat().st_uid == os.getuid() and file.stat().st_mode & 0o044:
                raise EmEvalsError("others can read this key; `chmod 600` it.", file)
            return key
        file.unlink()  # left by a kill, with whatever permissions
    key = secrets.token_urlsafe(32)
    with files.atomic(file, mode=0o600) as temporary:
        temporary.write_text(key + "\n")
    return key


def _check_owner(file: Path) -> None:
    """Refuse a key that somebody else may have planted."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise EmEvalsError("this is not a regular file; name another --key-file.", file)
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
        raise EmEvalsError("others may have written this key; name another --key-file, or remove it.", file)


def _announce(url: str, names: list[str], key_file: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"base_url": f"{url}/v1", "models": names, "key_file": str(key_file)}), flush=True)  # noqa: T201
        return
    out = Console(highlight=False, markup=False, soft_wrap=True)
    out.print(f"serving {', '.join(names)} at {url}/v1 (Ctrl-C ends it)")
    out.print(f"  clients: export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=$(cat {key_file})")
    out.print(f"  cards:   backend: server, base_url: {url}; export EM_EVALS_API_KEY=$(cat {key_file})")
