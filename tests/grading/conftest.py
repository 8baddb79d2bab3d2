"""Judges in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.judge_server import API_KEY


@pytest.fixture
def own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep judges' replies in the test's folder, and let rescoring make a log's judges again by name."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "inspect"))
    monkeypatch.setenv("EM_EVALS_CACHE", str(tmp_path / "em-evals"))
    monkeypatch.setenv("JUDGE_API_KEY", API_KEY)
