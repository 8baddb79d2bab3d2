"""Without a network nothing waits for the hub: cached files are read, a missing one is reported at once."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from huggingface_hub import constants

from em_evals.content.cards import resolve
from em_evals.errors import EmEvalsError
from em_evals.models import bases, hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub's name cannot be resolved; the names that are asked for."""
    names: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> None:
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    hub.settle.cache_clear()
    yield names
    hub.settle.cache_clear()


def test_a_hub_that_cannot_be_reached_is_asked_once(asked: list[str], workdir: Any) -> None:
    card = resolve("nobody/no-such-model")
    for _ in range(2):
        with pytest.raises(EmEvalsError, match="'nobody/no-such-model' cannot be loaded"):
            bases.load_config(card.card)
    assert asked == ["huggingface.co"] and constants.HF_HUB_OFFLINE


def test_proxies_resolve_names_themselves(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    hub.settle()
    assert asked == [] and not constants.HF_HUB_OFFLINE


def test_a_folder_asks_nobody(asked: list[str], tmp_path: Any) -> None:
    assert bases._source(str(tmp_path)) == str(tmp_path) and asked == []
