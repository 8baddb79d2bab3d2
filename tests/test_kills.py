"""The simulation of kills: nothing is lost or repeated, and it would notice if something were."""

from contextlib import contextmanager

import kills
import pytest

from em_evals import files
from em_evals.interp import resume

pytestmark = [pytest.mark.simulation, pytest.mark.full]


def test_two_hundred_kills_lose_and_repeat_nothing():
    found = kills.simulate(200)
    assert sum(row["kills"] for row in found.values()) == 200
    assert all(row["lost"] == row["repeated"] == 0 for row in found.values()), found


def test_a_journal_that_forgets_would_be_noticed(monkeypatch):
    monkeypatch.setattr(resume, "_read", lambda path: {})
    assert kills.simulate(20)["journal of conditions"]["repeated"] > 0


def test_writing_in_place_would_be_noticed(monkeypatch):
    @contextmanager
    def in_place(path, mode=0o666):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path

    monkeypatch.setattr(files, "atomic", in_place)
    with pytest.raises((ValueError, files.EmEvalsError)):
        kills.simulate(40)
