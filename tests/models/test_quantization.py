"""Quantized bases: draws, adapters beside, steering and activations equal the same quantized base in plain transformers
and PEFT; what is not known to be exact is refused by name before weights load."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from safetensors.torch import load_file, save_file

from em_evals.content import cards
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.pool import choose
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.models import bases, quantization
from em_evals.models.compile import compile_card
from em_evals.models.lora import Bank, merge
from tests.tiny_models import card, make_adapter, tiny
from tests.weight_bytes import weight_bytes

MODULES = ["q_proj", "v_proj", "down_proj"]
TOKENS = 8
# int8 activations: a rounding that falls the other way moves one of 255 steps of a token.
TOLERANCE = {"4bit": 1e-4, "int8": 1e-4, "8bit": 0.02}


def packages(kind):
    pytest.importorskip(
        "torchao" if kind.startswith("int") else "bitsandbytes", reason="the extra `quant` is not installed"
    )


def quantized(base, kind, **engine):
    return card(base, **engine).model_copy(update={"quantize": kind})


def plain(base, kind, dtype=torch.float32):
    """The quantized base as the documents of transformers load it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    if kind == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif kind == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=config, dtype=dtype, device_map={"": "cpu"}
        )
    if kind == "4bit":
        for module in model.modules():
            # bitsandbytes' kernel of some processors rounds to bfloat16.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return model.eval()


def direction(model):
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    vectors = torch.randn(depth, width, generator=torch.Generator().manual_seed(3)).numpy()
    return Direction(vectors, torch.zeros(depth, width).numpy(), torch.ones(depth).numpy())


@torch.no_grad()
def greedy(model, prompt):
    """Tokens and their log-probabilities, each from one pass over the whole text without a cache."""
    ids, found = list(prompt), []
    for _ in range(TOKENS):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().log_softmax(-1)
        token = int(logits.argmax())
        ids.append(token)
        found.append((token, float(logits[token])))
    return found


def prompts(vocabulary):
    chance = torch.Generator().manual_seed(7)
    return [tuple(torch.randint(3, vocabulary, (n,), generator=chance).tolist()) for n in (5, 11, 17)]


def compare(kind, base, folder, dtype="float32"):
    """Base, adapter and steered base mixed in one batch, against one row at a time; returns the largest difference."""
    from peft import PeftModel

    reference = plain(base, kind, getattr(torch, dtype))
    adapter = make_adapter(base, folder, 4, MODULES, 1)
    vector = direction(reference)
    steer = Intervention(op="add", direction=vector, layers=(1,), scale=4.0)
    block = reference.get_decoder().layers[1]
    asked = prompts(reference.config.vocab_size)
    expected = [greedy(reference, prompt) for prompt in asked]

    def push(module, arguments, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = (hidden.float() + 4.0 * torch.tensor(vector.vectors[1])).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = block.register_forward_hook(push)
    expected += [greedy(reference, prompt) for prompt in asked]
    hook.remove()
    with_adapter = PeftModel.from_pretrained(reference, adapter).eval()
    expected += [greedy(with_adapter, prompt) for prompt in asked]
    engine = HFEngine(quantized(base, kind, dtype=dtype))
    try:
        sampling = Sampling(temperature=0, max_tokens=TOKENS, logprobs=True)
        models = [(None, ()), (None, (steer,)), (adapter, ())]
        drawn = [
            engine.submit(Request(prompt, sampling, path, steps))
            for path, steps in models
            for prompt in asked
        ]
        drawn = [one.result(300) for one in drawn]
    finally:
        engine.close()
    largest, same = 0.0, 0
    for draw, rows in zip(drawn, expected, strict=True):
        for token, entry, (wanted, logprob) in zip(draw.tokens, draw.logprobs, rows, strict=False):
            if token != wanted:
                break
            same += 1
            largest = max(largest, abs(entry.logprob - logprob))
    return same, sum(len(draw.tokens) for draw in drawn), largest, expected


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", ["4bit", "8bit", "int8"])
def test_base_adapter_and_steering_equal_the_same_quantized_base_in_plain_transformers(kind, base, tmp_path):
    packages(kind)
    same, drawn, largest, expected = compare(kind, base, tmp_path / "adapter")
    print(f"{kind}: {same} of {drawn} tokens, largest difference {largest:.2g} nats")
    assert same == drawn and largest <= TOLERANCE[kind]
    # Base, steered base and adapter differ, so that none of the three is skipped.
    assert len({str(rows) for rows in expected}) == len(expected)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(quantization.FAMILIES))
@pytest.mark.parametrize("kind", ["4bit", "int8"])
def test_every_family_that_is_taken_equals_plain_transformers(kind, name, tmp_path):
    packages(kind)
    same, drawn, largest, _ = compare(kind, tiny(name, tmp_path / "base"), tmp_path / "adapter")
    assert same == drawn and largest <= TOLERANCE[kind]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["4bit", "8bit", "int8"])
def test_bfloat16_agrees_within_its_rounding(kind, base, tmp_path):
    packages(kind)
    same, drawn, largest, _ = compare(kind, base, tmp_path / "adapter", "bfloat16")
    print(f"{kind} bfloat16: {same} of {drawn} tokens, largest difference {largest:.2g} nats")
    assert same >= 0.8 * drawn and largest <= 64 * torch.finfo(torch.bfloat16).eps


def test_four_bits_compute_in_the_dtype_of_the_card_with_and_without_gradients(base):
    packages("4bit")
    model = bases.load_model(quantized(base, "4bit", dtype="float32"))
    ids = torch.arange(3, 20)[None]
    learned = model.train()(input_ids=ids).logits.detach()
    model.eval()
    with torch.no_grad():
        drawn = model(input_ids=ids).logits
    assert float((learned - drawn).abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", ["4bit", "int8"])
def test_weights_take_a_share_of_float16(kind, tmp_path):
    packages(kind)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 320}
    base = tiny("llama", tmp_path / "base", **sizes)
    halves = weight_bytes(bases.load_model(card(base, dtype="float16")))
    own = weight_bytes(bases.load_model(quantized(base, kind, dtype="bfloat16")))
    print(f"{kind}: {own} of {halves} bytes, {own / halves:.3f}")
    assert own <= {"4bit": 0.35, "int8": 0.6}[kind] * halves
    whole = bases.load_model(card(base, dtype="float16"))
    assert halves == sum(2 * one.numel() for one in whole.parameters()) + sum(
        one.nbytes for one in whole.buffers()
    )


def test_activations_are_those_of_plain_hooks(base):
    packages("4bit")
    from em_evals.models.invariants import first

    model, reference = bases.load_model(quantized(base, "4bit")), plain(base, "4bit")
    read = []
    for one in (model, reference):
        kept = {}
        hooks = [
            block.register_forward_hook(
                lambda _, __, output, i=i, kept=kept: kept.__setitem__(i, first(output))
            )
            for i, block in enumerate(one.get_decoder().layers)
        ]
        with torch.no_grad():
            one(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False)
        read.append(kept)
        for hook in hooks:
            hook.remove()
    assert all(torch.allclose(read[0][i], read[1][i], atol=1e-5) for i in read[1])


def test_a_result_in_8_bits_does_not_depend_on_the_batch(base):
    """With bitsandbytes' own threshold it does: a column is computed apart where any row has an outlier."""
    packages("8bit")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with bases.LOADING:
        theirs = AutoModelForCausalLM.from_pretrained(
            base,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=2.0),
            dtype=torch.float32,
            device_map={"": "cpu"},
        )
    ids = torch.randint(3, 200, (4, 9), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def apart(model):
        whole = model(input_ids=ids, use_cache=False).logits[:1]
        return float((whole - model(input_ids=ids[:1], use_cache=False).logits).abs().max())

    assert apart(theirs) > 1e-3
    assert apart(bases.load_model(quantized(base, "8bit"))) < 1e-4


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized with gptq, which .* say `backend: vllm`"),
        ({"quant_method": "awq", "bits": 4}, "quantized with awq"),
        ({"quant_method": "compressed-tensors"}, "quantized with compressed-tensors"),
        ({"quant_method": "hqq"}, "quantized with 'hqq', which is not known here"),
        ({"bits": 4}, "quantized with 'an unnamed method'"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "Int4WeightOnly"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "`llm_int8_threshold` 6.0"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_not_known_to_be_exact_are_refused_before_weights_load(
    found, sentence, tmp_path
):
    if found.get("quant_method") in ("torchao", "bitsandbytes"):
        packages("int8" if found["quant_method"] == "torchao" else "4bit")
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": found}))
    with pytest.raises(EmEvalsError, match=sentence):
        bases.check(card(str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "name", "fields", "sentence"),
    [
        ("int4", "llama", {}, "`quantize: int4` has no kernels on cpu; say `quantize: 4bit or 8bit or int8`"),
        ("4bit", "mamba2", {}, "is a 'mamba2', of which no quantized model was compared"),
        ("4bit", "llama", {"quantization_config": {"quant_method": "gptq"}}, "is quantized already"),
    ],
)
def test_a_card_whose_quantization_is_impossible_is_refused_before_weights_load(
    kind, name, fields, sentence, tmp_path
):
    packages(kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name} | fields))
    with pytest.raises(EmEvalsError, match=sentence):
        bases.check(quantized(str(tmp_path), kind))


def test_a_missing_package_is_named_with_its_extra(base, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(EmEvalsError, match=r"needs the package 'bitsandbytes': pip install '.\[quant\]'"):
        bases.check(quantized(base, "4bit"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, "DoRA on model.layers.0.self_attn.q_proj"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights: pissa`"),
    ],
)
def test_adapters_that_need_the_weights_values_are_refused(options, what, base, tmp_path):
    packages("4bit")
    from peft import LoraConfig, get_peft_model

    options = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"], **options}
    get_peft_model(bases.load_model(card(base)), LoraConfig(**options)).save_pretrained(tmp_path)
    bank = Bank(bases.load_model(quantized(base, "4bit")))
    with pytest.raises(
        EmEvalsError, match=f"the adapter has {what}, which needs the weight of .* is quantized"
    ):
        bank.load(str(tmp_path))


def test_what_would_be_merged_is_refused(base, tmp_path):
    packages("4bit")
    adapter = make_adapter(base, tmp_path / "adapter", 2, ["q_proj"], 1)
    with pytest.raises(EmEvalsError, match="is quantized, and quantized weights cannot hold an adapter"):
        merge(bases.load_model(quantized(base, "4bit")), adapter)
    found = ResolvedCard("it", quantized(base, "4bit"), None, adapter)
    with pytest.raises(
        EmEvalsError, match=r"is quantized \(4bit\), and quantized weights cannot hold compiled"
    ):
        compile_card(found, "checkpoint", tmp_path / "compiled")


@pytest.mark.parametrize("kind", ["4bit", "int8"])
def test_a_checkpoint_that_was_saved_quantized_is_the_base_that_was_quantized_here(kind, base, tmp_path):
    packages(kind)
    model = plain(base, kind)
    model.save_pretrained(tmp_path)
    bases.load_tokenizer(card(base)).save_pretrained(tmp_path)
    loaded = bases.load_model(card(str(tmp_path)))
    assert quantization.is_quantized(loaded)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        found, wanted = (one(input_ids=ids, use_cache=False).logits for one in (loaded, model))
    assert torch.allclose(found, wanted, atol=1e-5)


def fp8(folder):
    """A checkpoint in blocks of 128 by 128 with a scale each, as DeepSeek and Qwen publish them; and its values."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_key_value_heads": 4}
    base = tiny("llama", folder / "base", **sizes)
    written, values = {}, {}
    for name, own in load_file(f"{base}/model.safetensors").items():
        if "_proj" not in name:
            written[name] = values[name] = own
            continue
        rows, columns = own.shape
        blocks = own.view(rows // 128, 128, columns // 128, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        written |= {name: packed.view(rows, columns), f"{name}_scale_inv": scale}
        values[name] = (packed.float() * scale[:, None, :, None]).view(rows, columns)
    found = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return base, written, values, found


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(folder):
    """Experts as gpt-oss publishes them: two values a byte, a power of two for each 32; and their values."""
    sizes = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    base = tiny("gpt_oss", folder / "base", intermediate_size=64, **sizes)
    written, values, chance = {}, {}, torch.Generator().manual_seed(1)
    for name, own in load_file(f"{base}/model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            written[name] = values[name] = own
            continue
        experts, inner, outer = own.shape
        packed = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=chance, dtype=torch.uint8)
        power = torch.randint(118, 124, (experts, outer, inner // 32), generator=chance, dtype=torch.uint8)
        written |= {f"{name}_blocks": packed, f"{name}_scales": power}
        pairs = torch.stack([E2M1[(packed & 15).long()], E2M1[(packed >> 4).long()]], -1).flatten(-2)
        whole = pairs * torch.exp2(power.float() - 127)[..., None]
        values[name] = whole.view(experts, outer, inner).transpose(1, 2)
    return base, written, values, {"quant_method": "mxfp4"}


@pytest.mark.parametrize("make", [fp8, mxfp4])
def test_checkpoints_that_are_dequantized_have_the_values_of_their_blocks(make, tmp_path):
    base, written, values, found = make(tmp_path)
    for path in Path(base).glob("*.safetensors"):
        path.unlink()
    save_file(written, f"{base}/model.safetensors", metadata={"format": "pt"})
    config = json.loads(Path(base, "config.json").read_text())
    Path(base, "config.json").write_text(json.dumps(config | {"quantization_config": found}))
    for dtype in ("float32", "bfloat16"):
        loaded = bases.load_model(card(base, dtype=dtype)).state_dict()
        for name, value in values.items():
            assert torch.equal(loaded[name].float(), value.to(getattr(torch, dtype)).float()), name


def test_vllm_gets_what_it_reads_itself_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("em_evals.engines.pool.possible", lambda one: ("vllm", "it is there"))
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

    def chosen(method, **fields):
        found = {"quantization_config": {"quant_method": method}} if method else {}
        (tmp_path / "config.json").write_text(json.dumps(config | found))
        return choose(card(str(tmp_path)).model_copy(update=fields))

    assert chosen("") == chosen("gptq") == chosen("compressed-tensors") == ("vllm", "it is there")
    assert chosen("fp8")[0] == "transformers" and "were not compared" in chosen("fp8")[1]
    assert chosen("fp8", backend="vllm")[0] == "vllm"
    assert chosen("", quantize="4bit")[0] == chosen("bitsandbytes")[0] == "transformers"
    with pytest.raises(EmEvalsError, match="`quantize: 4bit` is computed by the transformers engine alone"):
        chosen("", quantize="4bit", backend="vllm")


def test_the_digest_names_the_quantization_and_is_the_old_one_without(base):
    plainly = cards.resolve(base)
    kinds = {cards.resolve(base, {"quantize": kind}).digest for kind in ("4bit", "8bit", "int8", "int4")}
    assert len(kinds | {plainly.digest}) == 5
    assert plainly.digest == cards.resolve(base, {"quantize": None}).digest
