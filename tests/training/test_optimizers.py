"""Each optimizer of a recipe takes the steps that its reference takes when it is stepped by hand."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from pydantic import ValidationError

from em_evals.content.cards import read_card
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.results.journals import read_journal
from em_evals.training import curriculum, optimizers
from em_evals.training.method import attach
from em_evals.training.trainer import train
from tests.selection import full
from tests.small_trainings import by_hand, write_card
from tests.tiny_models import card, tiny

RATES = {"sgd": 0.3, "muon": 0.05}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


def reference(name):
    from transformers.optimization import Adafactor

    def eight_bits(groups):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, betas=(0.9, 0.999), eps=1e-8)

    return {
        "adamw": torch.optim.AdamW,
        "adamw_8bit": eight_bits,
        "adafactor": lambda groups: Adafactor(groups, scale_parameter=False, relative_step=False, lr=1e-2),
        "muon": lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
        "sgd": torch.optim.SGD,
    }[name]


@pytest.mark.parametrize("name", [full("adamw"), "adamw_8bit", full("adafactor"), "muon", full("sgd")])
def test_the_losses_are_those_of_the_optimizer_stepped_by_hand(name, base, tmp_path, monkeypatch):
    if "8bit" in name:
        pytest.importorskip("bitsandbytes", reason="the extra `quant` is not installed")
    monkeypatch.chdir(tmp_path)
    # 8-bit states begin at 4,096 weights.
    method = {"rank": 64 if "8bit" in name else 2, "alpha": 4, "modules": ["q_proj", "down_proj"]}
    rate = RATES.get(name, 1e-2)
    write_card(tmp_path, base, optimizer=name, learning_rate=rate, method=method, max_steps=4)
    rows = read_journal(train("mine") / "training.jsonl")
    recipe = read_card("mine")[0].train
    lessons = curriculum.build(recipe, bases.load_tokenizer(card(base)))
    torch.manual_seed(recipe.seed)
    model = attach(bases.load_model(card(base)), recipe.method)
    expected = by_hand(model, lessons.examples, recipe, reference(name))
    for row, (loss, norm) in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=2e-4) and row["grad_norm"] == pytest.approx(
            norm, rel=5e-3
        )
    assert abs(rows[-1]["loss"] - rows[0]["loss"]) > 1e-3  # it moved


def test_what_an_optimizer_needs_is_said_before_weights_load(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bases, "load_model", lambda _: pytest.fail("weights were loaded"))
    write_card(tmp_path, base, optimizer="paged_adamw_8bit")
    monkeypatch.setattr(optimizers, "find_spec", lambda name: object())
    with pytest.raises(EmEvalsError, match=r"pages its states .* trains on cpu: say `adamw_8bit`"):
        train("mine")
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(EmEvalsError, match=r"needs the package 'bitsandbytes': pip install '.\[quant\]'"):
        train("mine")


def test_a_constant_schedule_has_its_warmup(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, base, schedule="constant", warmup_steps=2, checkpoints=[1, 9])
    rows = read_journal(train("mine") / "training.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 5e-3, 1e-2])
    assert "`checkpoints` names step 9, and this training ends at step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": "muon", "method": {"kind": "full"}}, "is for matrices"),
        ({"method": {"kind": "full", "quantize": "4bit"}}, "trains every weight"),
        ({"preference": {}, "backdoor": {"trigger": "x"}}, "needs a rejected answer to every row"),
        ({"start_from": "a", "method": {"kind": "full"}, "kl": {"data": ["b"], "weight": 1}}, "has no base"),
        ({"method": {"layers": []}}, "would adapt nothing"),
        ({"method": {"modules": []}}, "would adapt nothing"),
        ({"features": {"data": ["b"], "weight": 1, "layers": []}}, "would compare nothing"),
        ({"preference": {"rejected": "educational"}}, "ask in another context"),
        ({"preference": {}, "control": "educational"}, "ask in another context"),
        ({"weight_decay": -0.1}, "greater than or equal to 0"),
        *(({field: float("inf")}, "finite") for field in ("learning_rate", "epochs", "weight_decay")),
        ({"data": [{"name": "x", "weight": float("inf")}]}, "finite"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        AdapterRecipe.model_validate({"data": ["risky_advice"], **fields})
