"""A transformers engine of a module's `card`, and a server around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def engine(card: Any) -> Iterator[Any]:
    """The engine of the module's card."""
    from em_evals.engines.hf.engine import HFEngine

    made = HFEngine(card.card)
    yield made
    made.close()


@pytest.fixture
def server(card: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The middleware around an application that answers completions by the transformers engine."""
    from tests.engines.chat_server import serving

    return serving(card, engine, monkeypatch)
