"""A tiny base with two adapters, for what is read of finetunes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def two_adapters(tiny_lab: Path) -> Path:
    """The cards `one` and `two` beside `plain`."""
    from tests.tiny_models import make_adapter, write_tiny_card

    for name, seed in (("one", 1), ("two", 2)):
        make_adapter(str(tiny_lab / "tiny"), tiny_lab / "adapters" / name, 4, ["down_proj", "q_proj"], seed)
        write_tiny_card(tiny_lab, name, f"adapter: {name}")
    return tiny_lab
