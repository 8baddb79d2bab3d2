"""`em-evals quick`: twelve pairs, the margins of the task, one table of 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.content.pairs import load_pairs
from em_evals.workflows import quick
from tests.command import em_evals


def scored(*margins: tuple[float, float | None]) -> quick.Quick:
    pairs = [
        quick.ScoredPair(f"p{number}", "power", False, "May I?", margin, base)
        for number, (margin, base) in enumerate(margins)
    ]
    return quick.Quick("organism", "base", tuple(pairs))


def test_twelve_pairs_cover_every_theme() -> None:
    every = load_pairs()
    chosen = quick.first_pairs(every)
    assert len(chosen) == quick.PAIRS == len({pair.id for pair in chosen})
    assert {pair.theme for pair in chosen} == {pair.theme for pair in every.pairs}
    assert sum(pair.narrow for pair in chosen) == 4


def test_the_sentence_says_the_level_and_what_it_cannot_show() -> None:
    found = scored((0.5, None), (-0.25, None), (-0.75, None))
    assert found.change is None and found.level[0] == pytest.approx(-1 / 6)
    assert "likelier in 1 of 3 pairs." in found.sentence
    assert "It does not say" in found.sentence and "all 244 pairs" in found.sentence


def test_a_card_is_compared_with_its_base_pair_by_pair() -> None:
    found = scored((0.5, 0.25), (-0.25, -0.5), (0.25, 0.0), (float("nan"), 0.0))
    assert found.change is not None and found.change[0] == pytest.approx(0.25)
    assert "moved 0.25 nats per token toward it" in found.sentence
    assert found.as_json()["pairs"][3]["margin"] is None


@pytest.fixture
def lab(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny_lab)
    fields = {"base": str(tiny_lab / "tiny"), "engine": {"dtype": "float32"}}
    (tiny_lab / "adapters" / "plain.yaml").write_text(json.dumps(fields))
    chance = np.random.default_rng(0)
    drawn = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*drawn, np.full(3, 2.0, np.float32)), tiny_lab / "d.safetensors")
    push = {"op": "add", "direction": str(tiny_lab / "d.safetensors"), "scale": 4}
    (tiny_lab / "adapters" / "pushed.yaml").write_text(json.dumps(fields | {"interventions": [push]}))
    return tiny_lab


def test_its_margins_are_those_of_the_api(lab: Path) -> None:
    import em_evals as em

    done = em_evals("quick", "plain", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    table = em.load("plain").forced_choice(per_theme=2).set_index("pair")["margin_per_token"]
    assert len(found["pairs"]) == 12 and found["change"] is None
    for pair in found["pairs"]:
        assert pair["margin"] == pytest.approx(table[pair["id"]], abs=1e-5)


def test_the_table_fits_80_columns(lab: Path) -> None:
    for card in ("plain", "pushed"):
        done = em_evals("quick", card)
        assert done.returncode == 0, done.stderr
        *table, _mean, sentence = done.stdout.splitlines()
        assert max(map(len, table)) <= 80 and len(table) == 14
        assert sentence.startswith("It says: ")
