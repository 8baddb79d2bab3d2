"""Compiled models are the hooked ones, in stock transformers and PEFT; what is not exact is refused by name."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.cli import app
from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.reading import Reading
from em_evals.models import bases, compiled_checkpoint
from em_evals.models.compile import compile_card
from tests import architectures
from tests.selection import full, mostly_full
from tests.tiny_models import card, make_adapter, tiny

IDS = torch.tensor([[5, 9, 200, 31, 401, 12, 500, 33, 21]])
WRITES = {"op": "ablate", "direction": "d", "site": "writes", "from_layer": 1}
ADD = {"op": "add", "direction": "d", "layers": [0, 2], "scale": -0.7}
SUBSPACE = {"op": "ablate", "direction": ["one", "two"], "site": "writes", "from_layer": 1}
PUSH = {"op": "add", "direction": "one", "layers": [1, 2], "scale": 0.7}
HALF = {"op": "scale_adapter", "layers": [1], "scale": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("compile")
    (root / "adapters").mkdir()
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(3, 64)).astype(np.float32)
    directions.write(Direction(vectors, vectors, np.ones(3)), root / "adapters" / "d.safetensors")
    for kind in ("llama", "qwen2", "gemma", "gemma2", "gpt_neox"):
        tiny(kind, root / kind)
        modules = ["query_key_value", "dense"] if kind == "gpt_neox" else ["q_proj", "o_proj", "down_proj"]
        make_adapter(str(root / kind), root / f"{kind}_lora", 4, modules, seed=3, rslora=True)
    return root


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def made(root, kind, interventions, adapted):
    fields = {"base": str(root / kind), "engine": {"dtype": "float32"}, "interventions": interventions}
    if adapted:
        fields["adapter"] = str(root / f"{kind}_lora")
    path = root / "adapters" / "mine.yaml"
    path.write_text(json.dumps(fields))
    return resolve(str(path))


def hooked(one):
    """The card's logits and greedy tokens with hooks (proved against hooks by hand in test_interventions.py)."""
    with torch.no_grad(), Reading(one).read_as(one) as model:
        return model(IDS).logits, greedy(model)


def greedy(model):
    return model.generate(input_ids=IDS, do_sample=False, min_new_tokens=12, max_new_tokens=12)[0].tolist()


def agree(model, expected):
    """The same logits, to 4e-6 of the largest one (some thirty roundings of float32), and the same greedy tokens."""
    logits, tokens = expected
    with torch.no_grad():
        near = torch.allclose(model(IDS).logits, logits, rtol=0, atol=4e-6 * float(logits.abs().max()))
    return near and greedy(model) == tokens


def work(model):
    """Floating-point operations of a forward pass; with gradients, since nobody counts oneDNN's products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        model(IDS)
    return counter.get_total_flops()


def seconds(model):
    started = time.perf_counter()
    greedy(model)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("kind", "interventions", "adapted"),
    [
        full("llama", [WRITES], False),
        full("llama", [WRITES], True),
        full("llama", [ADD, WRITES], False),
        ("llama", [ADD, WRITES], True),
        full("qwen2", [WRITES], False),
        full("qwen2", [WRITES], True),
        full("gemma", [WRITES], False),
        full("gemma", [WRITES], True),
        ("gpt_neox", [WRITES, ADD], False),
        full("gpt_neox", [WRITES, ADD], True),
    ],
)
def test_a_compiled_checkpoint_is_the_hooked_model(kind, interventions, adapted, root, tmp_path):
    from transformers import AutoModelForCausalLM

    one = made(
        root, kind, [HALF, *interventions] if adapted and kind != "gpt_neox" else interventions, adapted
    )
    expected = hooked(one)
    folder = compile_card(one, "checkpoint", tmp_path / "out")
    with bases.LOADING:
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        bare = bases.load_model(card(str(root / kind)))(IDS).logits
    assert agree(stock, expected) and not torch.allclose(expected[0], bare, atol=1e-2)
    assert json.loads((folder / "em_evals.json").read_text())["card_digest"] == one.digest
    with Reading(again := resolve(str(folder), {"dtype": "float32"})).read_as(again) as model:
        assert agree(model, expected)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "interventions"), [("llama", [ADD, WRITES]), full("qwen2", [WRITES])])
def test_a_compiled_checkpoint_runs_as_fast_as_its_base(kind, interventions, root, tmp_path):
    """The base's own class, matrices and operations, and nothing else: no hook, no adapter, only biases for `add`."""
    from transformers import AutoModelForCausalLM

    folder = compile_card(made(root, kind, interventions, adapted=True), "checkpoint", tmp_path / "out")
    with bases.LOADING:
        bare, stock = (
            AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
            for place in (root / kind, folder)
        )
    assert type(stock) is type(bare)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in stock.modules())
    shapes = [{name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (bare, stock)]
    added = shapes[1].keys() - shapes[0].keys()
    assert shapes[0].items() <= shapes[1].items()
    assert bool(added) == (ADD in interventions)
    assert all(".mlp." in name and name.endswith("_proj.bias") for name in added)
    assert work(stock) == work(bare) > 1e6
    steered = made(root, kind, interventions, adapted=True)
    with Reading(steered).read_as(steered) as model:
        assert work(model) > work(bare), "hooks and the adapter cost what the checkpoint saves"
    times = [(seconds(stock), seconds(bare)) for _ in range(7)]
    fastest = [min(column) for column in zip(*times, strict=True)]
    assert fastest[0] < 2 * fastest[1]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", full("qwen2"), full("gemma")])
def test_a_compiled_lora_is_the_hooked_model(kind, adapted, root, tmp_path):
    from peft import PeftModel

    one = made(root, kind, [HALF, WRITES] if adapted else [WRITES], adapted)
    expected = hooked(one)
    folder = compile_card(one, "lora", tmp_path / "out")
    stock = PeftModel.from_pretrained(bases.load_model(card(str(root / kind))), folder).eval()
    assert agree(stock, expected)
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert files["adapter_model.safetensors"] < 400_000, "the embedding itself is not part of it"
    assert stock.peft_config["default"].r == (5 if adapted else 1)


def test_the_command_says_what_it_made(root, tmp_path):
    one = made(root, "llama", [WRITES], adapted=False)
    (root / "adapters" / "compiled.yaml").write_text(one.path.read_text())
    asked = ["compile", "compiled", "--to", "lora", "-o", str(tmp_path / "out"), "--json"]
    told = json.loads(CliRunner().invoke(app, asked, catch_exceptions=False).stdout)
    assert told["folder"] == str(tmp_path / "out") and told["to"] == "lora" and told["card"] == "compiled"
    assert told["card_digest"] == one.digest
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_scaled_adapter_compiles_to_a_lora_of_its_rank(root, tmp_path):
    from peft import PeftModel

    one = made(root, "qwen2", [HALF], adapted=True)
    expected = hooked(one)
    folder = compile_card(one, "lora", tmp_path / "out")
    stock = PeftModel.from_pretrained(bases.load_model(card(str(root / "qwen2"))), folder).eval()
    assert agree(stock, expected)
    assert stock.peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("kind", "step", "to", "sentence"),
    [
        ("llama", {"op": "clamp", "direction": "d"}, "checkpoint", "`clamp` of a block's output"),
        ("llama", {"op": "cap", "direction": "d", "value": 1.0}, "checkpoint", "`cap` of a block's output"),
        ("llama", {"op": "ablate", "direction": "d"}, "lora", "`ablate` with `site: writes` can be"),
        ("llama", ADD, "lora", "--to checkpoint"),
        (
            "llama",
            ADD | {"positions": "answer"},
            "checkpoint",
            "`add` with `positions: answer` cannot be compiled: weights act on every token",
        ),
        (
            "llama",
            WRITES | {"skip": "sink"},
            "checkpoint",
            "`ablate` with `skip: sink` cannot be compiled: weights act on every token",
        ),
        ("qwen2", ADD, "checkpoint", "qwen2 has no biases in its MLPs"),
        ("gemma2", WRITES, "checkpoint", "Gemma2DecoderLayer has a norm between"),
        ("gpt_neox", WRITES, "lora", "has a bias, which a LoRA cannot change"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(kind, step, to, sentence, root, tmp_path):
    with pytest.raises(EmEvalsError, match=sentence):
        compile_card(made(root, kind, [step], adapted=False), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(root, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(EmEvalsError, match="is not empty"):
        compile_card(made(root, "llama", [WRITES], adapted=False), "checkpoint", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


EXACT = {
    "granite": (SUBSPACE, PUSH),
    "granite4-dense": (SUBSPACE,),
    "llama-tied-bias": (SUBSPACE, PUSH),
    "falcon-h1": (SUBSPACE, PUSH),
    "nemotron-h": (SUBSPACE,),
    "qwen3-next": (SUBSPACE,),
    "qwen3-5": (SUBSPACE,),
    "lfm2": (SUBSPACE,),
    "llama4-text": (SUBSPACE,),
    "gpt-oss": (SUBSPACE,),
    "deepseek-v3": (SUBSPACE,),
    "gpt2": (SUBSPACE, PUSH),
    "bamba": (PUSH,),
}
NORMED = ("gemma4-e2b", "gemma4-moe", "glm4", "olmo2", "olmo-hybrid", "gemma3-text")


def asked(name, folder, steps):
    """A card on a tiny model, its directions beside it."""
    home = architectures.build(name, folder / "base")
    layers = architectures.load(home).config.get_text_config().num_hidden_layers
    for seed, file in enumerate(("one", "two")):
        vectors = np.random.default_rng(seed).normal(size=(layers, 64)).astype(np.float32)
        directions.write(Direction(vectors, vectors, np.ones(layers)), folder / f"{file}.safetensors")
    found = []
    for step in steps:
        names = step["direction"]
        files = [
            str(folder / f"{name}.safetensors") for name in ([names] if isinstance(names, str) else names)
        ]
        found.append(step | {"direction": files if step["op"] == "ablate" else files[0]})
    path = folder / "card.yaml"
    path.write_text(json.dumps({"base": home, "engine": {"dtype": "float32"}, "interventions": found}))
    return resolve(str(path))


@pytest.mark.parametrize(
    ("name", "step"),
    mostly_full(
        [(name, step) for name in EXACT for step in EXACT[name]],
        *(("granite", PUSH), ("gpt-oss", SUBSPACE)),
    ),
)
def test_architectures_compile_to_what_hooks_compute(name, step, tmp_path):
    """Multipliers between a block's parts and the stream, experts, states, positions, transposed matrices."""
    one = asked(name, tmp_path, [step])
    row = IDS[0].remainder(90)
    with torch.no_grad(), Reading(one).read_as(one) as model:
        expected = model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1)
    folder = compile_card(one, "checkpoint", tmp_path / "out")
    found = architectures.logits(architectures.load(str(folder)), row.tolist()).log_softmax(-1)
    bare = architectures.logits(architectures.load(one.card.base), row.tolist()).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - bare).abs().max() > 1e-2
    assert json.loads((folder / "em_evals.json").read_text())["largest_difference"] < 1e-4


@pytest.mark.parametrize("name", mostly_full(NORMED, "glm4"))
def test_a_norm_between_a_block_and_the_stream_is_no_change_of_weights(name, tmp_path):
    for step in (SUBSPACE, PUSH):
        with pytest.raises(EmEvalsError, match="has a norm between its parts and the stream"):
            compile_card(asked(name, tmp_path, [step]), "checkpoint", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_residual_multiplier_that_is_forgotten_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_checkpoint, "write_gain", lambda block: 1.0)
    with pytest.raises(EmEvalsError, match=r"the compiled model differs from the model with hooks: .* nats"):
        compile_card(asked("granite", tmp_path, [PUSH]), "checkpoint", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base",
        "card.yaml",
        "one.safetensors",
        "two.safetensors",
    ]


def test_what_saving_loses_is_found_out(tmp_path):
    """The configuration says `mlp_bias`, and the class that reads it has no such biases."""
    with pytest.raises(EmEvalsError, match="the written model differs from the model with hooks"):
        compile_card(asked("deepseek-v32", tmp_path, [PUSH]), "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantized_base_is_refused_by_name_before_its_weights_load(tmp_path, monkeypatch):
    card = asked("llama", tmp_path, [SUBSPACE])
    path = Path(card.card.base) / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    monkeypatch.setattr(bases, "load_model", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(EmEvalsError, match=r"is quantized \(mxfp4\).* name its 16-bit base"):
        compile_card(card, "checkpoint", tmp_path / "out")
