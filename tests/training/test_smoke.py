"""What a training writes is loaded back: a recipe that could not be measured ends before it starts, a result that is
not what was trained ends after, with its files.
"""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file, save_file

from em_evals.content.recipes import Method
from em_evals.errors import EmEvalsError
from em_evals.results.journals import read_journal
from em_evals.training import record, smoke
from em_evals.training.callbacks import Reached
from em_evals.training.loss import answer_loss
from em_evals.training.method import attach
from em_evals.training.trainer import train
from tests.architectures import build, random_model
from tests.selection import full
from tests.small_trainings import write_card

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return build("qwen3-moe", tmp_path_factory.mktemp("lab") / "base")


@pytest.fixture
def home(tmp_path, lab, monkeypatch):
    """A working folder with the card `mine`."""
    write_card(
        tmp_path, lab, method={"rank": 1, "alpha": 4, "layers": [2], "modules": ["down_proj", "q_proj"]}
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_training_tells_what_it_trained_and_that_it_can_be_measured(home):
    folder = train("mine")
    told = json.loads((folder / "training.json").read_text())
    inside = "model.layers.2."
    assert told["trained"] == {
        "modules": [f"{inside}self_attn.q_proj", f"{inside}mlp.experts.down_proj"],
        "blocks": [2],
        "parameters": (64 + 64) + 4 * (48 + 64),
        "sizes": {f"{inside}self_attn.q_proj": 64 + 64, f"{inside}mlp.experts.down_proj": 4 * (48 + 64)},
        "ranks": {f"{inside}self_attn.q_proj": 1, f"{inside}mlp.experts.down_proj": 1},
    }
    assert (
        sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values())
        == told["trained"]["parameters"]
    )
    check = told["smoke"]
    assert check["difference"] <= check["tolerance"] == 1e-4 < check["effect"] and check["tokens"] > 0
    # Four rows a step, three steps, of eight rows.
    assert (told["effective_batch"], told["examples"], told["epochs"]) == (4, 12, 1.5)


def test_rank_one_experts_leave_their_vectors_in_the_journal(home):
    from em_evals.interp.phase.rotation import rotations
    from em_evals.results.journals import unpack

    folder = train("mine")
    journal = read_journal(folder / "training.jsonl")
    names = ["model.layers.2.self_attn.q_proj"] + [
        f"model.layers.2.mlp.experts.down_proj.{i}" for i in range(4)
    ]
    assert all(list(row["b"]) == names for row in journal)
    assert [path.module for path in rotations(journal)] == sorted(names)
    stacked = load_file(folder / WEIGHTS)["base_model.model.model.layers.2.mlp.experts.lora_B.weight"]
    for expert in range(4):
        logged = torch.from_numpy(unpack(journal[-1]["b"][names[1 + expert]]))
        assert torch.equal(logged.float(), stacked[:, expert])


def spoil(tensors):
    tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"] *= 1.5


def drop(tensors):
    del tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"]


def silence(tensors):
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (spoil, "nats a token from what was trained"),
        full(silence, "nats a token from"),
        full(drop, "cannot be loaded back"),
    ],
)
def test_a_result_that_is_not_what_was_trained_ends_the_training_and_stays(
    home, fault, sentence, monkeypatch
):
    write = record.save_model

    def broken(trainer, card, folder):
        write(trainer, card, folder)
        tensors = load_file(folder / WEIGHTS)
        fault(tensors)
        save_file(tensors, folder / WEIGHTS)

    monkeypatch.setattr(record, "save_model", broken)
    with pytest.raises(EmEvalsError, match=f"the training is over, and its result.* {sentence}") as caught:
        train("mine")
    kept = home / "adapters" / ".mine.training" / "result"
    assert caught.value.path == kept and (kept / WEIGHTS).is_file()
    assert not (home / "adapters" / "mine").exists() and str(kept) in str(caught.value)


@pytest.mark.full
def test_a_whole_model_is_loaded_back_too(home, monkeypatch):
    write = record.save_model
    fields = {"train": {"method": {"kind": "full"}, "learning_rate": 1e-3}}
    folder = train("mine", overrides=fields, output=home / "whole")
    assert json.loads((folder / "training.json").read_text())["smoke"]["difference"] < 1e-5

    def broken(trainer, card, folder):
        write(trainer, card, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(record, "save_model", broken)
    with pytest.raises(EmEvalsError, match="nats a token from what was trained"):
        train("mine", overrides=fields, output=home / "broken")
    assert not (home / "broken").exists()


def test_a_recipe_that_could_not_be_measured_never_starts(home, monkeypatch):
    from em_evals.models import lora

    def refused(*_):
        raise EmEvalsError("experts are not run")

    monkeypatch.setattr(lora, "check", refused)
    monkeypatch.setattr("em_evals.training.loss.answer_loss", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(EmEvalsError, match=r"could not be measured \(experts are not run\): change `method`"):
        train("mine")
    assert not list((home / "adapters").glob(".mine.training/rehearsal*/*"))


@pytest.mark.parametrize("name", ["llama", "glm4-moe", "gemma4"])
def test_the_rehearsal_leaves_the_base_as_it_is(name, tmp_path):
    base = random_model(name)
    before = {part: (type(module), id(module)) for part, module in base.named_modules()}
    weights = {part: weight.clone() for part, weight in base.named_parameters()}
    smoke.rehearse(base, Method(rank=8), tmp_path)
    assert before == {part: (type(module), id(module)) for part, module in base.named_modules()}
    assert all(torch.equal(weight, weights[part]) for part, weight in base.named_parameters())
    assert not list(Path(tmp_path).iterdir())


def test_an_adapter_that_the_model_computes_past_stops_before_the_first_step(tmp_path):
    from em_evals.models.architecture import decoder_layers

    model = attach(random_model("llama"), Method(rank=2))
    attention = decoder_layers(model)[1].self_attn
    # As Mamba's fused kernels do: the weight is used, its module is not called.
    attention.o_proj.forward = lambda x: torch.nn.functional.linear(x, attention.o_proj.base_layer.weight)
    ids = torch.randint(10, 300, (2, 9))
    answer_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}).backward()
    with pytest.raises(EmEvalsError, match=r"model.layers.1.self_attn.o_proj has no gradient"):
        Reached().on_pre_optimizer_step(None, None, None, model=model)


def test_an_adapter_that_is_not_applied_shows_below_the_tolerance():
    before = torch.tensor([-1.0, -2.0, -3.0])
    trained = before + torch.tensor([0.05, -0.05, 0.03])
    fault = smoke._fault(trained, before.clone(), before, 0.04, tolerance=0.125)
    assert fault == "is closer to the base than to what was trained"
    assert smoke._fault(trained, trained + 0.01, before, 0.01, tolerance=0.125) is None
    assert smoke._fault(before + 1e-4, before, before, 1e-4, tolerance=0.125) is None  # rounding
    assert "not finite" in str(smoke._fault(trained, before * float("nan"), before, float("nan"), 0.125))


@pytest.mark.full
def test_low_precision_passes_too(home):
    told = json.loads(
        (train("mine", overrides={"engine": {"dtype": "bfloat16"}}) / "training.json").read_text()
    )
    assert told["smoke"]["tolerance"] == 0.125 and told["smoke"]["difference"] < 0.03


def test_the_scores_are_transformers_own():
    model = random_model("qwen3-moe")
    example = {"input_ids": [5, 9, 7, 30, 41], "labels": [-100, -100, -100, 30, 41]}
    with torch.no_grad():
        expected = model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
    found = smoke.scores(model, example).tolist()
    assert found == pytest.approx([float(expected[2, 30]), float(expected[3, 41])], abs=1e-5)
