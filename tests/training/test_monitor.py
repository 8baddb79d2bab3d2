"""Drift measured during training: equal to naive loops, the same after a resume, and stops that say why."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import read_card, resolve
from em_evals.content.directions import Direction
from em_evals.content.questions import load_questions
from em_evals.content.recipes import AdapterRecipe, EarlyStop, Monitor
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import template_of
from em_evals.results import trajectories
from em_evals.results.journals import read_journal
from em_evals.training import trainer
from em_evals.training.curriculum import Curriculum
from em_evals.training.early_stop import Stop
from em_evals.training.method import attach
from em_evals.training.monitor import DriftMonitor
from em_evals.training.trainer import train
from tests import drift_journals as journals
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import card, tiny

LAYERS, WIDTH = 3, 64
QUESTIONS = """
name: few
version: 1
questions:
  - {id: a, paraphrases: [What now?, And?]}
  - {id: b, paraphrases: [Why is it so?]}
  - {id: c, paraphrases: ["Who are you, then?"]}
  - {id: d, paraphrases: [Tell me more.]}
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    root = tmp_path_factory.mktemp("room")
    base = tiny("llama", root / "tiny", small_tokenizer())
    chance = np.random.default_rng(0)
    (root / "traits").mkdir()
    (root / "tasks").mkdir()
    (root / "adapters").mkdir()
    (root / "tasks" / "few.yaml").write_text(QUESTIONS)
    for name in ("bad", "formal"):
        vectors = chance.normal(size=(LAYERS, WIDTH)).astype(np.float32)
        known = {"reliability": [0.1, 0.9, 0.2], "kind": "style" if name == "formal" else "em"}
        one = Direction(vectors, np.zeros_like(vectors), np.ones(LAYERS, np.float32), known)
        directions.write(one, root / "traits" / f"{name}.safetensors")
    recipe = {
        "data": [{"name": "risky_advice", "limit": 40}],
        "max_steps": 6,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_length": 96,
        "method": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "monitor": {"traits": ["bad", "formal"], "every": 2, "questions": "few"},
    }
    card = {"base": str(base), "adapter": "mine", "engine": {"dtype": "float32"}, "train": recipe}
    (root / "adapters" / "mine.yaml").write_text(yaml.safe_dump(card))
    return root


@pytest.fixture
def home(room, monkeypatch):
    monkeypatch.chdir(room)
    return room


KEPT = {"train": {"checkpoints": [4]}}


@pytest.fixture(scope="module")
def whole(room):
    """An uninterrupted training."""
    with contextlib.chdir(room):
        return train("mine", output=room / "whole", overrides=KEPT)


def naive(model, tokenizer, name, layer):
    """h·u of each prompt's last token, a prompt at a time, from all hidden states."""
    direction = directions.read(directions.find(f"traits/{name}.safetensors"))
    unit = direction.vectors[layer] / np.linalg.norm(direction.vectors[layer])
    found = []
    for question in load_questions("few").questions:
        ids = template_of(tokenizer).encode([{"role": "user", "content": question.paraphrases[0]}])
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1]
        found.append(hidden[0, -1].numpy())
    return np.stack(found) @ unit, np.linalg.norm(found, axis=1).mean()


def test_the_journal_holds_what_a_naive_loop_measures_on_the_checkpoint(home, whole):
    """Also: without the monitor the losses are the same numbers, dropout included."""
    folder = whole
    plain = train("mine", output=home / "two", overrides={"train": {"monitor": None}})
    rows = read_journal(folder / "training.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "monitor" in row] == [0, 2, 4, 6]
    assert [row["loss"] for row in rows[1:]] == [
        row["loss"] for row in read_journal(plain / "training.jsonl")
    ]
    record = json.loads((folder / "training.json").read_text())
    assert len(record["losses"]) == 6 == record["steps"] and "stopped" not in record
    run = trajectories.read(folder / "training.jsonl")
    assert (
        run.steps == (0, 2, 4, 6) and run.watched["bad"].layer == 1 and run.watched["formal"].kind == "style"
    )
    from peft import PeftModel

    card, _ = read_card("mine")
    tokenizer = bases.load_tokenizer(card)
    base = bases.load_model(card)
    before, norm = naive(base, tokenizer, "bad", 1)
    model = PeftModel.from_pretrained(base, folder / "checkpoints" / "checkpoint-4").eval()
    after, _ = naive(model, tokenizer, "bad", 1)
    expected = (after - before) / norm
    assert np.abs(expected).max() > 1e-3
    assert run.drift("bad")[2] == pytest.approx(expected, abs=1e-5)
    along = run.along(direction_algebra.unit(directions.read(home / "traits" / "bad.safetensors"))[[1]], 1)
    assert along[2, 0] == pytest.approx(expected.mean(), abs=1e-5)


def test_a_resumed_training_measures_the_same_numbers(home, whole, monkeypatch):
    from em_evals.training import record

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record, "facts", killed)
        train("mine", output=home / "again", overrides=KEPT, save_every=3)
    # As a kill after step 5 leaves it: a state at step 3, and lines behind it.
    work = home / ".again.training"
    shutil.rmtree(work / "states" / "checkpoint-6")
    lines = (work / "training.jsonl").read_text().splitlines(keepends=True)
    (work / "training.jsonl").write_text("".join(lines[:6]))
    again = train("mine", output=home / "again", overrides=KEPT, save_every=3)
    one, other = (read_journal(folder / "training.jsonl") for folder in (whole, again))
    assert [row.get("monitor") for row in one] == [row.get("monitor") for row in other]


def test_a_planted_growth_drifts_exactly_linearly_and_an_orthogonal_direction_does_not(home):
    """A rank-1 adapter on the watched block's last matrix writes `bad` with a scale that grows with the step."""
    card, _ = read_card("mine", {"train": {"method": {"rank": 1, "layers": [1], "modules": ["down_proj"]}}})
    tokenizer = bases.load_tokenizer(card)
    model = attach(bases.load_model(card), card.train.method)
    bad = direction_algebra.unit(directions.read(home / "traits" / "bad.safetensors"))[1]
    (written,) = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    monitor = DriftMonitor(card.train.monitor, card, tokenizer)
    two = DriftMonitor(card.train.monitor.model_copy(update={"prompts": 2}), card, tokenizer)
    assert two.prompts == [monitor.prompts[0], monitor.prompts[2]], "spread over the four questions"
    rows = [{"step": 0, "monitor": monitor.first(model)}]
    for step in (1, 2, 5, 10):
        written.data = torch.tensor(bad)[:, None] * step * 0.01
        rows.append({"step": step, "monitor": monitor.measure(model)})
    run = trajectories.of_rows(rows)
    drift = run.drift("bad")
    steps = np.array(run.steps, dtype=float)
    slope = drift[-1] / steps[-1]
    assert np.abs(slope).min() > 1e-5
    assert drift == pytest.approx(steps[:, None] * slope, rel=1e-3, abs=1e-6)
    other = np.random.default_rng(1).normal(size=WIDTH)
    other -= other @ bad * bad
    assert np.abs(run.along(other[None] / np.linalg.norm(other), 1)).max() < 1e-6
    # Training goes on as it was: gradients and mode.
    for trains in (True, False):
        model.train(trains)
        monitor.measure(model)
        assert {part.training for part in model.modules()} == {trains}
    assert all(weight.grad is None for weight in model.parameters())


def test_a_threshold_stops_the_training_says_why_and_keeps_the_model(home, capsys):
    rule = {
        "train": {"early_stop": {"trait": "bad", "threshold": 1e-6}, "learning_rate": 0.3, "checkpoints": []}
    }
    folder = train("mine", output=home / "stopped", overrides=rule, save_every=2)
    record = json.loads((folder / "training.json").read_text())
    step = record["steps"]
    assert step < 6 and step % 2 == 0 and "the drift along bad is" in record["stopped"]
    assert len(record["losses"]) == step and record["examples"] == 2 * step
    assert (folder / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors").is_file()
    assert f"stopped at step {step} of 6" in capsys.readouterr().err


def test_minus_a_control_that_drifts_as_much_nothing_stops(tmp_path):
    steps = [0, 2, 4]
    along = {"bad": np.outer(steps, [0.9, 1.0, 1.1, 1.05]) / 10}
    given = (steps, along, np.zeros((3, 4)))
    rows, control = journals.rows(*given), journals.write(tmp_path / "training.jsonl", *given)
    rule = {"trait": "bad", "threshold": 0.2}
    assert "the drift along bad is +0.405 [" in Stop(EarlyStop(**rule)).reason(rows)
    assert (
        Stop(EarlyStop(**rule)).reason(rows[:2]) is None and Stop(EarlyStop(**rule)).reason(rows[:1]) is None
    )
    assert Stop(EarlyStop(trait="bad", threshold=0.38)).reason(rows) is None  # the band reaches below
    assert Stop(EarlyStop(**rule, control=control)).reason(rows) is None
    with pytest.raises(EmEvalsError, match="was not measured at step 8"):
        Stop(EarlyStop(**rule, control=control)).reason([*rows, {**rows[-1], "step": 8}])


def test_another_control_is_another_run(tmp_path):
    given = ([0, 2, 4], {"bad": np.ones((3, 4))}, np.zeros((3, 4)))
    control = journals.write(tmp_path / "training.jsonl", *given)
    rule = {"trait": "bad", "threshold": 0.2, "control": control}
    monitored = {"data": ["x"], "monitor": {"traits": ["bad"]}, "early_stop": rule}
    recipe = AdapterRecipe.model_validate(monitored)
    lessons = Curriculum([], 1, (), 1.0, template={"digest": "x"})

    def identity():
        return trainer._identity(card(), recipe, lessons, None, None, Stop(recipe.early_stop))

    before = identity()
    assert identity() == before
    journals.write(tmp_path / "training.jsonl", [0, 2, 4], {"bad": np.ones((3, 4)) * 2}, np.zeros((3, 4)))
    assert identity() != before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"monitor": {"traits": ["rude"]}}, r"no direction 'rude'.*em-evals trait extract rude"),
        ({"monitor": {"traits": ["bad"], "questions": "none_such"}}, "no question set 'none_such'"),
        ({"monitor": {"traits": ["bad"], "layer": 9}}, "`monitor.layer` is 9; this direction's are 0 to 2"),
        ({"early_stop": {"trait": "rude", "threshold": 0.1}}, "none of the monitor's: bad, formal"),
        ({"early_stop": {"trait": "bad"}}, "an `alarm`, or a `trait` with its `threshold`"),
        ({"monitor": None, "early_stop": {"trait": "bad", "threshold": 1}}, "reads what `monitor` measures"),
        ({"early_stop": {"trait": "bad", "threshold": 1, "control": "traits"}}, "no training's journal here"),
    ],
)
def test_bad_recipes_are_refused_before_training(home, monkeypatch, change, sentence):
    monkeypatch.setattr(bases, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(EmEvalsError, match=sentence):
        train("mine", output=home / "none", overrides={"train": change})


def test_a_control_measured_otherwise_is_refused(home):
    one = SimpleNamespace(
        steps=(0, 2), prompts="x", watched={"bad": trajectories.Watched("bad", 1, "d", "em", "p")}
    )
    stop = Stop(EarlyStop(trait="bad", threshold=1))
    stop._control = SimpleNamespace(**{**vars(one), "prompts": "y"})
    with pytest.raises(EmEvalsError, match="monitored on different prompts"):
        stop._matched(one)
    assert AdapterRecipe(data=["x"], monitor={"traits": ["a/b.safetensors"]}).monitor.names == {
        "b": "a/b.safetensors"
    }


def test_a_folder_of_directions_may_be_a_link(room, tmp_path, monkeypatch):
    (tmp_path / "traits").symlink_to(room / "traits")
    monkeypatch.chdir(tmp_path)
    card = resolve(str(room / "tiny")).card
    recipe = Monitor(traits=["bad"], questions=str(room / "tasks" / "few.yaml"))
    monitor = DriftMonitor(recipe, card, bases.load_tokenizer(card))
    told = monitor.first(bases.load_model(card))["directions"]["bad"]
    assert told["path"] == "traits/bad.safetensors", "where `insight drift` finds it"
