"""Every option of PEFT's LoraConfig, compiled: stock transformers and PEFT read what PEFT computes, or it is refused by
name and nothing is left behind."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from em_evals.content import directions
from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models import compiled_checkpoint
from em_evals.models.compile import compile_card
from tests.architectures import tokenizer
from tests.architectures.reference import logits as rows
from tests.lora_lab import adapter, base, ids, logits, with_peft
from tests.models.test_lora_options import EXACT
from tests.selection import full

FAST = (*("pissa", "lora_bias", "bias all", "tokens tied", "patterns", "gpt_oss"),)
PLAIN_LORA = {
    *(
        "list",
        "all-linear",
        "regex",
        "exclude list",
        "exclude regex",
        "layers",
        "one layer",
        "layers pattern",
    ),
    *(
        "rslora",
        "patterns",
        "dropout",
        "gaussian",
        "orthogonal",
        "eva",
        "mica",
        "velora",
        "gpt2",
        "embedding",
    ),
    *(
        "gpt2 fan_in_fan_out",
        "gpt2 embedding",
        "tied wte",
        "scaled embedding",
        "lm_head",
        "tied lm_head",
        "tied embedding",
    ),
    *("tied both", "llama4 shared", "gemma4 all-linear", "pissa", "pissa rslora", "pissa gpt2", "olora"),
}
"""What one plain LoRA holds, pissa and olora in twice the rank."""
NO_CHECKPOINT = {"lora_bias": "`lora_bias` on model.layers.0.mlp.down_proj, which has no bias"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")

    def saved(kind):
        if not (root / kind).is_dir():
            base(kind).save_pretrained(root / kind)
            tokenizer().save_pretrained(root / kind)
        return root / kind

    return saved


def card(home, folder=None, interventions=(), **engine):
    fields = ModelCard.model_validate({"base": str(home), "engine": {"dtype": "float32", **engine}})
    return ResolvedCard("it", fields, None, folder and str(folder), tuple(interventions))


def read(home, folder, to):
    """The compiled model as anybody would load it."""
    if to == "checkpoint":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32), folder
    ).eval()


def plan():
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.full]) for name in EXACT]


@pytest.mark.parametrize("name", plan())
def test_every_option_compiles_to_what_peft_computes_or_is_refused(name, bases, tmp_path):
    kind, options = EXACT[name]
    home, folder = bases(kind), adapter(kind, tmp_path / "it", **options)
    expected, bare = logits(with_peft(kind, folder), ids()), logits(base(kind), ids())
    for to, refused in (("checkpoint", NO_CHECKPOINT.get(name)), ("lora", None)):
        if to == "lora" and name not in PLAIN_LORA:
            refused = "which a plain LoRA does not hold: compile with `--to checkpoint`"
        if refused:
            with pytest.raises(EmEvalsError, match=refused):
                compile_card(card(home, folder), to, tmp_path / to)
            assert not (tmp_path / to).exists()
            continue
        found = logits(read(home, compile_card(card(home, folder), to, tmp_path / to), to), ids())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert (found - bare).abs().max() > 0.05


def test_an_activated_lora_is_refused_by_name(bases, tmp_path):
    """Its effect hangs on tokens of the prompt: no weights of a model have it."""
    folder = adapter("llama", tmp_path / "it", target_modules=["q_proj"], alora_invocation_tokens=[3, 4])
    for to in ("checkpoint", "lora"):
        with pytest.raises(EmEvalsError, match="alora_invocation_tokens"):
            compile_card(card(bases("llama"), folder), to, tmp_path / to)
        assert not (tmp_path / to).exists()


@pytest.mark.parametrize("name", [full("tied embedding"), full("tied lm_head"), "tied both"])
def test_a_tied_base_merged_before_it_is_untied_is_found_out(name, bases, tmp_path, monkeypatch):
    """The compiled model is compared with the hooked one: the fault in the order cannot come back in silence."""
    kind, options = EXACT[name]
    folder = adapter(kind, tmp_path / "it", **options)
    monkeypatch.setattr(compiled_checkpoint, "untie", lambda model: None)
    with pytest.raises(EmEvalsError, match=r"the compiled model differs from the model with hooks: .* nats"):
        compile_card(card(bases(kind), folder), "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["checkpoint", "lora"])
def test_a_written_folder_that_lacks_a_part_is_found_out(to, bases, tmp_path, monkeypatch):
    """Read back from disk: what saving loses is not there."""
    whole = PeftModel if to == "lora" else PreTrainedModel
    save = whole.save_pretrained

    def lossy(self, folder, **options):
        save(self, folder, **options)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        name = next(name for name in sorted(tensors) if "down_proj" in name and "lora_A" not in name)
        save_file(tensors | {name: torch.zeros_like(tensors[name])}, file, metadata={"format": "pt"})

    folder = adapter("llama", tmp_path / "it", target_modules=["down_proj"])
    monkeypatch.setattr(whole, "save_pretrained", lossy)
    with pytest.raises(EmEvalsError, match="the written model differs from the model with hooks"):
        compile_card(card(bases("llama"), folder), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_rounds_once_and_says_how_far_it_is(dtype, bases, tmp_path):
    folder = adapter("llama", tmp_path / "it", target_modules="all-linear")
    out = compile_card(card(bases("llama"), folder, dtype=dtype), "checkpoint", tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert found.dtype == getattr(torch, dtype)
    peft = with_peft("llama", folder).merge_and_unload()
    for name, tensor in found.state_dict().items():
        wanted = peft.state_dict()[name]
        assert torch.equal(tensor, wanted.to(tensor.dtype)) or (tensor - wanted).abs().max() < 0.01
    told = json.loads((out / "em_evals.json").read_text())["largest_difference"]
    assert 1e-4 < told < 1


def subspace(tmp_path, layers=3, width=32):
    names = []
    for seed in range(2):
        vectors = np.random.default_rng(seed).normal(size=(layers, width)).astype(np.float32)
        names.append(str(tmp_path / f"d{seed}.safetensors"))
        directions.write(Direction(vectors, vectors, np.ones(layers)), tmp_path / f"d{seed}.safetensors")
    return Intervention(op="ablate", direction=names, site="writes", from_layer=1)


@pytest.mark.parametrize(
    "name", ["tied both", *map(full, ("patterns", "pissa", "save lm_head", "tokens tied")), "parameters"]
)
def test_writes_and_an_adapter_compile_together(name, bases, tmp_path):
    """What the adapter adds to a write is projected too; weights by hand, on PEFT's merged model."""
    kind, options = EXACT[name]
    home, folder = bases(kind), adapter(kind, tmp_path / "it", **options)
    one = subspace(tmp_path)
    vectors = [directions.read(tmp_path / f"d{seed}.safetensors").vectors[1] for seed in range(2)]
    basis = torch.linalg.qr(torch.from_numpy(np.stack(vectors)).T)[0]
    model, hooks = with_peft(kind, folder), []

    def edit(module, arguments, output):
        return output - output @ basis @ basis.T

    for place, module in model.get_base_model().named_modules():
        if place.endswith(("self_attn.o_proj", ".mlp", "model.embed_tokens")):
            hooks.append(module.register_forward_hook(edit))
    expected = rows(model, ids()[0].tolist()).log_softmax(-1)
    for to in ("checkpoint", "lora"):
        if to == "lora" and (name not in PLAIN_LORA or kind == "qwen3_moe"):
            continue
        out = compile_card(card(home, folder, [one]), to, tmp_path / to)
        found = rows(read(home, out, to), ids()[0].tolist()).log_softmax(-1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
