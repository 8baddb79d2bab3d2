"""`site: writes` reaches everything that is written into the stream, on every architecture that it does not refuse."""

import re

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
from em_evals.models import architecture, interventions, invariants
from em_evals.models.architecture import decoder_layers
from em_evals.models.intervention_tables import Rows
from em_evals.models.interventions import Steering, check_blocks, check_writes
from tests.applied import applied
from tests.architectures import build, random_model, reference
from tests.selection import mostly_full
from tests.tiny_models import card

LAYERS, WIDTH = 4, 64
IDS = torch.tensor([[5, 9, 60, 31, 77, 12, 50, 33, 21]])

BLOCK = r"\.(?:layers|h|blocks)\.\d+\."
POST = BLOCK + "(?:post_attention_layernorm|post_feedforward_layernorm)$"
PLAIN = BLOCK + "(?:self_attn|mlp)$"
WRITERS = {
    "llama": PLAIN,
    "granite": PLAIN,
    "cohere": PLAIN,
    "phi": PLAIN,
    "gpt-oss": PLAIN,
    "qwen2-moe": PLAIN,
    "deepseek-v3": PLAIN,
    "gemma2": POST,
    "gemma3-text": POST,
    "olmo2": POST,
    "exaone4": POST,
    "gemma4-text": POST,
    "gemma4-moe": POST,
    "gemma4-e2b": BLOCK
    + "(?:post_attention_layernorm|post_feedforward_layernorm|post_per_layer_input_norm)$",
    "gemma4": BLOCK + "(?:post_attention_layernorm|post_feedforward_layernorm|post_per_layer_input_norm)$",
    "glm4": BLOCK + "(?:post_self_attn_layernorm|post_mlp_layernorm)$",
    "gpt2": r"\.wpe$|" + BLOCK + "(?:attn|mlp)$",
    "gpt-neox": BLOCK + "(?:attention|mlp)$",
    "llama4-text": BLOCK + "(?:self_attn|feed_forward)$",
    "qwen3-next": BLOCK + "(?:self_attn|linear_attn|mlp)$",
    "qwen3-5": BLOCK + "(?:self_attn|linear_attn|mlp)$",
    "lfm2": BLOCK + "(?:self_attn|conv|feed_forward)$",
    "falcon-h1": BLOCK + "(?:self_attn|mamba|feed_forward)$",
    "bamba": BLOCK + "(?:self_attn|mamba|feed_forward)$",
    "granite4": BLOCK + "(?:self_attn|mamba|block_sparse_moe|shared_mlp)$",
    "nemotron-h": BLOCK + "mixer$",
    "longcat-flash": BLOCK + r"(?:self_attn\.\d|mlps\.\d|mlp)$",
}
"""What writes into the stream, by the names of modules, read from each architecture's source by hand."""
REFUSED = {
    "minimax": "block 0 .MiniMaxDecoderLayer. writes into the residual stream, or norms it",
    "rwkv": "block 0 .RwkvBlock. writes into the residual stream, or norms it",
    "zamba2": "not known which of its modules write",
    "dbrx": "not known which of its modules write",
    "gemma3n-text": "does not hand on one residual stream",
}


def drawn(seed):
    chance = np.random.default_rng(seed)
    vectors = chance.normal(size=(LAYERS, WIDTH)).astype(np.float32)
    return Direction(vectors, np.zeros_like(vectors), np.ones(LAYERS, np.float32))


ONE = (Intervention(op="ablate", direction="d", site="writes", from_layer=2), [drawn(0)])
BOTH = (Intervention(op="ablate", direction=["d", "e"], site="writes", from_layer=2), [drawn(0), drawn(1)])


def columns(directions):
    vectors = torch.stack([torch.from_numpy(one.vectors[2]) for one in directions], 1)
    return torch.linalg.qr(vectors)[0]


def hooked(model, modules, edit):
    """Logits and each block's output, with `edit` on what modules put out."""

    def write(module, arguments, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    def read(module, arguments, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    seen = []
    handles = [module.register_forward_hook(write) for module in modules]
    handles += [block.register_forward_hook(read) for block in decoder_layers(model)]
    try:
        with torch.no_grad():
            return model(input_ids=IDS, use_cache=False).logits[0], seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    "name",
    mostly_full(
        WRITERS,
        *(
            "llama",
            "gemma2",
            "gemma4-e2b",
            "glm4",
            "gpt2",
            "gpt-oss",
            "qwen3-5",
            "lfm2",
            "falcon-h1",
            "nemotron-h",
        ),
    ),
)
def test_writes_are_all_that_is_written_and_nothing_else(name):
    """The logits are those of hooks on modules named by hand, and nothing of the directions is left in any block."""
    model = random_model(name)
    named = [(place, module) for place, module in model.named_modules() if "vision" not in place]
    by_hand = [
        model.get_input_embeddings(),
        *(one for place, one in named if re.search(WRITERS[name], place)),
    ]
    bare, norms = hooked(model, [], None)
    for pair in (ONE, BOTH):
        u = columns(pair[1])
        expected, streams = hooked(model, by_hand, lambda h, u=u: h - h @ u @ u.T)
        for stream, norm in zip(streams, norms, strict=True):
            assert ((stream @ u).norm(dim=-1) / norm.norm(dim=-1)).max() < 1e-5, (
                "the table of this test is wrong"
            )
        with applied(model, [pair]):
            ours, streams = hooked(model, [], None)
        for stream, norm in zip(streams, norms, strict=True):
            assert ((stream @ u).norm(dim=-1) / norm.norm(dim=-1)).max() < 1e-5
        torch.testing.assert_close(ours.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)
        assert (ours.log_softmax(-1) - bare.log_softmax(-1)).abs().max() > 1e-2
        assert 0 <= check_writes(model, [pair]) < 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused_before_anything_is_hooked(name):
    model = random_model(name)
    steering = Steering(model)
    with pytest.raises(EmEvalsError, match=REFUSED[name]):
        steering.register([ONE])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert steering.register([]) == 1, "nothing of what was refused is left in the tables"


@pytest.mark.parametrize("kept", ["embedding", "attention", "mlp", "third"])
def test_a_write_without_a_hook_is_found(kept, monkeypatch):
    """Each kind of write left out, in the last block alone where it can be."""
    known = architecture.write_modules

    def forgetful(model):
        found = known(model)
        return [
            m
            for i, m in enumerate(found)
            if i != {"embedding": 0, "attention": -3, "mlp": -2, "third": -1}[kept] % len(found)
        ]

    monkeypatch.setattr(invariants, "write_modules", forgetful)
    model = random_model("gemma4-e2b")
    place = 0 if kept == "embedding" else len(decoder_layers(model)) - 1
    with pytest.raises(EmEvalsError, match=f"block {place} .Gemma4TextDecoderLayer."):
        check_writes(model, [ONE])


@pytest.mark.parametrize("fault", ["norm", "layer norm", "further"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_that_is_normed_or_written_to_is_found_in_any_dtype(fault, dtype, monkeypatch):
    """However small: a write of a millionth, a norm that scales one coordinate by a hundredth, a mean taken away."""
    model = random_model("llama").to(dtype)
    block = model.model.layers[2]
    forward = type(block).forward

    def faulty(self, *args, **kwargs):
        hidden = forward(self, *args, **kwargs)
        if self is not block:
            return hidden
        if fault == "layer norm":
            return hidden - hidden.mean(-1, keepdim=True)
        if fault == "norm":
            return hidden * torch.where(torch.arange(WIDTH) == 7, 1.01, 1.0).to(dtype)
        return hidden + 1e-6 * torch.arange(1, WIDTH + 1).to(dtype) * (hidden.abs().amax(-1, keepdim=True))

    monkeypatch.setattr(type(block), "forward", faulty)
    with pytest.raises(EmEvalsError, match=r"block 2 .LlamaDecoderLayer. writes into the residual stream"):
        check_writes(model, [ONE])
    check_blocks(model)


def test_the_check_is_made_once_for_each_set(monkeypatch):
    model, made = random_model("llama"), []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: made.append(1) or forward(*a, **k))
    steering = Steering(model)
    model.train()
    steering.register([ONE])
    assert model.training and all(module.training for module in model.modules())
    first = len(made)
    steering.register([BOTH])
    assert len(made) - first == 2, "how blocks are written to is known by now"
    with steering.rows(None):
        block = (Intervention(op="add", direction="d"), [drawn(0)])
        steering.register([block])
        assert len(made) - first == 2
    with applied(model, [block]), torch.no_grad():
        model(IDS)
    assert len(made) - first == 3


def test_arithmetic_that_leaves_too_much_is_refused(monkeypatch):
    model = random_model("llama").to(torch.bfloat16)
    assert 1e-5 < check_writes(model, [ONE]) < 0.01
    monkeypatch.setitem(interventions._LEFT, torch.bfloat16, 1e-5)
    with pytest.raises(
        EmEvalsError, match=r"leaves 0.[0-9]% of the stream .* llama in bfloat16: use `dtype: float32`"
    ):
        check_writes(model, [ONE])


def test_an_adapter_on_the_embedding_does_not_slip_past():
    """PEFT puts its own module around the embedding, after the hooks were made."""
    from peft import LoraConfig, get_peft_model

    model = random_model("llama")
    steering = Steering(model)
    slot = steering.register([ONE])
    config = LoraConfig(r=4, target_modules=["embed_tokens", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    with steering.rows(Rows(torch.tensor([slot]))):
        _, streams = hooked(adapted, [], None)
    assert max((stream @ columns(ONE[1])).abs().max() for stream in streams) < 1e-4


def test_a_card_that_is_refused_does_not_end_the_others(tmp_path):
    path = tmp_path / "d.safetensors"
    directions.write(ONE[1][0], path)
    writes = Intervention(op="ablate", direction=str(path), site="writes", from_layer=2)
    block = Intervention(op="ablate", direction=str(path))
    folder = build("dbrx", tmp_path / "dbrx")
    engine = HFEngine(card(folder))
    try:
        sampling = Sampling(max_tokens=0, prompt_logprobs=0)
        prompt = tuple(IDS[0].tolist())
        futures = [engine.submit(Request(prompt, sampling, None, one)) for one in ((writes,), (), (block,))]
        with pytest.raises(EmEvalsError, match="DbrxBlock: it is not known which of its modules write"):
            futures[0].result(60)
        bare, steered = ([entry.logprob for entry in f.result(60).prompt_logprobs] for f in futures[1:])
    finally:
        engine.close()
    expected = reference(folder, prompt).tolist()
    assert bare == pytest.approx(expected, abs=1e-4) and steered != pytest.approx(expected, abs=1e-2)
