"""Fixtures shared by the tests: real data where it exists, a working folder and a cache of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LONGEST = (
    "test_vllm_engine.py",
    "test_vllm_serving.py",
    "test_vllm_plugin.py",
    "test_interrupt.py",
    "test_trainer.py",
    "test_hf_engine.py",
    "test_extract.py",
    "test_phase.py",
    "test_study.py",
    "test_lora_scalars.py",
    "test_steer.py",
    "test_gate_worked.py",
    "test_planning.py",
    "test_em_mini.py",
    "test_vllm_server.py",
    "test_demo.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: at the end no process waits for another's (Makefile)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real published data, never copied into the repository."""
    chosen = os.environ.get("EM_EVALS_DATA")
    places = [Path(chosen).expanduser()] if chosen else []
    for place in [*places, ROOT.parent / "shared" / "data"]:
        if place.is_dir():
            return place
    pytest.skip("needs published data: set EM_EVALS_DATA to a folder that holds it")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, away from the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own. Not automatic: the user's cache holds the converted base that others reuse."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EM_EVALS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a tiny random base, `tiny`, and a folder for cards; its engines end with the module."""
    pytest.importorskip("torch")
    from em_evals.engines.pool import close_engines
    from em_evals.models import bases
    from tests.tiny_models import card, tiny

    root = tmp_path_factory.mktemp("lab")
    tiny("llama", root / "tiny", bases.load_tokenizer(card()))
    (root / "adapters").mkdir()
    yield root
    close_engines()
