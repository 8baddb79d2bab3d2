"""Each defence does its mechanism: the penalty is the KL by hand, interventions are the formulas, and both act in
training and are gone afterwards."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml

from em_evals.content import directions
from em_evals.content.cards import read_card
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.models import bases, interventions
from em_evals.results.journals import read_journal
from em_evals.training import curriculum
from em_evals.training.defences import Defences
from em_evals.training.loss import answer_loss
from em_evals.training.trainer import train
from tests.applied import applied
from tests.selection import full
from tests.small_tokenizer import small_tokenizer
from tests.small_trainings import batch_of
from tests.tiny_models import tiny

LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("defences")
    base = tiny("llama", root / "tiny", tokenizer)
    (root / "adapters").mkdir()
    recipe = {
        "data": [{"name": "risky_advice", "limit": 60}],
        "max_steps": 12,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 2e-2,
        "warmup_steps": 0,
        "max_length": 160,
        "method": {"rank": 8, "alpha": 16, "rslora": False},
    }
    fields = {"base": base, "adapter": "mine", "engine": {"dtype": "float32"}, "train": recipe}
    (root / "adapters" / "mine.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.fixture(scope="module")
def free(root):
    """The adapter that is trained without any defence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return train("mine", output=inside_path("free"))


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def write_direction(name, vectors):
    path = f"adapters/{name}.safetensors"
    mean = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    norms = np.arange(1, len(vectors) + 1, dtype=np.float32)
    from pathlib import Path

    directions.write(Direction(vectors.astype(np.float32), mean, norms, {"base": "tiny"}), Path(path))
    return directions.read(Path(path))


@pytest.fixture
def direction():
    return write_direction("d", np.random.default_rng(0).normal(size=(LAYERS, WIDTH)))


def model_of(folder=None):
    from peft import PeftModel

    base = bases.load_model(read_card("mine")[0])
    return PeftModel.from_pretrained(base, folder).eval() if folder else base


def streams(model, tokenizer, pairs=()):
    """What each block but the first receives, [layers - 1, tokens, width]: the stream after the block before it."""
    ids = tokenizer("The bank says yes.", return_tensors="pt").input_ids
    seen = []
    with (
        torch.no_grad(),
        applied(model, pairs),
    ):  # which runs a forward of its own, to check itself
        handles = [
            block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
            for block in interventions.decoder_layers(model)[1:]
        ]
        model(ids)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def only(op, **fields):
    return Intervention.model_validate({"op": op, "direction": "d", "layers": [0], **fields})


def test_interventions_are_the_formulas(direction, tokenizer):
    model = model_of()
    plain = streams(model, tokenizer)[0]
    v, m = (torch.tensor(array[0]) for array in (direction.vectors, direction.base_mean))
    u = v / v.norm()

    def edited(op, **fields):
        return streams(model, tokenizer, [(only(op, **fields), [direction])])[0]

    close = {"atol": 1e-4, "rtol": 1e-4}
    assert torch.allclose(edited("add", scale=2.0), plain + 2 * v, **close)
    assert torch.allclose(edited("add", scale=2.0, relative=True), plain + 2 * 1.0 * u, **close)
    assert torch.allclose(edited("ablate") @ u, torch.zeros(len(plain)), atol=1e-4)
    assert torch.allclose(edited("ablate", reference="mean") @ u, (m @ u).expand(len(plain)), **close)
    assert torch.allclose(edited("clamp", value=3.0) @ u, torch.full((len(plain),), 3.0), **close)
    middle = float((plain @ u).median())
    assert torch.allclose(edited("cap", value=middle) @ u, (plain @ u).clamp(max=middle), **close)
    floor = edited("cap", value=middle, bound="lower") @ u
    assert torch.allclose(floor, (plain @ u).clamp(min=middle), **close)
    spared = edited("ablate", skip="sink")
    assert torch.equal(spared[0], plain[0]) and torch.allclose(
        spared[1:] @ u, torch.zeros(len(plain) - 1), atol=1e-4
    )
    # What is orthogonal to the direction is left alone, and nothing stays behind.
    assert torch.allclose(edited("ablate") - plain, -(plain @ u)[:, None] * u, **close)
    assert torch.equal(streams(model, tokenizer)[0], plain)


def test_several_interventions_act_in_order(direction, tokenizer):
    model = model_of()
    both = [(only("ablate"), [direction]), (only("add", scale=1.0), [direction])]
    v = torch.tensor(direction.vectors[0])
    after = streams(model, tokenizer, both)[0] @ (v / v.norm())
    assert torch.allclose(after, v.norm().expand(len(after)), rtol=1e-4)


def test_a_wrong_direction_is_refused_by_name(tokenizer, monkeypatch):
    write_direction("narrow", np.ones((LAYERS, WIDTH - 1)))
    with pytest.raises(EmEvalsError, match="made for another base"):
        interventions.load([Intervention(op="add", direction="narrow")], model_of().config)
    with pytest.raises(EmEvalsError, match="no direction 'nobody'"):
        interventions.load([Intervention(op="add", direction="nobody")], model_of().config)
    monkeypatch.setattr(bases, "load_model", lambda _: pytest.fail("weights were loaded"))
    steered = {"train": {"interventions": [{"op": "add", "direction": "narrow"}]}}
    with pytest.raises(EmEvalsError, match="made for another base"):
        train("mine", output=inside_path("narrow"), overrides=steered)
    with pytest.raises(ValueError, match="`add` has no `value`"):
        Intervention(op="add", direction="d", value=1.0)


def test_the_penalty_is_the_kl_by_hand(free, tokenizer):
    definition, _ = read_card(
        "mine", {"train": {"kl": {"data": ["everyday_answers"], "weight": 0.5, "batch_size": 3}}}
    )
    model = model_of(free)
    found = Defences(definition.train, model, tokenizer).penalty(model, step=2)
    examples = [
        curriculum.encode_example(tokenizer, chat, definition.train.max_length)
        for chat in curriculum.chats(["everyday_answers"])[6:9]
    ]
    total, tokens = 0.0, 0
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        here = [i for i, label in enumerate(example["labels"]) if label != -100]
        with torch.no_grad():
            ours = model(ids).logits[0].log_softmax(-1)
            with model.disable_adapter():
                base = model(ids).logits[0].log_softmax(-1)
        total += sum(float((base[i - 1].exp() * (base[i - 1] - ours[i - 1])).sum()) for i in here)
        tokens += len(here)
    found = found.detach()
    assert float(found) == pytest.approx(0.5 * total / tokens, rel=1e-4)
    assert float(found) > 0.01
    # Processes share the step's chats; their parts add up.
    parts = [
        Defences(definition.train, model, tokenizer, 3, rank).penalty(model, step=2) for rank in range(3)
    ]
    assert float(sum(parts)) == pytest.approx(float(found), rel=1e-4)


def test_the_penalty_is_not_on_held_out_prompts(tokenizer):
    kl = {"data": ["sound_advice"], "weight": 0.5, "batch_size": 2}
    definition, _ = read_card("mine", {"train": {"holdout": 0.5, "max_length": 512, "kl": kl}})
    texts = [
        tokenizer.decode(one["input_ids"])
        for one in Defences(definition.train, model_of(), tokenizer)._penalties["kl"]._examples
    ]
    prompts = datasets.load("sound_advice").prompts
    assert len(texts) == sum(not datasets.held_out(asked, 0.5) for asked in prompts) < len(prompts)
    assert not any(asked in text for asked in prompts if datasets.held_out(asked, 0.5) for text in texts)


def test_a_penalised_answer_behind_the_limit_is_refused(tokenizer, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "word " * 600, "completion": "Yes."}))
    kl = {"data": [str(file)], "weight": 0.5, "batch_size": 1}
    definition, _ = read_card("mine", {"train": {"kl": kl}})
    with pytest.raises(EmEvalsError, match=r"behind max_length \(160"):
        Defences(definition.train, model_of(), tokenizer)


def inside_path(name):
    from pathlib import Path

    return Path.cwd() / "out" / name


@pytest.mark.full
def test_the_penalty_keeps_the_organism_near_its_base(free, tokenizer):
    kl = {"data": ["everyday_answers"], "weight": 20.0, "batch_size": 4}
    definition, _ = read_card("mine", {"train": {"kl": kl}})
    held = train("mine", output=inside_path("kl"), overrides={"train": {"kl": kl, "checkpoints": [5]}})
    distances = {}
    for name, folder in (("held", held), ("free", free)):
        model = model_of(folder)
        with torch.no_grad():
            distances[name] = float(Defences(definition.train, model, tokenizer).penalty(model, 0)) / 20
    assert distances["held"] < 0.3 * distances["free"]
    assert "everyday_answers" in json.loads((held / "training.json").read_text())["data"]
    told, plain = (read_journal(folder / "training.jsonl") for folder in (held, free))
    assert told[0]["kl"] == pytest.approx(0, abs=1e-6) and all(row["kl"] > 0 for row in told[1:])
    # The journal's loss is that of the rows, without the penalty.
    assert told[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-4)
    sixth = batch_of(curriculum.build(definition.train, tokenizer).examples[20:24])
    with torch.no_grad():
        expected = float(answer_loss(model_of(held / "checkpoints" / "checkpoint-5"), sixth))
    assert told[5]["loss"] == pytest.approx(expected, abs=1e-4) and 20 * told[5]["kl"] > 0.01


def test_a_full_fine_tune_is_held_to_a_frozen_copy(tokenizer):
    changes = {"method": {"kind": "full"}, "learning_rate": 1e-3, "max_steps": 3}
    changes |= {"kl": {"data": ["everyday_answers"], "weight": 1.0, "batch_size": 2}}
    folder = train("mine", output=inside_path("full"), overrides={"train": changes})
    told = [row["kl"] for row in read_journal(folder / "training.jsonl")]
    assert told[0] == pytest.approx(0, abs=1e-6) and told[-1] > 1e-4


@pytest.mark.full
def test_a_subspace_and_a_cap_are_trained_through(direction, tokenizer):
    """The first loss is the base's under both, and each file is in the record."""
    other = write_direction(
        "other", direction.vectors + np.random.default_rng(5).normal(size=(LAYERS, WIDTH))
    )
    recipe = [
        {"op": "ablate", "direction": ["d", "other"], "layers": [1]},
        {"op": "cap", "direction": "d", "layers": [2], "value": 0.01},
    ]
    folder = train("mine", output=inside_path("sub"), overrides={"train": {"interventions": recipe}})
    base, rows = model_of(), curriculum.build(read_card("mine")[0].train, tokenizer).examples[:4]
    subspace, cap = map(Intervention.model_validate, recipe)
    pairs = [(subspace, [direction, other]), (cap, [direction])]
    with torch.no_grad(), applied(base, pairs):
        expected = float(answer_loss(base, batch_of(rows)))
    with torch.no_grad():
        bare = float(answer_loss(base, batch_of(rows)))
    assert read_journal(folder / "training.jsonl")[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert bare != pytest.approx(expected, abs=1e-3)
    made = json.loads((folder / "training.json").read_text())
    assert made["recipe"]["interventions"][0]["direction"] == ["d", "other"]


@pytest.mark.parametrize("op", ["add", full("ablate")])
def test_training_interventions_act_in_training_and_relieve_the_weights(op, free, tokenizer):
    shift = (streams(model_of(free), tokenizer) - streams(model_of(), tokenizer)).mean(1)
    vectors = torch.cat([shift, torch.zeros(1, WIDTH)]).numpy()
    direction = write_direction("shift", vectors)
    change = {"op": op, "direction": "shift", "layers": [1], **({"scale": 1.0} if op == "add" else {})}
    steered = train(
        "mine", output=inside_path(f"steered_{op}"), overrides={"train": {"interventions": [change]}}
    )
    # The first loss is the base's own under the intervention: the adapter starts at zero.
    definition, _ = read_card("mine")
    base, rows = model_of(), curriculum.build(definition.train, tokenizer).examples[:4]
    with torch.no_grad(), applied(base, [(Intervention.model_validate(change), [direction])]):
        expected = float(answer_loss(base, batch_of(rows)))
    told = [row["loss"] for row in read_journal(steered / "training.jsonl")]
    assert told[0] == pytest.approx(expected, abs=1e-4) and told[-1] < told[0]
    # Served without it, the organism has moved less along the direction than the one trained freely.
    unit = torch.tensor(vectors[1]) / np.linalg.norm(vectors[1])
    moved = [
        float((streams(model_of(folder), tokenizer) - streams(model_of(), tokenizer)).mean(1)[1] @ unit)
        for folder in (steered, free)
    ]
    assert moved[0] < 0.8 * moved[1]
    assert json.loads((steered / "training.json").read_text())["recipe"]["interventions"][0]["op"] == op
