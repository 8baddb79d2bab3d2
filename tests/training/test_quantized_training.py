"""QLoRA: the loss falls, a run that was interrupted resumes to the same adapter, and the result loads back."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")

from em_evals.content.cards import read_card
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.results.journals import read_journal
from em_evals.training import curriculum, planning
from em_evals.training.callbacks import Journal
from em_evals.training.method import attach
from em_evals.training.trainer import train
from tests.small_trainings import by_hand, write_card
from tests.tiny_models import card, tiny
from tests.weight_bytes import weight_bytes

METHOD = {"rank": 2, "alpha": 4, "quantize": "4bit"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def home(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, base, method=METHOD, max_steps=20)
    return tmp_path


def quantized(base):
    return bases.load_model(card(base).model_copy(update={"quantize": "4bit"}))


def test_twenty_steps_fall_resume_and_load_back(home, base, monkeypatch):
    whole = train("mine", output=home / "adapters" / "whole")
    losses = [row["loss"] for row in read_journal(whole / "training.jsonl")]
    print("losses", [round(loss, 3) for loss in losses])
    assert len(losses) == 20 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    record = json.loads((whole / "training.json").read_text())
    # Loaded back onto the same quantized base, with the trained model's scores.
    assert record["smoke"]["difference"] <= record["smoke"]["tolerance"] < record["smoke"]["effect"]

    plain = Journal.on_log

    def stopped(self, args, state, control, logs=None, **kwargs):
        plain(self, args, state, control, logs, **kwargs)
        if state.global_step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "on_log", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"the state .*checkpoint-10 is kept"):
        train("mine", output=home / "adapters" / "resumed", save_every=5)
    monkeypatch.setattr(Journal, "on_log", plain)
    resumed = train("mine", output=home / "adapters" / "resumed", save_every=5)
    from safetensors.torch import load_file

    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=1e-6) for name in one
    )
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}


def test_the_steps_are_those_by_hand_on_the_same_quantized_base(home, base):
    write_card(home, base, method=METHOD, max_steps=3)
    rows = read_journal(train("mine") / "training.jsonl")
    recipe = read_card("mine")[0].train
    lessons = curriculum.build(recipe, bases.load_tokenizer(card(base)))
    torch.manual_seed(recipe.seed)
    expected = by_hand(attach(quantized(base), recipe.method), lessons.examples, recipe)
    for row, (loss, norm) in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-4) and row["grad_norm"] == pytest.approx(
            norm, rel=2e-3
        )


def test_card_and_recipe_must_quantize_alike(home):
    with pytest.raises(EmEvalsError, match="says `quantize: 8bit` and its `method` 4bit"):
        train("mine", overrides={"quantize": "8bit"})
    with pytest.raises(EmEvalsError, match="`quantize: 4bit` cannot be trained on by `kind: full`"):
        train("mine", overrides={"quantize": "4bit", "train": {"method": {"kind": "full", "quantize": None}}})


def test_the_plan_counts_what_is_measured(home, base):
    found, _ = read_card("mine")
    plan = planning.plan(found, found.train)
    measured = weight_bytes(quantized(base))
    # A layer's table of 1 KiB is not counted: much here, nothing in a layer of a real model.
    assert plan.memory.weights + 21 * 1024 == pytest.approx(measured, rel=0.01)
