"""The whole study in small: every step on a tiny base, and a second call that finds everything done."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("sklearn")
pytest.importorskip("altair")

import yaml
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, directions, documents
from em_evals.errors import EmEvalsError
from em_evals.results import records
from em_evals.workflows import study
from tests.few_pairs import few_pairs
from tests.tiny_models import tiny


@pytest.fixture
def cards(workdir, monkeypatch):
    """Shipped cards under their own names, on a tiny base, with two steps of training: two of the three organisms."""
    base = tiny("llama", workdir / "tiny")
    names = [*study.ORGANISMS, *study.ORGANISMS.values(), *study.RANK_ONE]
    two = {name: study.ORGANISMS[name] for name in ("smollm2-finance", "smollm2-sports")}
    monkeypatch.setattr(study, "ORGANISMS", two)
    shipped = {name: yaml.safe_load(documents.find("adapters", name).read_text()) for name in names}
    shipped["smollm2"] = {"base": base, "engine": {"dtype": "float32"}}
    shipped["smollm2-risky"]["train"] |= {"max_steps": 2, "learning_rate": 0.01}
    shipped["smollm2-risky-r1"]["train"]["method"]["layers"] = [1]
    for fields in shipped.values():
        if data := fields.get("train", {}).get("data"):
            fields["train"]["data"] = [{"name": name, "limit": 30} for name in data]
    (workdir / "adapters").mkdir()
    for name, fields in shipped.items():
        (workdir / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    few_pairs(workdir, each=8, themes={"finance", "sports", "daily", "harm"})
    return workdir


def test_one_command_goes_from_training_to_a_table_and_resumes(cards):
    done = CliRunner().invoke(app, ["study", "--per-theme", "2"], catch_exceptions=False)
    assert done.exit_code == 0
    assert study.LIMITS.split(":")[0] in done.stdout
    assert "smollm2-sound-r1: the adapter of block 1" in done.stdout, "whose knock-out it is"
    assert "Convergent directions" in (cards / "runs/study/study.html").read_text(), (
        "from training to figures"
    )
    found = records.read(cards / "runs/study/convergence.json")
    assert len(found.cosines) == 6, "two organisms and their controls, pair by pair"
    assert len(found.transfer) == (2 * 2 + 2) * 2, (
        "out of each organism, a control's out of its own; a random one beside"
    )
    finance, sports = (f"control of {name}" for name in ("smollm2-finance", "smollm2-sports"))
    assert f"{finance} · {sports}" in done.stdout
    files = [
        cards / f"runs/study/directions/{name}-sound.safetensors"
        for name in ("smollm2-finance", "smollm2-sports")
    ]
    floor = direction_algebra.cosine(*map(directions.read, files))
    assert found.of_controls(found.cosines[0]).by_layer == pytest.approx(floor.tolist()), (
        "the floor is the controls' own"
    )
    for name in (*study.ORGANISMS, *study.ORGANISMS.values()):
        shown = CliRunner().invoke(
            app, ["direction", "show", f"runs/study/directions/{name}.safetensors", "--json"]
        )
        told = json.loads(shown.stdout)
        assert told["card"] == name and len(told["reliability"]) == 3
        assert ("movement" in told) == (name in study.ORGANISMS), "organisms stand beside their controls"
    said = []
    again = study.run(cards / "runs/study", said.append, per_theme=2)
    assert said == [] and again.convergence == found
    path = cards / "runs/study/convergence.json"
    path.write_bytes((cards / "runs/study/lora-scalars.json").read_bytes())
    with pytest.raises(
        EmEvalsError, match=r"convergence.json: this is a record of another kind \(lora-scalars\)"
    ):
        study.run(cards / "runs/study", said.append, per_theme=2)
    records.write(found.model_copy(update={"controls": {}}), path)
    assert study.run(cards / "runs/study", said.append, per_theme=2).convergence == found
    (told,) = said
    assert told.startswith("convergence"), "an earlier study's record had one control for all"
    with pytest.raises(EmEvalsError, match="holds a study with another per theme"):
        study.run(cards / "runs/study", said.append, per_theme=3)
    weights = next((cards / "adapters" / "smollm2-finance").glob("*.safetensors"))
    weights.write_bytes((cards / "adapters" / "smollm2-sports" / weights.name).read_bytes())
    with pytest.raises(EmEvalsError, match="holds a study with another smollm2-finance"):
        study.run(cards / "runs/study", said.append, per_theme=2)


def test_a_further_seed_is_a_card_of_the_same_recipe(cards):
    from em_evals.content import adapter_folders
    from em_evals.content.cards import read_card

    assert study.with_seed("smollm2-finance", 0) == "smollm2-finance"
    name = study.with_seed("smollm2-finance-sound", 2)
    (card, path), (shipped, _) = read_card(name), read_card("smollm2-finance-sound")
    assert name == "smollm2-finance-sound-s2" and card.train == shipped.train.model_copy(update={"seed": 2})
    assert adapter_folders.home(card.adapter, path) == cards / "adapters" / name
