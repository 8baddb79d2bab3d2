"""The bank: names of other classes, experts that stand alone, scaling, hooks' order, failures, identity."""

import copy
import json
import warnings
from itertools import product

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from safetensors.torch import load_file, save_file

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models import lora
from em_evals.models.architecture import decoder_layers
from em_evals.models.lora import Bank, check
from tests.lora_lab import SIZES, adapter, base, fresh, ids, logits, with_peft
from tests.selection import full

ATTENTION = ["q_proj", "v_proj"]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def randomized(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def trained(model, folder, **options):
    """PEFT's model with everything in it moved, saved to the folder."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, lora_alpha=8, **options))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        made.save_pretrained(folder)
    return made.eval()


# Names


@pytest.fixture(scope="module")
def composite():
    """A tiny Qwen3.5 as most tools hold it, and its text model with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sizes = {**SIZES, "num_hidden_layers": 4, "head_dim": 8, "layer_types": None}
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    empty = AutoConfig.for_model("qwen3_5")
    vision = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
    config = type(empty)(
        text_config={**type(empty.text_config)().to_dict(), **sizes, **linear},
        vision_config={**type(empty.vision_config)().to_dict(), **vision},
        tie_word_embeddings=False,
    )
    whole = randomized(AutoModelForImageTextToText.from_config(config))
    text = AutoModelForCausalLM.from_config(config).eval()
    names = {
        name.replace("model.language_model.", "model."): value for name, value in whole.state_dict().items()
    }
    assert not text.load_state_dict(names, strict=False).missing_keys
    close(logits(text, ids()), logits(whole, ids()))
    return whole, text


@pytest.mark.parametrize("modules", [["q_proj", "out_proj", "down_proj"], ["in_proj_qkv", "lm_head"]])
@pytest.mark.parametrize("way", ["composite to text", "text to composite"])
def test_the_text_decoders_prefix_is_mapped_both_ways(composite, tmp_path, modules, way):
    source, here = composite if way == "composite to text" else composite[::-1]
    there = trained(source, tmp_path, target_modules=modules, exclude_modules=r".*visual.*")
    bank = Bank(here)
    name = bank.load(str(tmp_path))
    with bank.rows([name]):
        found = logits(here, ids())
    close(found, logits(there, ids()))
    assert (logits(here, ids()) - logits(there, ids())).abs().max() > 0.1
    assert len(check(tmp_path, here.config).pieces) == len(bank.fit(name).pieces)


def test_a_lora_on_the_vision_tower_is_refused_by_the_text_model(composite, tmp_path):
    whole, text = composite
    trained(whole, tmp_path, target_modules=["q_proj", "qkv"])
    with pytest.raises(
        EmEvalsError, match=r"model\.visual\.blocks\.0\.attn\.qkv\.lora_A\.weight belongs to no module"
    ):
        Bank(text).load(str(tmp_path))


def test_keys_without_pefts_prefix_and_with_the_adapters_name_are_read(tmp_path):
    folder = adapter("llama", tmp_path, target_modules=ATTENTION)
    file = folder / "adapter_model.safetensors"
    expected = logits(with_peft("llama", folder), ids())
    renamed = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file)
    bank = Bank(base("llama"))
    with bank.rows([bank.load(str(folder))]):
        close(logits(base("llama"), ids()), expected)


@pytest.mark.parametrize(
    ("kind", "branches", "router"),
    [
        ("qwen3_moe", {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}, "mlp.gate"),
        ("mixtral", {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)}, "block_sparse_moe.gate"),
    ],
)
def test_experts_saved_one_by_one_before_transformers_5_are_read_as_peft_reads_them(
    tmp_path, kind, branches, router
):
    folder = adapter(kind, tmp_path, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for layer in range(3):
        place = f"base_model.model.model.layers.{layer}.{router}"
        sizes = {
            f"{place.removesuffix('gate')}experts.{expert}.{name}": size
            for expert in range(4)
            for name, size in branches.items()
        }
        for name, (out, width) in {**sizes, place: (4, 32)}.items():
            tensors |= {
                f"{name}.lora_A.weight": torch.randn(4, width) * 0.3,
                f"{name}.lora_B.weight": torch.randn(out, 4) * 0.3,
            }
    save_file(tensors, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"target_modules": ["q_proj", "gate", *branches], "target_parameters": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    bank = Bank(base(kind))
    name = bank.load(str(folder))
    expected = logits(with_peft(kind, folder), ids())
    with bank.rows([name]):
        close(logits(base(kind), ids()), expected)
    with bank.rows([name, None, None, name]):
        close(logits(base(kind), ids())[[0, 3]], expected[[0, 3]])
    tensors.pop(f"{place.removesuffix('gate')}experts.2.{next(iter(branches))}.lora_A.weight")
    save_file(tensors, file)
    with pytest.raises(EmEvalsError, match="to go with it: the file is incomplete"):
        bank.load(str(folder))


# Rows


def test_every_kind_of_adapter_shares_one_batch_with_the_others(tmp_path):
    """The faults that ended the engine: an adapter that saves modules beside one that does not."""
    kinds = {
        "plain": {"target_modules": ATTENTION},
        "saved": {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
        "tokens": {"target_modules": ["o_proj"], "trainable_token_indices": [3, 4]},
        "pissa": {"target_modules": ATTENTION, "init_lora_weights": "pissa"},
        "dora": {"target_modules": "all-linear", "use_dora": True},
    }
    places = {
        name: adapter("llama", tmp_path / name, seed=i, **options)
        for i, (name, options) in enumerate(kinds.items())
    }
    model = base("llama")
    bank, prompts = Bank(model), ids(rows=11)
    bare = logits(model, prompts)
    names = {name: bank.load(str(place)) for name, place in places.items()}
    expected = {names[name]: logits(with_peft("llama", place), prompts) for name, place in places.items()}
    rows = [None, *names.values(), *names.values()]
    with torch.inference_mode(), bank.rows(rows):
        found = logits(model, prompts)
    for row, name in enumerate(rows):
        close(found[row], (bare if name is None else expected[name])[row])
    assert torch.equal(logits(model, prompts), bare)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", full("llama4_text"), full("gemma4_text")])
def test_two_adapters_on_experts_share_a_batch_with_each_other_and_the_base(tmp_path, kind):
    options = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
    places = [adapter(kind, tmp_path / str(seed), seed=seed, **options) for seed in (1, 2)]
    bank, prompts = Bank(base(kind)), ids(rows=7, tokens=5)
    names = [bank.load(str(place)) for place in places]
    expected = {
        name: logits(with_peft(kind, place), prompts) for name, place in zip(names, places, strict=True)
    }
    expected[None] = logits(base(kind), prompts)
    rows = [names[1], None, names[0], names[0], None, names[1], names[0]]
    for one in (rows, rows[::-1]):
        with torch.inference_mode(), bank.rows(one):
            found = logits(base(kind), prompts)
        for row, name in enumerate(one):
            close(found[row], expected[name][row])
    assert torch.equal(logits(base(kind), prompts), expected[None])


def test_one_token_a_row_as_in_decoding(tmp_path):
    place = adapter("qwen3_moe", tmp_path, target_modules="all-linear")
    bank, prompts = Bank(base("qwen3_moe")), ids(rows=4, tokens=1)
    name = bank.load(str(place))
    expected = logits(with_peft("qwen3_moe", place), prompts)
    with torch.inference_mode(), bank.rows([None, name, name, None]):
        found = logits(base("qwen3_moe"), prompts)
    close(found[1:3], expected[1:3])


def test_experts_that_see_some_tokens_only_do_not_mix(tmp_path):
    """Experts as a list of modules: whose token one sees is not known there."""
    model = randomized(_ListOfExperts(base("llama").config))
    place = tmp_path / "it"
    there = trained(model, place, target_modules=["up_proj"])
    bank = Bank(model)
    name = bank.load(str(place))
    assert not bank.mixes(name)
    with bank.rows([name]):
        close(logits(model, ids()), logits(there, ids()))
    with pytest.raises(EmEvalsError, match="cannot share a batch"), bank.rows([name, None]):
        pass


def _ListOfExperts(config):
    """A Llama whose second block's MLP routes half of the tokens to each of two experts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)

    class Routed(torch.nn.Module):
        def __init__(self, experts):
            super().__init__()
            self.experts = torch.nn.ModuleList(experts)

        def forward(self, hidden):
            flat = hidden.flatten(0, 1)
            out = torch.zeros_like(flat)
            for expert, own in zip(self.experts, (flat[:, 0] > 0, flat[:, 0] <= 0), strict=True):
                out[own] = expert(flat[own])
            return out.view_as(hidden)

    block = model.model.layers[1]
    block.mlp = Routed([block.mlp, copy.deepcopy(block.mlp)])
    return model


def test_what_others_may_read_is_held_for_the_whole_pass(composite, tmp_path):
    """A convolution's weight is read by the mixer around it: the adapter is exact alone, and does not mix."""
    _, text = composite
    there = trained(text, tmp_path, target_modules=["q_proj"], modules_to_save=["conv1d"])
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    there.save_pretrained(tmp_path)
    bank = Bank(text)
    bare = logits(text, ids())
    name = bank.load(str(tmp_path))
    assert not bank.mixes(name)
    with bank.rows([name]):
        close(logits(text, ids()), logits(there, ids()))
    assert torch.equal(logits(text, ids()), bare)


def test_works_under_autograd_though_loaded_under_inference_mode(tmp_path):
    places = [adapter(kind, tmp_path / kind, target_modules="all-linear") for kind in ("llama", "qwen3_moe")]
    for kind, place in zip(("llama", "qwen3_moe"), places, strict=True):
        model, reference = base(kind), with_peft(kind, place)
        bank = Bank(model)
        with torch.inference_mode():
            name = bank.load(str(place))
        gradients = []
        for one, rows in ((model, [name, None]), (reference, None)):
            inputs = model.get_input_embeddings()(ids(rows=2)).detach().requires_grad_()
            if rows is None:
                one(inputs_embeds=inputs).logits[0].sum().backward()
            else:
                with bank.rows([name]):
                    one(inputs_embeds=inputs).logits[0].sum().backward()
            gradients.append(inputs.grad)
        torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
        with bank.rows([name, None]):
            loss = model(input_ids=ids(rows=2)).logits.sum()
        loss.backward()
        model.zero_grad()


def test_other_hooks_see_what_the_adapter_made_of_an_output(tmp_path):
    """An intervention on a write acts after the LoRA, whoever was registered first."""
    place = adapter("llama", tmp_path, target_modules=["down_proj"])
    model, seen = base("llama"), []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    bank = Bank(model)
    with bank.rows([bank.load(str(place))]):
        logits(model, ids())
    handle.remove()
    reference = with_peft("llama", place)
    reference.base_model.model.model.layers[0].mlp.down_proj.register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    logits(reference, ids())
    close(*seen)


def test_an_error_in_a_pass_leaves_the_base_as_it_was(tmp_path):
    place = adapter("qwen3_moe", tmp_path, target_modules="all-linear", modules_to_save=["norm"])
    model = base("qwen3_moe")
    bare, bank = logits(model, ids()), Bank(model)
    name = bank.load(str(place))

    def fail(*_):
        raise RuntimeError("out of memory")

    for where in (
        model.model.layers[1].mlp.experts,
        model.model.layers[1].mlp.experts.act_fn,
        model.model.norm,
    ):
        handle = where.register_forward_hook(fail)
        for rows in ([name], [name, None, name, None]):
            with pytest.raises(RuntimeError, match="out of memory"), bank.rows(rows):
                logits(model, ids())
        handle.remove()
        assert torch.equal(logits(model, ids()), bare)
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())


def test_nothing_is_done_where_no_row_has_an_adapter(tmp_path, monkeypatch):
    place = adapter("llama", tmp_path, target_modules=ATTENTION)
    model = fresh("llama")
    bank = Bank(model)
    name = bank.load(str(place))
    monkeypatch.setattr(lora.LowRank, "apply", None)
    bare = logits(base("llama"), ids())
    with bank.rows([None, None, None, None]):
        assert torch.equal(logits(model, ids()), bare)
    with bank.rows([]):
        assert torch.equal(logits(model, ids()), bare)
    bank.drop(name)
    assert not [module for module in model.modules() if module._forward_hooks]
    bank.close()
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_tokens_that_cannot_be_distinguished_are_an_error(tmp_path):
    place = adapter("gemma4_text", tmp_path, target_modules=["proj"])
    model = base("gemma4_text")
    bank = Bank(model)
    name = bank.load(str(place))
    inputs = model.get_input_embeddings()(ids()).detach()
    with (
        pytest.raises(EmEvalsError, match="not known whose they are"),
        torch.no_grad(),
        bank.rows([name, None, None, None]),
    ):
        model(inputs_embeds=inputs)


# Scaling


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": [*ATTENTION, "lm_head"]}),
        ("qwen3_moe", {"target_modules": "all-linear"}),
    ],
)
def test_scale_adapter_is_pefts_scaling_in_these_blocks(tmp_path, kind, options):
    place = adapter(kind, tmp_path, **options)
    scales = [
        Intervention(op="scale_adapter", layers="1-2", scale=0.5),
        Intervention(op="scale_adapter", layers=(2,), scale=-1),
    ]
    reference = with_peft(kind, place)
    for one, (layer, block) in product(scales, enumerate(decoder_layers(reference))):
        for module in block.modules() if one.at(layer) else ():
            if isinstance(getattr(module, "scaling", None), dict):  # an attention's own `scaling` is a number
                module.scaling["default"] *= one.scale
    bank = Bank(base(kind))
    with bank.rows([bank.load(str(place), scales)]):
        found = logits(base(kind), ids())
    close(found, logits(reference, ids()))


def test_a_scale_of_zero_gives_the_base(tmp_path):
    for kind, init in (("llama", True), ("llama", "pissa")):
        place = adapter(kind, tmp_path / str(init), target_modules=ATTENTION, init_lora_weights=init)
        bank = Bank(base(kind))
        with bank.rows([bank.load(str(place), [Intervention(op="scale_adapter", scale=0)])]):
            found = logits(base(kind), ids())
        close(found, logits(base(kind), ids()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_modules": ATTENTION, "layers_to_transform": [0]}, "the adapter has none there"),
        ({"target_modules": ATTENTION, "use_dora": True}, "DoRA on model.layers.1.self_attn.q_proj"),
        (
            {"target_modules": ATTENTION, "modules_to_save": ["input_layernorm"]},
            "the whole of model.layers.1.input_layernorm",
        ),
    ],
)
def test_a_scale_that_has_nothing_to_act_on_is_refused(tmp_path, options, match):
    place = adapter("llama", tmp_path, **options)
    with pytest.raises(EmEvalsError, match=match):
        Bank(base("llama")).load(str(place), [Intervention(op="scale_adapter", layers=(1,), scale=2)])


# Lower precision


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_in_bfloat16_it_is_peft_within_rounding(tmp_path, kind):
    place = adapter(kind, tmp_path, target_modules="all-linear")
    model = fresh(kind).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = peft.PeftModel.from_pretrained(copy.deepcopy(model), place).eval()
    bank = Bank(model)
    name = bank.load(str(place))
    bare, expected = logits(model, ids()), logits(reference, ids())
    for rows in ([name], [name] * 3 + [None]):
        with bank.rows(rows):
            found = logits(model, ids())
        assert (found[:3] - expected[:3]).abs().mean() < 0.1 * (bare[:3] - expected[:3]).abs().mean()


# Folders


def test_a_pinned_adapter_is_that_commit(tmp_path, monkeypatch):
    """In the hub's own cache, as a download leaves it; a fake network would prove less."""
    from huggingface_hub import constants

    theirs = tmp_path / "models--them--theirs"
    for name, commit, rank in (("main", "a" * 40, 1), ("v1", "b" * 40, 2)):
        snapshot = theirs / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        (snapshot / "adapter_model.safetensors").write_bytes(b"")
        (theirs / "refs").mkdir(exist_ok=True)
        (theirs / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named = ("them/theirs", "them/theirs@v1", "them/theirs@" + "b" * 40)
    assert [lora.rank(lora.locate(name)) for name in named] == [1, 2, 2]
    with pytest.raises(EmEvalsError, match="the adapter 'them/theirs@v2' cannot be fetched"):
        lora.locate("them/theirs@v2")
