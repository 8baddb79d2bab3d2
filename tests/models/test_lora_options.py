"""Every option of PEFT's LoraConfig: equal to PEFT alone, mixed or not, and the base is bit-identical throughout."""

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from em_evals.errors import EmEvalsError
from em_evals.models.lora import Bank, merge
from tests.lora_lab import adapter, base, fresh, ids, logits, with_peft
from tests.selection import mostly_full

ATTENTION = ["q_proj", "v_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
EXACT = {
    "list": ("llama", {"target_modules": [*ATTENTION, "down_proj"]}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r".*\.layers\.[02]\.(self_attn\.q|mlp\.up)_proj"}),
    "exclude list": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj", "layers.1.mlp.up_proj"]}),
    "exclude regex": ("llama", {"target_modules": MLP, "exclude_modules": r".*\.0\..*"}),
    "layers": ("llama", {"target_modules": ATTENTION, "layers_to_transform": [0, 2]}),
    "one layer": ("llama", {"target_modules": ATTENTION, "layers_to_transform": 1}),
    "layers pattern": ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"}),
    "rslora": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, *MLP],
            "rank_pattern": {"q_proj": 2, r".*\.layers\.0\.mlp\..*": 6, "layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"v_proj": 3, r"layers\.\d\.mlp\.down_proj": 5},
        },
    ),
    "dropout": ("llama", {"target_modules": ATTENTION, "lora_dropout": 0.5}),
    "gaussian": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
    "eva": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "eva"}),
    "mica": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "mica"}),
    "pissa": ("llama", {"target_modules": [*ATTENTION, "down_proj"], "init_lora_weights": "pissa"}),
    "pissa rslora": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "pissa", "use_rslora": True}),
    "pissa dora": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "pissa", "use_dora": True}),
    "pissa gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "init_lora_weights": "pissa"}),
    "olora": ("llama", {"target_modules": [*ATTENTION, "down_proj"], "init_lora_weights": "olora"}),
    "pissa embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "init_lora_weights": "pissa"}),
    "velora": ("llama", {"target_modules": ATTENTION, "velora_config": {"num_groups": 4}}),
    "dora": ("llama", {"target_modules": "all-linear", "use_dora": True}),
    "dora with biases": ("qwen2", {"target_modules": "all-linear", "use_dora": True}),
    "dora gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    "dora embedding": ("gemma3_text", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "bias all": ("qwen2", {"target_modules": ["o_proj"], "bias": "all"}),
    "bias all gpt2": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "bias lora_only": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "bias dora": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only", "use_dora": True}),
    "bias all save": ("qwen2", {"target_modules": ["o_proj"], "bias": "all", "modules_to_save": ["q_proj"]}),
    "bias all save mlp": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["mlp"]}),
    "bias router": ("gpt_oss", {"target_modules": ["q_proj"], "bias": "all"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 fan_in_fan_out": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2 embedding": ("gpt2", {"target_modules": ["wte", "wpe"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled embedding": ("gemma3_text", {"target_modules": ["embed_tokens", "q_proj"]}),
    "lm_head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "tied lm_head": ("llama-tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied embedding": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied both": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "tied wte": ("gpt2", {"target_modules": ["wte", "c_fc"], "ensure_weight_tying": True}),
    "save lm_head": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}),
    "save embedding": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
    "save scaled embedding": ("gemma3_text", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
    "save tied embedding": ("llama-tied", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
    "save tied both": (
        "llama-tied",
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "save norms": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["norm", "input_layernorm"]}),
    "save layer norms": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["ln_1"]}),
    "save mlp": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["layers.1.mlp"]}),
    "save head norms": ("qwen3_moe", {"target_modules": ATTENTION, "modules_to_save": ["q_norm"]}),
    "save router": ("qwen3_moe", {"target_modules": ATTENTION, "modules_to_save": ["gate"]}),
    "save linear router": ("llama4_text", {"target_modules": ATTENTION, "modules_to_save": ["router"]}),
    "tokens": ("llama", {"target_modules": ATTENTION, "trainable_token_indices": [3, 17, 40]}),
    "tokens scaled": ("gemma3_text", {"target_modules": ATTENTION, "trainable_token_indices": [3, 17, 40]}),
    "tokens tied": ("llama-tied", {"target_modules": ATTENTION, "trainable_token_indices": [3, 17, 40]}),
    "tokens by name": (
        "llama",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [3, 17], "lm_head": [5]}},
    ),
    "tokens tied apart": (
        "llama-tied",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [3, 17], "lm_head": [5]}},
    ),
    "parameters": ("qwen3_moe", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "one parameter": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["down_proj"]}),
    "router parameter": ("qwen3_moe", {"target_modules": [], "target_parameters": ["gate.weight", "down_proj"]}),
    "parameter rank": (
        "qwen3_moe",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["gate_up_proj", "down_proj"],
            "rank_pattern": {"experts.gate_up_proj": 2},
            "alpha_pattern": {"experts.down_proj": 3},
            "use_rslora": True,
        },
    ),
    "linear parameter": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "moe down_proj": ("qwen3_moe", {"target_modules": ["down_proj"]}),
    "moe modules": ("qwen3_moe", {"target_modules": [*ATTENTION, *MLP]}),
    "moe all-linear": ("qwen3_moe", {"target_modules": "all-linear"}),
    "mixtral": ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]}),
    "mixtral all-linear": ("mixtral", {"target_modules": "all-linear"}),
    "gpt_oss": ("gpt_oss", {"target_modules": ATTENTION, "target_parameters": ["gate_up_proj", "down_proj"]}),
    "gpt_oss router": ("gpt_oss", {"target_modules": [], "target_parameters": ["router.weight"]}),
    "llama4": ("llama4_text", {"target_modules": ATTENTION, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "llama4 shared": ("llama4_text", {"target_modules": MLP, "exclude_modules": ["experts"]}),
    "gemma4 all-linear": ("gemma4_text", {"target_modules": "all-linear"}),
    "router of all rows": ("deepseek_v3", {"target_modules": ["o_proj"], "modules_to_save": ["gate"]}),
    "router with modules": ("gemma4_text", {"target_modules": ATTENTION, "modules_to_save": ["router"]}),
    "bias read past": ("mamba", {"target_modules": ["in_proj"], "bias": "all"}),
    "saved read past": ("mamba", {"target_modules": ["in_proj"], "modules_to_save": ["dt_proj"]}),
    "gemma4 experts": ("gemma4_text", {"target_modules": ["proj"], "target_parameters": ["experts.down_proj"]}),
}  # fmt: skip
ALONE = {"gpt2 embedding", "router with modules", "bias read past", "saved read past"}
"""Positions are embedded once for all rows; what a module contains would see some rows; and Mamba's mixer reads the
weight and the bias of dt_proj itself, which are replaced for a whole pass."""
PLAIN = {"gpt2": ["c_attn"], "mamba": ["in_proj"]}
BESIDE = {}
"""What PEFT says with the adapter of the other rows, by the base: the same in each test."""


SECOND = (
    *("one layer", "gaussian", "orthogonal", "mica", "pissa gpt2", "dora gpt2", "bias all gpt2", "bias dora"),
    *(
        "gpt2 fan_in_fan_out",
        "save scaled embedding",
        "save tied embedding",
        "save tied both",
        "save layer norms",
    ),
    "bias all save mlp",
    *("save head norms", "save linear router", "tokens scaled", "tokens tied apart", "one parameter"),
    *(
        "router parameter",
        "moe modules",
        "mixtral all-linear",
        "gpt_oss router",
        "llama4 shared",
        "gemma4 experts",
    ),
)
"""Second proofs of an option, on another kind of base or beside another option."""
MERGED = (*("patterns", "pissa", "dora", "lora_bias", "bias all", "tied both", "parameter rank"),)


@pytest.mark.parametrize("name", mostly_full(EXACT, *(name for name in EXACT if name not in SECOND)))
def test_is_pefts_alone_and_in_a_batch_and_leaves_the_base_alone(name, tmp_path):
    kind, options = EXACT[name]
    folder = adapter(kind, tmp_path / "it", **options)
    other = adapter(kind, tmp_path / "plain", seed=2, target_modules=PLAIN.get(kind, ["o_proj"]))
    model = base(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bare = logits(model, ids())
    bank = Bank(model)
    it, plain = bank.load(str(folder)), bank.load(str(other))
    expected = logits(with_peft(kind, folder), ids())
    if kind not in BESIDE:
        BESIDE[kind] = logits(with_peft(kind, other), ids())
    beside = BESIDE[kind]
    assert (expected - bare).abs().max() > 0.05  # the adapter does something
    with bank.rows([it]):
        torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=0)
    assert torch.equal(logits(model, ids()), bare)
    assert bank.mixes(it) == (name not in ALONE)
    if name in ALONE:
        return
    rows = [it, None, plain, it]
    with torch.inference_mode(), bank.rows(rows):
        mixed = logits(model, ids())
    for row, who in enumerate(rows):
        torch.testing.assert_close(
            mixed[row], {it: expected, plain: beside, None: bare}[who][row], atol=1e-4, rtol=0
        )
    assert torch.equal(logits(model, ids()), bare)
    bank.drop(it)
    bank.drop(plain)
    assert torch.equal(logits(model, ids()), bare)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


NOT_MERGED = {"lora_bias"}


@pytest.mark.parametrize("name", mostly_full(EXACT, *MERGED))
def test_merged_it_is_peft(name, tmp_path):
    """With the embedding and the output matrix apart where only one of them was changed."""
    kind, options = EXACT[name]
    folder = adapter(kind, tmp_path / "it", **options)
    model = fresh(kind)
    expected = logits(with_peft(kind, folder), ids())
    if name in NOT_MERGED:
        with pytest.raises(
            EmEvalsError, match=r"`lora_bias` cannot be merged: model\.layers\.0\.mlp\.down_proj has no bias"
        ):
            merge(model, str(folder))
        assert all(
            torch.equal(value, model.state_dict()[key]) for key, value in base(kind).state_dict().items()
        )
        return
    merge(model, str(folder))
    torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "whole")
    stored = type(model).from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(logits(stored, ids()), expected, atol=1e-4, rtol=0)


def test_merging_lora_bias_adds_it_where_the_base_has_biases(tmp_path):
    folder = adapter("qwen2", tmp_path / "it", target_modules=["q_proj", "v_proj"], lora_bias=True)
    expected = logits(with_peft("qwen2", folder), ids())
    torch.testing.assert_close(logits(merge(fresh("qwen2"), str(folder)), ids()), expected, atol=1e-4, rtol=0)
