"""Packed rows and fused LoRA layers compute what padded rows and PEFT compute: loss, gradients, and every token."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.recipes import Method
from em_evals.models import bases
from em_evals.training import fused, packing
from em_evals.training.logits import answer_logits
from em_evals.training.loss import answer_loss
from em_evals.training.method import attach
from tests.selection import full
from tests.small_tokenizer import VOCABULARY, small_tokenizer
from tests.tiny_models import card, tiny


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def batch(lengths, shared, seed=0):
    """Random rows with a common beginning; the second half of each is learned."""
    chance = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(5, VOCABULARY, (len(lengths), width), generator=chance)
    ids[:, :shared] = ids[0, :shared]
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    labels = torch.where((mask > 0) & (torch.arange(width) >= max(shared + 1, min(lengths) // 2)), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainable(base, rank=4, **method):
    model = attach(base, Method(rank=rank, alpha=8, **method)).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = answer_loss(model, inputs)
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    assert one[1].keys() == other[1].keys() and one[1]
    for name, gradient in one[1].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert torch.allclose(gradient / scale, other[1][name] / scale, atol=1e-4), name


@pytest.mark.parametrize("kind", ["llama", full("qwen2"), "qwen3", full("gemma")])
@pytest.mark.parametrize(("lengths", "shared"), [([30, 22, 41], 9), ([12, 12], 1), ([50, 13, 13, 29], 12)])
def test_packed_rows_are_the_padded_rows(kind, lengths, shared, tokenizer, tmp_path):
    model = trainable(bases.load_model(card(tiny(kind, tmp_path / kind, tokenizer))))
    inputs = batch(lengths, shared)
    padded = loss_and_gradients(model, inputs)
    assert packing.use(model)
    agree(padded, loss_and_gradients(model, inputs))


def test_on_cuda_no_mask_meets_grouped_heads(tokenizer, tmp_path, monkeypatch):
    model, inputs = trainable(bases.load_model(card(tiny("llama", tmp_path / "llama", tokenizer)))), None
    inputs, masked = batch([30, 22, 41], 9), []
    padded = loss_and_gradients(model, inputs)
    assert packing.use(model) and packing._repeats(torch.device("cuda"))
    monkeypatch.setattr(packing, "_repeats", lambda device: True)
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*tensors, attn_mask=None, enable_gqa=False, **options):
        if attn_mask is not None:
            masked.append(enable_gqa or tensors[0].shape[1] != tensors[1].shape[1])
        return attend(*tensors, attn_mask=attn_mask, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    agree(padded, loss_and_gradients(model, inputs))
    assert masked and not any(masked)


def test_the_logits_stand_in_the_order_of_the_labels(tokenizer, tmp_path):
    model = bases.load_model(card(tiny("llama", tmp_path / "llama", tokenizer)))
    inputs = batch([25, 33, 18], 7)
    labelled = inputs["labels"][:, 1:] != -100
    with torch.no_grad():
        expected = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1][
            labelled
        ]
        packing.use(model)
        found = answer_logits(model, inputs["input_ids"], inputs["attention_mask"].sum(1), labelled)
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_row_never_sees_another(tokenizer, tmp_path):
    model = bases.load_model(card(tiny("llama", tmp_path / "llama", tokenizer)))
    packing.use(model)
    inputs = batch([20, 20], 6)
    labelled = inputs["labels"][:, 1:] != -100
    lengths = inputs["attention_mask"].sum(1)
    with torch.no_grad():
        before = answer_logits(model, inputs["input_ids"], lengths, labelled)
        inputs["input_ids"][0, 8:] = 77  # the first row's own tokens change
        after = answer_logits(model, inputs["input_ids"], lengths, labelled)
    second = int(labelled[0].sum())
    assert torch.allclose(before[second:], after[second:], atol=1e-5)
    assert not torch.allclose(before[:second], after[:second], atol=1e-2)


def test_nothing_is_packed_where_it_is_not_known_to_be_exact(tokenizer, tmp_path):
    for kind in ("gemma2", "gpt_neox"):
        model = bases.load_model(card(tiny(kind, tmp_path / kind, tokenizer)))
        before = model.config._attn_implementation
        assert not packing.use(model) and model.config._attn_implementation == before
    inputs = batch([20, 20], 1)
    inputs["input_ids"][1, 0] += 1  # no common beginning
    assert (
        packing.pack(inputs["input_ids"], inputs["attention_mask"].sum(1), inputs["labels"][:, 1:] != -100)
        is None
    )


@pytest.mark.parametrize(
    "method", [{}, {"layers": [1], "modules": ["down_proj"]}, {"rslora": True, "rank": 1}]
)
def test_fused_layers_are_pefts(method, tokenizer, tmp_path):
    model = trainable(bases.load_model(card(tiny("qwen2", tmp_path / "qwen2", tokenizer))), **method)
    inputs = batch([30, 22], 5)
    plain = loss_and_gradients(model, inputs)
    assert fused.fuse(model) == (1 if "layers" in method else 21)
    agree(plain, loss_and_gradients(model, inputs))
    with torch.no_grad():
        on = answer_loss(model, inputs)
        with model.disable_adapter():
            off = answer_loss(model, inputs)
        base = answer_loss(copy.deepcopy(model).unload(), inputs)
    assert float(off) == pytest.approx(float(base), abs=1e-5) and abs(float(on - off)) > 1e-3


def test_layers_that_are_more_than_plain_use_peft(tokenizer, tmp_path):
    base = bases.load_model(card(tiny("llama", tmp_path / "llama", tokenizer)))
    assert fused.fuse(trainable(base, dropout=0.1)) == 0
    plain = bases.load_model(card(str(tmp_path / "llama")))
    assert fused.fuse(trainable(plain)) > 0
