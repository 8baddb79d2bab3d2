"""Interventions in the engine are the hooks that one would write by hand: alone, composed, mixed in one batch, with and
without adapters, on every architecture; and `writes` is what orthogonalised weights compute."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from tests.selection import mostly_full
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import card, make_adapter, tiny

KINDS = ["llama", "qwen2", "gemma", "gemma2", "gpt_neox"]
LAYERS, WIDTH = 3, 64
PROMPTS = [[5, 9, 200, 31, 77, 78], [5, 9, 200, 31, 401, 12, 500, 33, 21]]
"""Two lengths, so that rows are padded; they begin alike."""
ANSWERS = [4, 6]
"""Where the answers in them begin."""
SETS = {
    "none": [],
    "add": [{"op": "add", "layers": [1], "scale": 1.5}],
    "add relative": [{"op": "add", "layers": "0-1", "scale": -0.5, "relative": True}],
    "ablate": [{"op": "ablate"}],
    "ablate mean": [{"op": "ablate", "layers": [0, 2], "reference": "mean", "skip": "sink"}],
    "one layer's vector": [{"op": "ablate", "from_layer": 1}],
    "clamp": [{"op": "clamp", "layers": [1], "value": 2.5}],
    "prompt": [{"op": "add", "layers": [1], "scale": 2.0, "positions": "prompt"}],
    "answer": [{"op": "add", "layers": [0], "scale": 2.0, "positions": "answer"}],
    "composed": [{"op": "ablate", "reference": "mean"}, {"op": "add", "layers": [1], "scale": 1.0}],
    "writes": [{"op": "ablate", "site": "writes", "from_layer": 1}],
    "cap": [{"op": "cap", "value": 0.4}],
    "lower cap": [{"op": "cap", "layers": [0, 2], "value": 0.3, "bound": "lower", "skip": "sink"}],
    "subspace": [{"op": "ablate", "direction": ["d", "e"], "positions": "prompt"}],
    "subspace mean": [
        {"op": "ablate", "direction": ["d", "e"], "reference": "mean", "layers": "0-1"},
        {"op": "cap", "value": -0.2, "layers": [1], "from_layer": 2},
    ],
    "subspace of writes": [{"op": "ablate", "site": "writes", "from_layer": 1, "direction": ["d", "e"]}],
}

SCALED = {
    "half an adapter": [{"op": "scale_adapter", "layers": [1], "scale": 0.5}],
    "no adapter, and a push": [
        {"op": "scale_adapter", "scale": 0.0},
        {"op": "add", "layers": [1], "scale": 1.5},
    ],
    "composed, an adapter turned": [
        {"op": "scale_adapter", "layers": "0-1", "scale": -1.5},
        {"op": "ablate"},
    ],
}
"""For rows with an adapter."""


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def drawn(seed, near=None):
    chance = np.random.default_rng(seed)
    vectors = chance.normal(size=(LAYERS, WIDTH)).astype(np.float32)
    return Direction(
        vectors if near is None else vectors + near.vectors,
        chance.normal(size=(LAYERS, WIDTH)).astype(np.float32),
        np.full(LAYERS, 3.0, np.float32),
    )


FOUND = drawn(0)
OTHER = drawn(1, near=FOUND)
"""At 45 degrees to it: one ablation after the other is not the joint one."""


@pytest.fixture(scope="module")
def direction(tmp_path_factory):
    folder = tmp_path_factory.mktemp("direction")
    for name, one in {"d": FOUND, "e": OTHER}.items():
        directions.write(one, folder / f"{name}.safetensors")
    return FOUND, str(folder / "d.safetensors")


def interventions(name, path):
    """A set with its directions as files: `path`, and what a list names beside it."""

    def files(fields):
        if fields["op"] == "scale_adapter":
            return {}
        names = fields.get("direction")
        return {
            "direction": [str(Path(path).with_name(f"{one}.safetensors")) for one in names] if names else path
        }

    return tuple(Intervention.model_validate(fields | files(fields)) for fields in (SETS | SCALED)[name])


def by_hand(model, direction, name, start, ids):
    """Logits of one row, with hooks spelled out from DESIGN's table, one op at a time, in a plain forward pass."""
    handles = []

    def unit(layer, of=direction):
        return torch.tensor(of.vectors[layer]) / np.linalg.norm(of.vectors[layer])

    def op(fields, layer):
        source = fields.get("from_layer", layer)
        v, u = torch.tensor(direction.vectors[source]), unit(source)

        def act(h):
            if "direction" in fields:
                # The joint projection by least squares, and the point of the span with each file's own mean.
                columns = torch.stack([unit(source), unit(source, OTHER)], 1)
                inverse = torch.linalg.pinv(columns)
                point = torch.zeros(WIDTH)
                if "reference" in fields:
                    means = [
                        float(torch.tensor(d.base_mean[source]) @ unit(source, d)) for d in (direction, OTHER)
                    ]
                    point = inverse.T @ torch.tensor(means)
                new = h - h @ (columns @ inverse) + point
            elif fields["op"] == "cap":
                along = h @ u
                bound = {"max": fields["value"]} if "bound" not in fields else {"min": fields["value"]}
                new = h + torch.outer(along.clamp(**bound) - along, u)
            elif fields["op"] == "add":
                new = h + fields["scale"] * (direction.mean_norm[source] * u if fields.get("relative") else v)
            elif fields["op"] == "clamp":
                new = h - torch.outer(h @ u, u) + fields["value"] * u
            else:
                m = torch.tensor(direction.base_mean[source]) if "reference" in fields else torch.zeros(WIDTH)
                new = h - torch.outer((h - m) @ u, u)
            for place in range(len(h)):
                kind = "answer" if place >= start else "prompt"
                spared = fields.get("skip") == "sink" and place == 0
                if spared or fields.get("positions", kind) != kind:
                    new[place] = h[place]
            return new

        return act

    def hook(act):
        def run(module, args, output):
            if isinstance(output, tuple):
                return (act(output[0][0])[None], *output[1:])
            return act(output[0])[None]

        return run

    for fields in (SETS | SCALED)[name]:
        if fields.get("site") == "writes":
            for module in writers(model):
                handles.append(module.register_forward_hook(hook(op(fields, 0))))
            continue
        layers = fields.get("layers", "all")
        layers = (
            {"all": range(LAYERS), "0-1": [0, 1]}.get(layers, layers) if isinstance(layers, str) else layers
        )
        for layer in layers:
            if fields["op"] == "scale_adapter":
                for module in adapters(blocks(model)[layer]):
                    handles.append(module.register_forward_hook(scaled(fields["scale"])))
            else:
                handles.append(blocks(model)[layer].register_forward_hook(hook(op(fields, layer))))
    try:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def inner(model):
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.gpt_neox if hasattr(plain, "gpt_neox") else plain.model


def blocks(model):
    return inner(model).layers


def adapters(block):
    """What each adapter of a block puts out last."""
    return [module for name, module in block.named_modules() if name.endswith("lora_B.default")]


def scaled(scale):
    return lambda module, args, output: output * scale


def writers(model):
    kind = model.config.model_type
    found = [inner(model).embed_in if kind == "gpt_neox" else inner(model).embed_tokens]
    for block in blocks(model):
        if kind == "gemma2":
            found += [block.post_attention_layernorm, block.post_feedforward_layernorm]
        else:
            found += [block.attention if kind == "gpt_neox" else block.self_attn, block.mlp]
    return found


def greedy(model, direction, name, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(by_hand(model, direction, name, len(prompt), ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("kind", "adapted"),
    mostly_full(product(KINDS, (False, True)), ("llama", True), ("gemma2", False)),
)
def test_all_sets_mixed_in_one_batch_are_the_hooks_by_hand(kind, adapted, direction, tokenizer, tmp_path):
    """Every set, on two prompts, scored and continued together, with an adapter (and parts of it) or without."""
    found, path = direction
    base = tiny(kind, tmp_path / kind, tokenizer)
    modules = ["query_key_value", "dense"] if kind == "gpt_neox" else ["q_proj", "down_proj"]
    adapter = make_adapter(base, tmp_path / "lora", 4, modules, seed=3) if adapted else None
    names = [*SETS, *(SCALED if adapted else ())]
    engine = HFEngine(card(base))
    try:
        scored, continued = {}, {}
        for name in names:
            sets = interventions(name, path)
            for i, (prompt, start) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
                scoring = Sampling(max_tokens=0, prompt_logprobs=0)
                scored[name, i] = engine.submit(Request(tuple(prompt), scoring, adapter, sets, start))
                drawing = Sampling(temperature=0, max_tokens=4)
                continued[name, i] = engine.submit(Request(tuple(prompt), drawing, adapter, sets))
        scored = {key: future.result(120) for key, future in scored.items()}
        continued = {key: future.result(120) for key, future in continued.items()}
    finally:
        engine.close()
    model = bases.load_model(card(base))
    if adapted:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    changed = 0
    for name in names:
        for i, (prompt, start) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            logprobs = by_hand(model, found, name, start, prompt).log_softmax(-1)
            expected = [float(logprobs[j, token]) for j, token in enumerate(prompt[1:])]
            seen = [entry.logprob for entry in scored[name, i].prompt_logprobs]
            assert seen == pytest.approx(expected, abs=1e-5), name
            changed += seen != pytest.approx([e.logprob for e in scored["none", i].prompt_logprobs], abs=1e-3)
            ours = continued[name, i].tokens
            assert ours == greedy(model, found, name, prompt, 4)[: len(ours)], name
    assert changed == 2 * (len(names) - 1), "every set must have an effect on every prompt"


def test_writes_are_what_orthogonalized_weights_compute(direction, tokenizer, tmp_path):
    found, _ = direction
    base = tiny("llama", tmp_path / "llama", tokenizer)
    model = bases.load_model(card(base))
    hooked = by_hand(model, found, "writes", 9, PROMPTS[1])
    u = torch.tensor(found.vectors[1] / np.linalg.norm(found.vectors[1]))
    project = torch.eye(WIDTH) - torch.outer(u, u)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ project)
        for block in model.model.layers:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight.copy_(project @ linear.weight)
        assert torch.allclose(model(torch.tensor([PROMPTS[1]])).logits[0], hooked, atol=1e-4)


def test_scaling_an_adapter_is_scaling_its_b(direction, tokenizer, tmp_path):
    base = tiny("qwen2", tmp_path / "qwen2", tokenizer)
    adapter = make_adapter(base, tmp_path / "lora", 2, ["down_proj"], seed=1)
    half = Intervention(op="scale_adapter", layers=[1], scale=0.5)
    off = Intervention(op="scale_adapter", scale=0)
    engine = HFEngine(card(base))
    try:
        scoring = Sampling(max_tokens=0, prompt_logprobs=0)
        futures = [
            engine.submit(Request(tuple(PROMPTS[0]), scoring, source, sets))
            for source, sets in ((adapter, ()), (adapter, (half,)), (adapter, (off,)), (None, ()))
        ]
        whole, scaled, silent, bare = ([e.logprob for e in f.result(60).prompt_logprobs] for f in futures)
        wrong = engine.submit(Request((5,), scoring, adapter, (half.model_copy(update={"layers": (9,)}),)))
        with pytest.raises(EmEvalsError, match="layers \\[9\\]"):
            wrong.result(60)
    finally:
        engine.close()
    assert silent == pytest.approx(bare, abs=1e-6) and whole != pytest.approx(bare, abs=1e-3)
    from peft import PeftModel

    model = PeftModel.from_pretrained(bases.load_model(card(base)), adapter).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1." in name and "lora_B" in name:
                parameter.mul_(0.5)
        logits = model(torch.tensor([PROMPTS[0]])).logits[0].log_softmax(-1)
    expected = [float(logits[j, token]) for j, token in enumerate(PROMPTS[0][1:])]
    assert scaled == pytest.approx(expected, abs=2e-5) and not math.isclose(
        scaled[-1], whole[-1], abs_tol=1e-4
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"op": "add"}, "needs a `direction`"),
        ({"op": "scale_adapter", "direction": "d"}, "has no `direction`"),
        ({"op": "clamp", "direction": "d", "reference": "mean"}, "has no `reference`"),
        ({"op": "ablate", "direction": "d", "site": "writes"}, "needs `from_layer`"),
        ({"op": "add", "direction": "d", "layers": "7-3"}, "a range such as 12-18"),
        ({"op": "add", "direction": "d", "layers": [-1]}, "counted from 0"),
        ({"op": "add", "direction": ["d", "e"]}, "`add` acts along one `direction`"),
        ({"op": "cap", "direction": ["d", "e"], "value": 1.0}, "only `ablate` takes a list"),
        ({"op": "ablate", "direction": []}, "at least 1 item"),
        ({"op": "cap", "direction": "d", "scale": 2.0}, "`cap` has no `scale`"),
        ({"op": "clamp", "direction": "d", "bound": "lower"}, "`clamp` has no `bound`"),
        ({"op": "cap", "direction": "d", "site": "writes"}, "`cap` has no `site`"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Intervention.model_validate(fields)


def test_a_layer_that_the_model_lacks_is_named(direction, tokenizer, tmp_path):
    engine = HFEngine(card(tiny("llama", tmp_path / "llama", tokenizer)))
    try:
        sets = (Intervention(op="ablate", direction=direction[1], layers=[7]),)
        with pytest.raises(EmEvalsError, match="names layer 7; this model's are 0 to 2"):
            engine.submit(Request((5, 6), Sampling(max_tokens=1), None, sets)).result(60)
    finally:
        engine.close()


def test_rows_of_different_interventions_share_no_beginning(direction, tmp_path):
    """A common beginning is computed once for each set of interventions: in one batch, rows are what they are alone."""
    _, path = direction
    engine = HFEngine(card(tiny("llama", tmp_path / "base")))
    prompt, greedy = tuple(range(20, 50)), Sampling(temperature=0, max_tokens=4, logprobs=True)
    scored = Sampling(temperature=0, max_tokens=0, prompt_logprobs=0)
    requests = [
        Request(prompt, sampling, None, interventions(name, path))
        for sampling in (greedy, scored)
        for name in ("none", "add", "ablate")
    ]
    try:
        together = [future.result() for future in [engine.submit(request) for request in requests]]
        alone = [engine.submit(request).result() for request in requests]
    finally:
        engine.close()
    said = [[entry.logprob for entry in draw.logprobs or draw.prompt_logprobs] for draw in together]
    for draw, found in zip(alone, said, strict=True):
        assert found == pytest.approx(
            [entry.logprob for entry in draw.logprobs or draw.prompt_logprobs], abs=1e-4
        )
    assert len({tuple(found) for found in said}) == len(said), "every set must have an effect"
