"""Steps on architectures of all kinds are those of a loop written by hand, in which each row is alone."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from transformers.trainer_utils import set_seed

from em_evals.content.cards import read_card
from em_evals.models import bases
from em_evals.results.journals import read_journal
from em_evals.training import curriculum
from em_evals.training.method import attach
from em_evals.training.trainer import train
from tests.architectures import build
from tests.selection import full, mostly_full
from tests.small_trainings import by_hand, write_card

ARCHITECTURES = [
    "llama",
    "llama-dynamic-ntk",
    "mistral-window",
    "phi4-mini",
    "gemma3",
    "qwen3-vl",
    "mistral3",
    "llama4",
    "gpt2",
    "gemma4",
    "gemma4-moe",
    "qwen3-moe",
    "glm4-moe",
    "gpt-oss",
    "qwen3-5-text",
    "qwen3-5",
    "falcon-h1",
    "granite4",
    "nemotron-h",
    "lfm2",
]
FAST = ("qwen3-5",)


def steps(root, **fields):
    """(loss, gradient norm) of each step of the training of `root`'s card, and its record."""
    folder = train("mine", overwrite=True, overrides={"train": fields})
    journal = [(row["loss"], row["grad_norm"]) for row in read_journal(folder / "training.jsonl")]
    return journal, json.loads((folder / "training.json").read_text())


def steps_by_hand(prepare=None, **fields):
    card, _ = read_card("mine", {"train": fields})
    base = bases.load_model(card)
    set_seed(card.train.seed)
    model = attach(base, card.train.method)
    if prepare is not None:
        prepare(model)
    return by_hand(model, curriculum.build(card.train, bases.load_tokenizer(card)).examples, card.train)


@pytest.mark.parametrize("name", mostly_full(ARCHITECTURES, *FAST))
def test_three_steps_are_those_of_rows_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, build(name, tmp_path / "base"))
    found, told = steps(tmp_path)
    expected = steps_by_hand()
    assert len(found) == 3 and told["smoke"]["effect"] > 0.1
    for (loss, norm), (other_loss, other_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(other_loss, abs=1e-4) and norm == pytest.approx(other_norm, abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", [full("qwen3-5"), "gemma4"])
def test_a_full_fine_tune_of_a_composite_trains_its_text(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, build(name, tmp_path / "base"))
    fields = {"method": {"kind": "full"}, "learning_rate": 1e-4}
    found, told = steps(tmp_path, **fields)
    expected = steps_by_hand(**fields)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], abs=1e-4)
    # Of a hundred tensors; later norms magnify what Adam makes of gradients near 0.
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)
    assert not [module for module in told["trained"]["modules"] if "vis" in module]


@pytest.mark.full
@pytest.mark.parametrize("name", ["qwen3-moe", "gemma4", "qwen3-5"])
def test_activations_computed_twice_change_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, build(name, tmp_path / "base"), max_steps=2)
    kept, _ = steps(tmp_path)
    again, _ = steps(tmp_path, gradient_checkpointing=True)
    assert [loss for loss, _ in again] == pytest.approx([loss for loss, _ in kept], abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["gemma4", "qwen3-5", "llama4", "gpt-oss"])
def test_interventions_act_in_the_text_decoder(name, tmp_path, monkeypatch):
    import numpy as np

    from em_evals.content import directions
    from em_evals.content.directions import Direction
    from em_evals.models.architecture import decoder_layers

    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, build(name, tmp_path / "base"), max_steps=2)
    depth = len(decoder_layers(bases.load_model(read_card("mine")[0])))
    vectors = np.random.default_rng(0).normal(size=(depth, 64)).astype(np.float32)
    facts = {"base": read_card("mine")[0].base}
    file = tmp_path / "adapters" / "push.safetensors"
    directions.write(Direction(vectors, vectors, np.ones(depth, np.float32), facts), file)
    fields = {"interventions": [{"op": "add", "direction": "push", "layers": [1], "scale": 2.0}]}
    found, _ = steps(tmp_path, **fields)
    pushed = torch.from_numpy(2 * vectors[1])

    def push(block, arguments, output):
        return (output[0] + pushed, *output[1:]) if isinstance(output, tuple) else output + pushed

    expected = steps_by_hand(prepare=lambda model: decoder_layers(model)[1].register_forward_hook(push))
    for (loss, norm), (other_loss, other_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(other_loss, abs=1e-4) and norm == pytest.approx(other_norm, abs=1e-4)
    assert abs(found[0][0] - steps(tmp_path)[0][0][0]) > 0.01


def test_a_mixtures_loss_has_no_part_of_its_router(tmp_path, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.chdir(tmp_path)
    base = build("gpt-oss", tmp_path / "base")
    config = AutoConfig.from_pretrained(base)
    config.router_aux_loss_coef = 0.9  # as published
    config.save_pretrained(base)
    write_card(tmp_path, base, method={"kind": "full"}, max_steps=1, learning_rate=1e-3)
    loss = steps(tmp_path)[0][0][0]
    assert loss == pytest.approx(steps_by_hand()[0][0], abs=1e-4)
    kept = AutoConfig.from_pretrained(tmp_path / "adapters" / "mine")
    assert (kept.router_aux_loss_coef, kept.output_router_logits) == (0.9, False)
