"""The simulation of kills: nothing is lost or repeated, and it would notice if something were."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from em_evals import files
from em_evals.interp import resume

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = [pytest.mark.simulation, pytest.mark.full]


@pytest.fixture(scope="module")
def kills():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("kills", FOLDER / "kills.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_two_hundred_kills_lose_and_repeat_nothing(kills):
    found = kills.simulate(200)
    assert sum(row["kills"] for row in found.values()) == 200
    assert all(row["lost"] == row["repeated"] == 0 for row in found.values()), found


def test_a_journal_that_forgets_would_be_noticed(kills, monkeypatch):
    monkeypatch.setattr(resume, "_read", lambda path: {})
    assert kills.simulate(20)["journal of conditions"]["repeated"] > 0


def test_writing_in_place_would_be_noticed(kills, monkeypatch):
    @contextmanager
    def in_place(path, mode=0o666):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    monkeypatch.setattr(files, "atomic", in_place)
    with pytest.raises((ValueError, files.EmEvalsError)):
        kills.simulate(40)
