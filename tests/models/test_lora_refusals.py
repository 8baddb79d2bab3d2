"""What does not fit exactly is refused by the name of the option or tensor, before anything is changed or loaded."""

import dataclasses
import json
import time

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from safetensors.torch import load_file, save_file

from em_evals.errors import EmEvalsError
from em_evals.models.lora import Bank, check, config, skeleton
from tests.lora_lab import adapter, base, fresh, ids, logits
from tests.selection import full

ATTENTION = ["q_proj", "v_proj"]
OUTPUTS = [
    f"base_model.model.model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in ATTENTION
]


@pytest.fixture
def folder(tmp_path):
    return adapter("llama", tmp_path / "it", target_modules=ATTENTION)


def edit(folder, **options):
    path = folder / config.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def retensor(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(change(dict(tensors)), path)


def refused(folder, match, kind="llama"):
    """Refused by the bank and by the configuration alone, and the base is as it was."""
    model = base(kind)
    bare, bank = logits(model, ids()), Bank(model)
    with pytest.raises(EmEvalsError, match=match):
        bank.load(str(folder))
    with pytest.raises(EmEvalsError, match=match):
        check(folder, model.config)
    assert torch.equal(logits(model, ids()), bare)


# Options


def test_every_field_of_lora_config_stands_in_one_table():
    tables = (config.NO_EFFECT, config.EXACT, config.REFUSED.keys())
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert not fields - {name for table in tables for name in table}
    assert sum(map(len, tables)) == len({name for table in tables for name in table})


@pytest.mark.parametrize("name", config.REFUSED)
def test_options_that_change_the_arithmetic_are_refused_by_name(folder, name):
    edit(folder, **{name: [[0, 2]] if name == "layer_replication" else {"on": 1}})
    refused(folder, rf"`{name}` is not supported: [^;]+; [^;]+\.$")  # the reason; and the way out


def test_another_kind_of_adapter_is_refused_with_a_way_out(folder):
    edit(folder, peft_type="LOHA")
    refused(folder, r"peft_type is 'LOHA', and only LORA is run here: merge it into a checkpoint")
    edit(folder, peft_type="PREFIX_TUNING")
    refused(
        folder, r"peft_type is 'PREFIX_TUNING', .* cannot be merged into a checkpoint either; train a LoRA"
    )


def test_kinds_that_cannot_be_merged_are_pefts():
    for kind in config.NOT_MERGEABLE:
        assert kind in peft.PeftType.__members__
    for kind in ("LILY", "POLY", "SHADOW"):
        options = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind](target_modules=["q_proj"])
        with pytest.raises(NotImplementedError):
            peft.get_peft_model(fresh("llama"), options).merge_and_unload()


@pytest.mark.parametrize("init", ["pissa_niter_4", "loftq", "corda", "lora_ga", "something_new"])
def test_initialisations_that_cannot_be_undone_are_refused_by_name(folder, init):
    edit(folder, init_lora_weights=init)
    refused(folder, f"`init_lora_weights: {init}`")


def test_an_option_of_a_newer_peft_is_refused_where_it_is_on(folder):
    edit(folder, use_next=False, next_config=None, next_names=[])
    check(folder, base("llama").config)
    edit(folder, use_next=True)
    refused(folder, "`use_next` is not known here")


def test_a_newer_pefts_own_default_is_no_switch(folder, monkeypatch):
    newer = dataclasses.make_dataclass("LoraConfig", [("next_size", int, 16)])
    monkeypatch.setattr(peft, "LoraConfig", newer)
    edit(folder, next_size=16)
    check(folder, base("llama").config)
    edit(folder, next_size=17)
    refused(folder, "`next_size`")


def test_a_task_with_a_head_of_its_own_is_refused(folder):
    edit(folder, task_type="SEQ_CLS")
    refused(folder, "SEQ_CLS")


@pytest.mark.parametrize(
    "field",
    [
        name
        for name in config.AdapterConfig.model_fields
        if name not in ("base_model_name_or_path", "revision")
    ],
)
@pytest.mark.parametrize("lie", [{"a": {"b": []}}, full([[[]]]), full(3.5), -1, full("nonsense ("), full(10**400), full("x" * 100_000)])  # fmt: skip
def test_a_lying_type_gets_a_sentence(folder, field, lie):
    """Or is harmless: then what it says is done."""
    edit(folder, **{field: lie})
    try:
        check(folder, base("llama").config)
    except EmEvalsError as error:
        assert len(str(error)) < 600
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"8"', "true"])
def test_alpha_must_be_a_number(folder, value):
    path = folder / config.CONFIG
    path.write_text(path.read_text().replace('"lora_alpha": 8', f'"lora_alpha": {value}'))
    refused(folder, "`lora_alpha`")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, "\xff", '{"r": 4}', '{"peft_type": "IA3", "r": 4}']
)
def test_what_is_no_configuration_gets_a_sentence(folder, text):
    (folder / config.CONFIG).write_bytes(text.encode("latin-1"))
    refused(folder, "adapter")


def test_a_pattern_that_hangs_is_stopped(folder):
    edit(folder, target_modules=r"(.*.*.*.*.*.*.*.*.*)*(x+x+)+y")
    began = time.monotonic()
    refused(folder, "too long|no tensors|would not be used")
    assert time.monotonic() - began < 15


# Tensors


def test_an_adapter_for_a_deeper_model_names_its_first_tensor_too_many(folder):
    def deeper(tensors):
        return tensors | {
            name.replace("layers.0", "layers.3"): t.clone()
            for name, t in tensors.items()
            if "layers.0" in name
        }

    retensor(folder, deeper)
    refused(
        folder,
        r"tensor base_model\.model\.model\.layers\.3\.self_attn\.q_proj\.lora_A\.weight belongs to no module",
    )


def test_an_adapter_for_a_shallower_model_names_the_first_module_without_tensors(folder):
    retensor(folder, lambda tensors: {name: t for name, t in tensors.items() if "layers.2" not in name})
    refused(folder, r"names model\.layers\.2\.self_attn\.q_proj, and its file has no tensors")


def test_another_prefix_that_is_not_one_to_one_is_refused(folder):
    retensor(
        folder, lambda tensors: {name.replace("self_attn", "attention"): t for name, t in tensors.items()}
    )
    refused(folder, r"layers\.0\.attention\.q_proj\.lora_A\.weight belongs to no module")


def test_a_block_is_never_another_block(folder):
    edit(folder, layers_to_transform=[7])
    retensor(
        folder,
        lambda tensors: {
            name.replace("layers.1", "layers.7"): t for name, t in tensors.items() if "layers.1" in name
        },
    )
    refused(folder, r"layers\.7\.self_attn\.q_proj\.lora_A\.weight belongs to no module")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_of_a_pair_is_refused(folder, half):
    name = f"{OUTPUTS[1]}.{half}.weight"
    retensor(folder, lambda tensors: {key: t for key, t in tensors.items() if key != name})
    refused(folder, r"layers\.0\.self_attn\.v_proj\.lora_.\.weight, and no [AB] to go with it")


def test_a_wrong_shape_is_refused(folder):
    name = f"{OUTPUTS[0]}.lora_B.weight"
    retensor(folder, lambda tensors: tensors | {name: torch.zeros(16, 4)})
    refused(folder, r"layers\.0\.self_attn\.q_proj\.lora_B\.weight has the shape \[16, 4\].*needs \[32, 4\]")


def test_a_rank_that_is_not_the_configurations_is_refused(folder):
    edit(folder, r=8)
    refused(folder, r"has the shape \[4, 32\].*needs \[8, 32\]")


def test_a_tensor_that_is_never_used_is_refused(folder):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    retensor(folder, lambda tensors: tensors | {name: torch.zeros(4, 32)})
    refused(folder, r"layers\.1\.mlp\.up_proj\.lora_A\.weight would not be used")


def test_a_module_that_was_to_be_saved_must_be_there(folder):
    edit(folder, modules_to_save=["lm_head"])
    refused(folder, "names lm_head, and its file has no tensors")


def test_a_missing_bias_is_refused(tmp_path):
    folder = adapter("qwen2", tmp_path / "it", target_modules=["q_proj"], bias="all")
    retensor(
        folder,
        lambda tensors: {name: t for name, t in tensors.items() if "layers.1.self_attn.k_proj" not in name},
    )
    refused(folder, r"names model\.layers\.1\.self_attn\.k_proj, and its file has no tensors", "qwen2")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_what_is_no_floating_point_number_is_refused_by_name(folder, dtype):
    name = f"{OUTPUTS[0]}.lora_A.weight"
    retensor(folder, lambda tensors: tensors | {name: torch.ones(4, 32).to(dtype)})
    refused(folder, r"layers\.0\.self_attn\.q_proj\.lora_A\.weight holds")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name_at_load(folder, value):
    name = f"{OUTPUTS[2]}.lora_B.weight"
    retensor(folder, lambda tensors: tensors | {name: torch.full_like(tensors[name], value)})
    model = base("llama")
    bare = logits(model, ids())
    with pytest.raises(
        EmEvalsError, match=r"layers\.1\.self_attn\.q_proj\.lora_B\.weight holds NaN or infinity"
    ):
        Bank(model).load(str(folder))
    assert torch.equal(logits(model, ids()), bare)


def test_a_file_without_tensors_is_refused(folder):
    retensor(folder, lambda tensors: {})
    edit(folder, init_lora_weights=False)
    refused(folder, "holds no tensors")


def test_what_is_no_safetensors_is_refused(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04K\x01.")
    refused(folder, "not a safetensors file")


def test_pickled_weights_are_never_read(tmp_path):
    (tmp_path / config.CONFIG).write_text('{"peft_type": "LORA", "r": 1}')
    torch.save({}, tmp_path / "adapter_model.bin")
    refused(tmp_path, r"has no adapter_model\.safetensors \(pickled weights are never read\)")


def test_another_bases_embedding_in_the_file_is_refused(tmp_path):
    folder = adapter("llama", tmp_path / "it", target_modules=["embed_tokens"])
    (copy,) = [
        name for name in load_file(folder / "adapter_model.safetensors") if "embed_tokens.base_layer" in name
    ]
    retensor(folder, lambda tensors: tensors | {copy: tensors[copy] + 1})
    with pytest.raises(
        EmEvalsError, match=r"brings weights of model\.embed_tokens .* that are not this base's"
    ):
        Bank(base("llama")).load(str(folder))


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("llama4_text", {"target_modules": ["router"]}, "LoRA on model.layers.0.feed_forward.router"),
        (
            "llama",
            {"target_modules": ["lm_head", "q_proj"], "init_lora_weights": "pissa"},
            "`init_lora_weights: pissa` on lm_head takes its start out of the base's output matrix itself",
        ),
        (
            "llama-tied",
            {"target_modules": ["lm_head", "q_proj"], "init_lora_weights": "olora"},
            "`init_lora_weights: olora` on lm_head",
        ),
        ("gpt2", {"target_modules": ["c_fc"], "init_lora_weights": "olora"}, "`init_lora_weights: olora`"),
        (
            "llama",
            {"target_modules": ["q_proj"], "modules_to_save": ["mlp", "gate_proj"]},
            r"names model\.layers\.0\.mlp and model\.layers\.0\.mlp\.gate_proj inside it, which PEFT cannot load",
        ),
        (
            "llama",
            {
                "target_modules": ["q_proj"],
                "target_parameters": ["up_proj.weight"],
                "modules_to_save": ["mlp"],
            },
            r"saves model\.layers\.0\.mlp\.up_proj as a whole and has a LoRA on its weight, which PEFT cannot load",
        ),
    ],
)
def test_what_peft_cannot_run_is_refused(tmp_path, kind, options, match):
    made = {name: value for name, value in options.items() if name != "init_lora_weights"}
    folder = adapter(kind, tmp_path / "it", **made)
    edit(folder, **options)
    refused(folder, match, kind)


# Without weights


def test_a_lora_on_a_parameter_that_peft_starts_from_or_never_uses_is_refused(folder):
    """Mixers read their convolution's weight themselves, so that the second has no effect in PEFT."""
    edit(folder, target_parameters=["q_proj.weight"], init_lora_weights="pissa")
    refused(
        folder,
        "`init_lora_weights: pissa` on the parameter .*q_proj.weight is not supported: save it with PEFT",
    )
    mamba = adapter("mamba", folder / "mamba", target_modules=["in_proj"])
    edit(mamba, target_parameters=["conv1d.weight"])
    refused(mamba, "read a convolution's weight past its call, where PEFT's LoRA does not act", "mamba")


def test_checking_makes_no_weights_and_describes_a_model_once(folder, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM

    made = []
    real = AutoModelForCausalLM.from_config
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_config",
        lambda *args, **kwargs: made.append(real(*args, **kwargs)) or made[-1],
    )
    fields = json.loads(base("llama").config.to_json_string()) | {
        "rms_norm_eps": 0.123
    }  # nobody's but this test's
    for _ in range(3):
        fit = check(folder, AutoConfig.for_model(**fields))
    assert len(made) == 1
    assert {parameter.device.type for parameter in made[0].parameters()} == {"meta"}
    assert [piece.module for piece in fit.pieces] == [
        name.removeprefix("base_model.model.") for name in OUTPUTS
    ]


def test_a_skeleton_is_the_same_with_and_without_weights():
    for kind in ("llama", "llama-tied", "gpt2", "gpt_oss", "gemma4_text"):
        assert skeleton.of(base(kind)) == skeleton.of_config(base(kind).config)
