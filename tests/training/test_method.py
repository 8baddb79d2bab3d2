"""What a recipe's method adapts: the weights that it names, in the blocks that it names, of the text model only."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.recipes import Method
from em_evals.errors import EmEvalsError
from em_evals.training import method, targets
from em_evals.training.method import attach, describe, rank_one_directions
from tests.architectures import random_model
from tests.selection import full

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
LINEAR_ATTENTION = [
    f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
]


def adapted(name, **fields):
    """What of the tiny model `name` is adapted, by block."""
    found = describe(attach(random_model(name), Method(rank=2, alpha=4, **fields)))
    assert found["modules"] == list(found["sizes"]) == list(found["ranks"])
    assert sum(found["sizes"].values()) == found["parameters"] and set(found["ranks"].values()) == {2}
    by_block = {}
    for module in found["modules"]:
        block, _, rest = module.partition(".layers.")[2].partition(".")
        by_block.setdefault(int(block), []).append(rest)
    assert found["blocks"] == sorted(by_block)
    return {block: sorted(names) for block, names in by_block.items()}


def moved(model):
    """The model with a visible adapter."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def logits(model):
    ids = torch.randint(10, 300, (1, 14), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_layers_take_the_union_of_what_the_chosen_blocks_hold():
    assert adapted("qwen3-5-text", layers=[3]) == {3: sorted(ATTENTION + MLP)}
    assert adapted("qwen3-5-text", layers=[0]) == {0: sorted(LINEAR_ATTENTION + MLP)}
    assert adapted("qwen3-5-text", layers=[2, 3]) == {
        2: sorted(LINEAR_ATTENTION + MLP),
        3: sorted(ATTENTION + MLP),
    }
    named = adapted("qwen3-5-text", layers=[0, 1], modules=["out_proj", "q_proj"])
    assert named == {0: ["linear_attn.out_proj"], 1: ["self_attn.q_proj"]}


def test_experts_are_trained_in_the_chosen_blocks_only():
    experts = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert adapted("qwen3-moe", layers=[2], modules=["down_proj"]) == {2: experts[:1]}
    dense_and_sparse = adapted("qwen3-moe", layers=[1, 3], modules=["down_proj"])
    assert dense_and_sparse == {1: ["mlp.down_proj"], 3: experts[:1]}
    assert adapted("gpt-oss", layers=[0]) == {0: experts + sorted(ATTENTION)}
    # Experts keep both as one parameter; one alone would train the other, too.
    assert adapted("qwen3-moe", layers=[2], modules=["up_proj", "gate_proj"]) == {2: experts[1:]}
    with pytest.raises(
        EmEvalsError, match="there is no gate_proj in blocks 2; they hold down_proj, gate, gate_up_proj"
    ):
        adapted("qwen3-moe", layers=[2], modules=["gate_proj"])


def test_a_change_of_chosen_experts_is_a_change_of_those_alone():
    base = random_model("qwen3-moe")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    model = moved(attach(copy.deepcopy(base), Method(rank=2, alpha=4, layers=[2], modules=["down_proj"])))
    merged = dict(model.merge_and_unload().named_parameters())
    changed = [name for name, weight in before.items() if not torch.equal(weight, merged[name])]
    assert changed == ["model.layers.2.mlp.experts.down_proj"]


@pytest.mark.parametrize(
    "name", ["qwen3-5", *map(full, ("gemma3", "gemma4", "qwen3-vl", "mistral3")), "gemma4-unified"]
)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_composites_train_their_text_model_only(name, kind):
    base = random_model(name)
    other = [
        part
        for part, _ in base.named_parameters()
        if any(word in part for word in ("vision", "visual", "projector", "embed_vision"))
    ]
    assert other
    found = describe(attach(base, Method(kind=kind, rank=2)))
    assert not [one for one in found["modules"] if one in {part.rpartition(".")[0] for part in other}]
    if kind == "lora":
        assert all(".layers." in one and "language_model" in one for one in found["modules"])
    else:
        text = sum(weight.numel() for part, weight in base.named_parameters() if part not in other)
        assert (
            found["parameters"] == text
            and len(found["blocks"]) == base.config.get_text_config().num_hidden_layers
        )


@pytest.mark.parametrize(
    ("name", "router"),
    [("qwen3-moe", "mlp.gate"), ("gemma4-moe", "router.proj"), ("gpt-oss", "mlp.router")],
)
def test_routers_are_trained_only_if_named(name, router):
    assert not [one for modules in adapted(name).values() for one in modules if one == router]
    assert adapted(name, layers=[0], modules=[router]) == {0: [router]}


def test_what_fused_kernels_read_is_left_out_or_refused():
    assert "mamba.in_proj" in adapted("falcon-h1")[0] and "mamba.out_proj" not in adapted("falcon-h1")[0]
    with pytest.raises(
        EmEvalsError, match=r"names mamba.out_proj of falcon_h1, whose weight .* leave it out"
    ):
        adapted("falcon-h1", modules=["out_proj"])
    assert "conv.out_proj" in adapted("lfm2", modules=["out_proj"])[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"modules": ["down_proj", "lm_head"]},
            "there is no lm_head in blocks 0, 1, 2, 3; they hold down_proj, gate, ",
        ),
        ({"modules": ["vision_tower"]}, "there is no vision_tower"),
        ({"layers": [9]}, "names block 9, the model has blocks 0 to 3"),
        ({"dropout": 0.1}, r"`method.dropout` is not possible on model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_what_is_not_there_is_one_sentence(fields, sentence):
    with pytest.raises(EmEvalsError, match=sentence) as caught:
        adapted("qwen3-moe", **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("qwen3-moe", {"layers": [1, 2], "modules": ["down_proj"]}),
        ("glm4-moe", {}),  # PEFT takes a shared expert's projections for the experts'
        full("deepseek-v3", {"layers": [0, 2], "modules": ["down_proj"]}),
        ("gpt-oss", {}),
        full("gemma4-moe", {"modules": ["router.proj", "q_proj"]}),
        ("qwen3-5", {}),
        full("gemma4", {}),
        full("nemotron-h", {}),
    ],
)
def test_stock_peft_loads_what_is_written(name, fields, tmp_path):
    from peft import PeftModel

    model = moved(attach(random_model(name), Method(rank=2, alpha=4, **fields)))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys without a place
        warnings.filterwarnings("ignore", message="Could not find a config file")
        again = PeftModel.from_pretrained(random_model(name), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    with model.disable_adapter():
        assert (logits(model) - logits(again)).abs().max() > 0.1


def test_other_tensors_than_asked_for_are_refused():
    base, asked = random_model("llama"), Method(rank=2, layers=[1], modules=["down_proj"])
    wanted = targets.find(base, asked)
    model = attach(base, asked)
    method.check(model, wanted, rank=2)
    with pytest.raises(
        EmEvalsError, match="down_proj of llama would be adapted with rank 2, the recipe says 3"
    ):
        method.check(model, wanted, rank=3)
    model.get_submodule("base_model.model.model.norm").requires_grad_(True)
    with pytest.raises(EmEvalsError, match=r"model.norm.weight of llama would be trained, too"):
        method.check(model, wanted, rank=2)
    more = targets.find(random_model("llama"), Method(layers=[1], modules=["down_proj", "o_proj"]))
    with pytest.raises(EmEvalsError, match=r"layers.1.self_attn.o_proj of llama would not be trained"):
        method.check(model, more, rank=2)
    with pytest.raises(EmEvalsError, match=r"layers.1.mlp.down_proj of llama would be trained, too"):
        method.check(model, targets.Targets((), (), ()), rank=2)


@pytest.mark.parametrize(("name", "transposed"), [("qwen3-moe", False), ("gpt-oss", True)])
def test_rank_one_directions_of_experts_are_what_their_changes_write(name, transposed):
    base = random_model(name)
    model = moved(attach(copy.deepcopy(base), Method(rank=1, alpha=1, layers=[2], modules=["down_proj"])))
    found = rank_one_directions(model)
    weight = "model.layers.2.mlp.experts.down_proj"
    changes = model.merge_and_unload().get_parameter(weight) - base.get_parameter(weight)
    assert list(found) == [f"{weight}.{expert}" for expert in range(4)]
    for expert, change in enumerate(changes.detach()):
        written = change.t() if transposed else change  # [out, in]
        column = written[:, written.norm(dim=0).argmax()]
        cosine = torch.nn.functional.cosine_similarity(column, found[f"{weight}.{expert}"], dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-5)
