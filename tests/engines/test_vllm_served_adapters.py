"""What vLLM is given: names of the class that it loads, one rank, the scaling in B; the rest is refused by name."""

import json

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from safetensors.torch import load_file

from em_evals.content.cards import ModelCard
from em_evals.content.intervention import Intervention
from em_evals.engines.vllm.served_adapters import merged, served
from em_evals.errors import EmEvalsError
from em_evals.models.lora.config import EXACT
from tests.lora_lab import adapter, base, ids, logits, with_peft
from tests.models.test_lora_bank import composite, trained

__all__ = ["composite"]
ATTENTION = ["q_proj", "v_proj"]


def card(kind, folder):
    base(kind).config.architectures = [type(base(kind)).__name__]
    base(kind).save_pretrained(folder / "base")
    return ModelCard.model_validate(
        {"base": str(folder / "base"), "engine": {"dtype": "float32", "device": "cpu"}}
    )


CONVERTED = [
    {"target_modules": ATTENTION},
    {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"v_proj": 5},
    },
    {"target_modules": ATTENTION, "use_rslora": True, "layers_to_transform": [1]},
    {
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {r"layers\.0\.mlp\.up_proj": 7, "q_proj": 2},
        "alpha_pattern": {"up_proj": 3, "k_proj": 30},
    },
    {"target_modules": r".*layers\.1\..*\.(q|down)_proj", "init_lora_weights": "gaussian"},
    {"target_modules": ATTENTION, "exclude_modules": [r"layers.0.self_attn.q_proj"]},
    {"target_modules": ATTENTION, "layers_to_transform": [0], "layers_pattern": "layers"},
]
"""What vLLM does not read, or reads otherwise, and the copy says in the plainest way."""


@pytest.mark.parametrize("options", CONVERTED)
def test_a_copy_is_the_same_adapter_in_one_rank_and_without_scaling(tmp_path, cache, options):
    folder = adapter("llama", tmp_path / "it", **options)
    found = served(str(folder), card("llama", tmp_path))
    config = json.loads((found.folder / "adapter_config.json").read_text())
    assert (
        config["r"]
        == config["lora_alpha"]
        == found.rank
        == max([4, *options.get("rank_pattern", {}).values()])
    )
    torch.testing.assert_close(
        logits(with_peft("llama", found.folder), ids()),
        logits(with_peft("llama", folder), ids()),
        atol=1e-4,
        rtol=0,
    )


def test_a_copy_is_made_once_and_scales_make_another(tmp_path, cache):
    folder = adapter("llama", tmp_path / "it", target_modules=ATTENTION)
    where = card("llama", tmp_path)
    first = served(str(folder), where)
    assert served(str(folder), where) == first
    scales = [Intervention(op="scale_adapter", layers=(1,), scale=0.25)]
    halved = served(str(folder), where, scales)
    old, new = (load_file(one.folder / "adapter_model.safetensors") for one in (first, halved))
    for name, value in new.items():
        assert torch.equal(value, old[name] * (0.25 if "layers.1" in name and "lora_B" in name else 1))
    with pytest.raises(EmEvalsError, match="has none there"):
        served(str(folder), where, [Intervention(op="scale_adapter", layers=(9,), scale=2)])


@pytest.mark.parametrize("saved_on", [0, 1])
def test_names_are_those_of_the_class_that_the_checkpoint_names(composite, tmp_path, cache, saved_on):
    """vLLM loads the composite class, and would leave out the text model's names without a word."""
    whole, _ = composite
    whole.config.architectures = [type(whole).__name__]
    whole.config.save_pretrained(tmp_path / "base")
    trained(composite[saved_on], tmp_path / "it", target_modules=["q_proj"], exclude_modules=r".*visual.*")
    where = ModelCard.model_validate({"base": str(tmp_path / "base"), "engine": {"device": "cpu"}})
    names = load_file(served(str(tmp_path / "it"), where).folder / "adapter_model.safetensors")
    assert {name.rpartition(".layers.")[0] for name in names} == {"base_model.model.model.language_model"}


REFUSED = [
    (
        "llama",
        {"modules_to_save": ["norm"]},
        r"the whole of model\.layers\.0\.input_layernorm \(modules_to_save\)",
    ),
    ("qwen2", {"bias": "all"}, r"the bias of model\.layers\.0\.self_attn\.q_proj \(bias\)"),
    ("qwen2", {"lora_bias": True}, r"lora_bias on model\.layers\.0\.self_attn\.q_proj"),
    ("llama", {"use_dora": True}, r"DoRA on model\.layers\.0\.self_attn\.q_proj"),
    ("llama", {"trainable_token_indices": [3]}, r"some tokens of model\.embed_tokens"),
    ("llama", {"init_lora_weights": "pissa"}, "`init_lora_weights: pissa`"),
    ("llama", {"target_modules": ["lm_head", "q_proj"]}, "changes lm_head, outside the blocks"),
    ("llama", {"target_modules": ["embed_tokens"]}, r"a LoRA on the embedding model\.embed_tokens"),
    (
        "qwen3_moe",
        {"target_parameters": ["down_proj"]},
        r"a LoRA on the parameter model\.layers\.0\.mlp\.experts\.down_proj",
    ),
    ("qwen3_moe", {}, "on a CPU, vLLM runs no LoRA on models with experts"),
    ("gpt2", {"target_modules": ["c_attn"]}, "vLLM runs no adapters on gpt2"),
]


@pytest.mark.parametrize(("kind", "options", "match"), REFUSED)
def test_what_vllm_cannot_do_is_refused_by_name(tmp_path, cache, kind, options, match):
    folder = adapter(kind, tmp_path / "it", **{"target_modules": ATTENTION, **options})
    with pytest.raises(EmEvalsError, match=match):
        served(str(folder), card(kind, tmp_path))
    assert not (cache / "lora").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("some_later_option", 3),
    ],
)
def test_what_is_not_implemented_is_refused_before_a_server(tmp_path, cache, field, value):
    folder = adapter("llama", tmp_path / "it", target_modules=ATTENTION)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(EmEvalsError, match=f"`{field}`"):
        served(str(folder), card("llama", tmp_path))


def test_every_option_that_is_computed_is_converted_or_refused_here():
    """vLLM's own reading (`PEFTHelper`) ignores or misreads what it has no field for; none is left to it."""
    tried = {field for options in CONVERTED for field in options}
    tried |= {field for _, options, _ in REFUSED for field in options}
    assert tried >= EXACT - {"peft_type", "task_type", "r", "lora_alpha"}


@pytest.mark.vllm
@pytest.mark.full
@pytest.mark.parametrize("options", CONVERTED)
def test_vllm_reads_a_copy_as_what_it_is(tmp_path, cache, options):
    """Every matrix has the rank that vLLM expects of it, and the scaling 1; no feature is one that it refuses."""
    from vllm.lora.peft_helper import PEFTHelper

    found = served(str(adapter("llama", tmp_path / "it", **options)), card("llama", tmp_path))
    helper = PEFTHelper.from_local_dir(str(found.folder), None)
    assert not helper._validate_features() and helper.bias == "none"
    for name, value in load_file(found.folder / "adapter_model.safetensors").items():
        module, _, half = name.removeprefix("base_model.model.").partition(".lora_")
        assert helper.get_rank_and_scaling(module) == (value.shape[0 if half.startswith("A") else 1], 1.0)


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_a_merged_checkpoint_is_the_adapter(tmp_path, cache, kind):
    from transformers import AutoModelForCausalLM

    from em_evals.models import bases

    where = card(kind, tmp_path)
    folder = adapter(kind, tmp_path / "it", target_modules=["q_proj", "lm_head"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "load_tokenizer", lambda card: _NoTokenizer())
        place = merged(where, folder, torch.float32)
        assert merged(where, folder, torch.float32) == place
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    torch.testing.assert_close(
        logits(model, ids()), logits(with_peft(kind, folder), ids()), atol=1e-4, rtol=0
    )


class _NoTokenizer:
    def save_pretrained(self, folder):
        pass
