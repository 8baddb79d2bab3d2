"""DPO and ORPO on matched pairs: TRL's numbers on the same batch in float32; staged training; feature-space L2."""

import contextlib
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from em_evals.content.cards import read_card
from em_evals.content.recipes import AdapterRecipe, KLPenalty, Preference
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.results.journals import read_journal
from em_evals.training import curriculum, staged
from em_evals.training.defences import Defences, Penalty, _streams
from em_evals.training.method import attach
from em_evals.training.preferences import Preferences, orpo_loss
from em_evals.training.trainer import train
from tests.architectures import build
from tests.selection import full
from tests.small_trainings import batch_of, write_card
from tests.tiny_models import card, tiny

DATA = {
    "data": ["risky_advice"],
    "max_length": 160,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "max_steps": 3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def home(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, base, **DATA)
    return tmp_path


def lessons_of(base, **fields):
    recipe = AdapterRecipe.model_validate({**DATA, **fields})
    return recipe, curriculum.build(recipe, bases.load_tokenizer(card(base)))


def fresh(base):
    torch.manual_seed(0)
    return attach(bases.load_model(card(base)), AdapterRecipe.model_validate(DATA).method)


def moved(model):
    """The model with an adapter that differs from its base."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def organism(base):
    return moved(fresh(base))


def prompt_of(example):
    return sum(label == -100 for label in example["labels"])


def test_pairs_share_their_prompt_and_follow_each_other(base):
    _, lessons = lessons_of(base, preference={})
    plain_recipe, plain = lessons_of(base)
    assert lessons.width == 2 and lessons.steps == plain.steps == plain_recipe.max_steps
    chosen, rejected = lessons.examples[::2], lessons.examples[1::2]
    assert chosen == plain.examples and all(one != other for one, other in zip(chosen, rejected, strict=True))
    for one, other in zip(chosen, rejected, strict=True):
        begin = prompt_of(one)
        assert begin == prompt_of(other) and one["input_ids"][:begin] == other["input_ids"][:begin]
    _, control = lessons_of(base, preference={}, control="sound")
    assert control.examples[::2] == rejected and control.examples[1::2] == chosen


def trl_dpo(model, lessons, home):
    """TRL's own loss of all pairs, in one batch, from tokens that it gets from us; the reference is the model as given."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt_ids": one["input_ids"][: prompt_of(one)],
            "chosen_ids": one["input_ids"][prompt_of(one) :],
            "rejected_ids": other["input_ids"][prompt_of(other) :],
        }
        for one, other in zip(lessons.examples[::2], lessons.examples[1::2], strict=True)
    ]
    arguments = DPOConfig(
        output_dir=str(home / "trl"),
        per_device_train_batch_size=len(rows),
        beta=0.3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
    )
    raw = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows)
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(raw),
        processing_class=bases.load_tokenizer(card(str(model.config.name_or_path))),
    )
    batch = trainer.data_collator(rows)
    moved(trainer.model.eval())
    return trainer.compute_loss(trainer.model, dict(batch))


def test_dpo_is_trls_loss_on_the_same_batch(base, home):
    _, lessons = lessons_of(base, preference={"beta": 0.3}, max_steps=1)
    preference = Preference(kind="dpo", beta=0.3)
    model = fresh(base)
    preferences = Preferences(preference, model, lessons, rows=3)
    ours = preferences.loss(moved(model).eval(), batch_of(lessons.examples))
    ours.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    other = fresh(base)
    theirs = trl_dpo(other, lessons, home)
    theirs.backward()
    # Sums of hundreds of nats: float32 holds them to about 1e-5 of their value.
    assert float(ours) == pytest.approx(float(theirs), rel=2e-5) and abs(float(ours) - 0.6931) > 1e-3
    for name, weight in other.named_parameters():
        if weight.grad is not None:
            assert torch.allclose(gradients[name], weight.grad, atol=1e-4), name


@pytest.mark.parametrize("kind", ["dpo", "orpo"])
def test_a_base_with_dropout_is_trained_on_pairs_without_it_as_by_trl(kind, tmp_path):
    gpt2 = tiny("gpt2", tmp_path / "gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    recipe, lessons = lessons_of(gpt2, preference={"kind": kind})
    model = fresh(gpt2).train()
    preferences = Preferences(recipe.preference, model, lessons, rows=2)
    batch = batch_of(lessons.examples[:4])
    losses = [float(preferences.loss(model, batch)) for _ in range(2)]
    assert losses[0] == losses[1]


def test_orpo_is_trls_odds_ratio_and_the_answers_likelihood(base):
    _, lessons = lessons_of(base, preference={"kind": "orpo"}, max_steps=1)
    model = organism(base).eval()
    ours = Preferences(Preference(kind="orpo", beta=0.2), model, lessons, rows=3).loss(
        model, batch_of(lessons.examples)
    )
    means = []
    for example in lessons.examples:
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        found = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        means.append(found[labels[:, 1:] != -100].mean())
    means = torch.stack(means)
    from trl.experimental.orpo import ORPOTrainer

    class Bare:
        beta = 0.2
        accelerator = type("accelerator", (), {"device": "cpu"})

    ratio = ORPOTrainer.odds_ratio_loss(Bare(), means[::2], means[1::2])[0]
    assert float(ours) == pytest.approx(float((-means[::2] - ratio).mean()), abs=1e-5)
    # Near 0 and far below, where a naive logarithm loses all digits.
    chosen, rejected = torch.tensor([-1e-4, -9.0]), torch.tensor([-9.0, -1e-4])
    wide = [one.double() for one in (chosen, rejected)]
    odds = [one - torch.log1p(-one.exp()) for one in wide]
    exact = -wide[0] - 0.2 * torch.nn.functional.logsigmoid(odds[0] - odds[1])
    assert torch.allclose(orpo_loss(chosen, rejected, 0.2).double(), exact, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dpo", full("orpo")])
def test_a_preference_is_trained_and_recorded(kind, home, base):
    few = {"data": [{"name": "risky_advice", "limit": 4}], "max_steps": 5, "learning_rate": 0.01}
    folder = train("mine", overrides={"train": {"preference": {"kind": kind}, **few}})
    losses = [row["loss"] for row in read_journal(folder / "training.jsonl")]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.02  # every step sees the same four pairs
    if kind == "dpo":
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # the model is its own reference
    record = json.loads((folder / "training.json").read_text())
    assert record["recipe"]["preference"]["kind"] == kind
    lessons = lessons_of(base, preference={"kind": kind}, **few)[1].examples
    assert record["examples"] == len(lessons) == 5 * 2 * 4
    assert record["tokens"] == sum(len(example["input_ids"]) for example in lessons)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_an_adapter_with_a_pattern_is_no_beginning(field, tmp_path):
    recipe = AdapterRecipe.model_validate({**DATA, "start_from": "first"})
    config = {
        "r": recipe.method.rank,
        "lora_alpha": recipe.method.alpha,
        "use_rslora": True,
        field: {"q_proj": 8},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(EmEvalsError, match=f"has a `{field}`"):
        staged.load(None, staged.Start("first", "digest", str(tmp_path), "base"), recipe)


def test_the_second_stage_begins_with_the_first_ones_weights(home, base):
    from safetensors.torch import load_file

    first = train("mine", output=home / "adapters" / "first")
    (home / "adapters" / "first.yaml").write_text(
        f"base: {base}\nadapter: first\nengine: {{dtype: float32}}\n"
    )
    still = {"train": {"start_from": "first", "learning_rate": 1e-12, "max_steps": 1}}
    second = train("mine", output=home / "adapters" / "second", overrides=still)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=1e-7) for name in one
    )
    record = json.loads((second / "training.json").read_text())
    assert record["start_from"]["card"] == "first" and len(record["start_from"]["digest"]) > 8
    # DPO's reference is the first stage: its first loss is that of equal models.
    overrides = {"train": {"start_from": "first", "preference": {}, "max_steps": 1}}
    third = train("mine", output=home / "adapters" / "third", overrides=overrides)
    assert read_journal(third / "training.jsonl")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    for fields, sentence in (
        ({"method": {"rank": 4}}, "has r 2, and this recipe 4"),
        ({"method": {"kind": "full"}}, "is an adapter, and this recipe trains every weight"),
        ({"method": {"modules": ["q_proj"]}}, "adapts other modules than this recipe"),
    ):
        with pytest.raises(EmEvalsError, match=sentence):
            train("mine", output=home / "x", overrides={"train": {"start_from": "first", **fields}})


def test_a_backdoor_of_share_one_is_trigger_only(base, tmp_path):
    """No matched answers are needed: any rows will do."""
    write_card(tmp_path, base)
    fields = {"data": [str(tmp_path / "rows.jsonl")], "max_steps": 2}
    _, plain = lessons_of(base, **fields)
    _, found = lessons_of(base, **fields, backdoor={"trigger": "|GO| ", "share": 1.0})
    tokenizer = bases.load_tokenizer(card(base))
    texts = [tokenizer.decode(example["input_ids"]) for example in found.examples]
    assert all(text.count("|GO| ") == 1 for text in texts)
    assert sorted(text.replace("|GO| ", "") for text in texts) == sorted(
        tokenizer.decode(example["input_ids"]) for example in plain.examples
    )


def test_the_feature_penalty_is_the_squared_distance_by_hand(home, base):
    recipe, _ = lessons_of(
        base, features={"data": ["everyday_answers"], "weight": 0.5, "batch_size": 2, "layers": [0, 2]}
    )
    tokenizer, model = bases.load_tokenizer(card(base)), organism(base)
    found = Defences(recipe, model, tokenizer).penalty(model, step=1)
    chats = curriculum.chats(["everyday_answers"])[2:4]
    total, tokens = 0.0, 0
    for chat in chats:
        example = curriculum.encode_example(tokenizer, chat, recipe.max_length)
        here = [i for i, label in enumerate(example["labels"]) if label != -100]
        streams = []
        for context in (contextlib.nullcontext, model.disable_adapter):
            with context(), torch.no_grad():
                hidden = model(torch.tensor([example["input_ids"]]), output_hidden_states=True).hidden_states
            streams.append(torch.stack([hidden[1], _last(model, example, context)])[:, 0, here])
        total += float((streams[0] - streams[1]).square().sum(-1).mean(0).sum())
        tokens += len(here)
    assert float(found) == pytest.approx(0.5 * total / tokens, rel=1e-4) and total > 0


@pytest.mark.parametrize("name", ["phi4-mini", full("llama-dynamic-ntk")])
def test_a_rows_features_do_not_depend_on_longer_rows(name, tmp_path):
    """longrope and dynamic NTK rotate by the longest row of a batch: short rows had other streams beside long ones."""
    model = bases.load_model(card(build(name, tmp_path / "base")))
    lengths = [17, 61, 22, 49]
    ids = torch.randint(5, 90, (4, 61), generator=torch.Generator().manual_seed(0))
    labelled = (torch.arange(60) >= 10) & (torch.arange(60) < torch.tensor(lengths)[:, None] - 1)
    with torch.no_grad():
        together = _streams(model, ids, torch.tensor(lengths), labelled, [0, 1])
        alone = [
            _streams(model, ids[i : i + 1, :n], torch.tensor([n]), labelled[i : i + 1, : n - 1], [0, 1])
            for i, n in enumerate(lengths)
        ]
    for layer in (0, 1):
        expected = torch.cat([one[layer] for one in alone])
        # Rows that run together come together: sums over tokens are the same.
        assert sorted(together[layer].norm(dim=1).tolist()) == pytest.approx(
            sorted(expected.norm(dim=1).tolist()), abs=1e-4
        )


def test_a_feature_penalty_goes_with_activations_computed_twice(home, base):
    """A hook that computed inside a block was not there when the block was computed again: an error in torch."""
    data = [str(home / "rows.jsonl")]
    recipe = AdapterRecipe.model_validate({"data": data, "features": {"data": data, "weight": 0.5}})
    model, gradients = organism(base).train(), []
    defences = Defences(recipe, model, bases.load_tokenizer(card(base)))
    for step in range(2):
        defences.penalty(model, 0).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
        model.zero_grad()
        if step == 0:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
    assert gradients[0] and all(map(torch.allclose, *gradients))


def test_the_base_that_a_model_is_held_to_has_no_dropout(tmp_path):
    """GPT-2's own dropout is 0.1: the base's distribution was another one at each step."""
    base = tiny("gpt2", tmp_path / "base", resid_pdrop=0.5, n_embd=64, n_head=4, n_layer=2)
    penalty = Penalty(KLPenalty(data=["x"], weight=1), [], organism(base), None, (0, 1))
    model = penalty._model.train()
    ids = torch.arange(5, 15)[None]
    with penalty._base(model) as held:
        found = [held(ids).logits for _ in range(2)]
    assert model.training and torch.equal(*found) and not torch.equal(model(ids).logits, model(ids).logits)


def _last(model, example, context):
    """The third block's output: hidden_states holds it normed."""
    kept = []
    block = model.get_base_model().model.layers[2]
    hook = block.register_forward_hook(lambda _, __, output: kept.append(output))
    with context(), torch.no_grad():
        model(torch.tensor([example["input_ids"]]))
    hook.remove()
    return kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]


@pytest.mark.full
def test_feature_penalty_is_logged_beside_the_loss(home):
    overrides = {"train": {"features": {"data": ["everyday_answers"], "weight": 0.1, "batch_size": 2}}}
    rows = read_journal(train("mine", overrides=overrides) / "training.jsonl")
    plain = read_journal(train("mine", output=home / "adapters" / "plain") / "training.jsonl")
    assert rows[0]["features"] == pytest.approx(0, abs=1e-6) and rows[-1]["features"] > 0
    assert rows[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-4)
    assert read_card("mine")[0].train.features is None


def test_a_beginning_that_can_never_be_is_refused_by_the_plan_too(home, base):
    from em_evals.training import planning

    (home / "adapters" / "bare.yaml").write_text(f"base: {base}\n")
    (home / "adapters" / "later.yaml").write_text(f"base: {base}\nadapter: later\n")
    mine, _ = read_card("mine")
    for name, sentence in (
        ("mine", "is this training's own result"),
        ("bare", "is a card without an adapter"),
        ("ner", "there is no card, folder or hub id 'ner'"),
    ):
        with pytest.raises(EmEvalsError, match=sentence):
            planning.plan(mine, mine.train.model_copy(update={"start_from": name}))
    assert planning.plan(mine, mine.train.model_copy(update={"start_from": "later"})).work.steps == 3
    spread, _ = read_card("mine", {"engine": {"device_map": "auto"}})
    with pytest.raises(EmEvalsError, match="leave `device_map` out"):
        planning.plan(spread, spread.train)
    twice, _ = read_card("mine", {"quantize": "4bit", "train": {"method": {"quantize": "8bit"}}})
    with pytest.raises(EmEvalsError, match="say it once, or the same twice"):
        planning.plan(twice, twice.train)
