"""A refusal in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from em_evals.errors import EmEvalsError


def refused(function: Callable[..., Any], *arguments: Any) -> str:
    """What a call is refused with, on one line."""
    with pytest.raises(EmEvalsError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
