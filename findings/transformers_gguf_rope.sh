#!/usr/bin/env bash
# transformers 5.19.0: a model read from a GGUF file loses its rope scaling, and is another model at every position.
#
# Expected: `from_pretrained(..., gguf_file=...)` gives the model that the file describes. GGUF holds the scaling of the
#   rotary embedding: `rope.scaling.type`, `.factor` and `.original_context_length` for linear and yarn, and the tensor
#   `rope_freqs.weight` for Llama 3.1 and later (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
#   https://github.com/ggml-org/llama.cpp/pull/8676). llama.cpp applies all of them.
# Seen: for every architecture but gpt-oss the keys are not read and the tensor has no counterpart: the configuration says
#   `rope_type: default`. All weights load, and no warning is given. Files of models without scaling are read exactly.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0 | gguf 0.19.0
#     largest difference of a log-probability between a model and its GGUF file, both in float32, by tokens read;
#     perplexity of 400 tokens drawn from the model
#     model               8     64    400  perplexity  of the file  rope_type read  warnings
#     llama, none     0.000  0.000  0.000        48.5         48.5  default                0
#     llama, llama3   0.864  4.787  6.355        48.2         99.5  default                0
#     llama, linear   2.306  6.174  7.040        46.5         90.6  default                0
#     qwen2, none     0.000  0.000  0.000        51.4         51.4  default                0
#     qwen2, yarn     2.107  6.608  7.581        48.6        116.4  default                0
#     gemma3, none    0.000  0.000  0.000        34.8         34.8  default                0
#     gemma3, linear  0.763  1.146  1.591        41.2         42.2  default                0
#     seen: rope scaling is lost
#
# With other versions: the same with 5.24.0.
# Hurt: whoever evaluates or fine-tunes what was exported as GGUF: Llama 3.1, 3.2 and 3.3, Gemma 3 from 4B, Qwen 2.5 and
#   Qwen 3 with yarn. An adapter trained on such a model is fitted to another one than llama.cpp serves.
# Avoid: pass the original's configuration (`config=AutoConfig.from_pretrained(...)` beside `gguf_file`), or compare
#   `model.config.rope_parameters` with it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0 gguf==0.19.0
export TQDM_DISABLE=1
python - <<'PY'
import math
import sys
import tempfile
import warnings
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

torch.set_grad_enabled(False)
VOCABULARY, TRAINED = 100, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "max_position_embeddings": 8 * TRAINED,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": TRAINED,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": TRAINED}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def llama(**rope: Any) -> PreTrainedConfig:
    return LlamaConfig(**SIZES, num_hidden_layers=2, rope_parameters=PLAIN | rope, tie_word_embeddings=False)


def qwen2(**rope: Any) -> PreTrainedConfig:
    return Qwen2Config(**SIZES, num_hidden_layers=2, rope_parameters=PLAIN | rope, tie_word_embeddings=False)


def gemma3(**rope: Any) -> PreTrainedConfig:
    full = PLAIN | {"rope_theta": 1e6} | rope
    parameters = {"full_attention": full, "sliding_attention": PLAIN}
    return Gemma3TextConfig(**SIZES, num_hidden_layers=6, head_dim=16, sliding_window=512, rope_parameters=parameters)


MODELS = {
    "llama, none": llama(),
    "llama, llama3": llama(**LLAMA3),
    "llama, linear": llama(**LINEAR),
    "qwen2, none": qwen2(),
    "qwen2, yarn": qwen2(**YARN),
    "gemma3, none": gemma3(),
    "gemma3, linear": gemma3(**LINEAR),
}


def frequencies(rope: dict[str, Any], width: int) -> np.ndarray:
    """Return what llama.cpp divides the frequencies of Llama 3.1 by, as its converter writes them."""
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def write(model: Any, path: str) -> None:
    """Write the model as GGUF, with the keys and tensors that llama.cpp's converter gives such a model."""
    config = model.config
    name = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, name)
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if name == "llama":
        writer.add_rope_dimension_count(width)
    if name == "gemma3":
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", frequencies(rope, width))
    for key, tensor in model.state_dict().items():
        values = tensor.numpy().copy()
        projection = key.split(".")[-2]
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name == "llama" and projection in heads:  # GGUF holds the two halves of a head interleaved
            split = values.reshape(heads[projection], 2, -1, *values.shape[1:])
            values = split.swapaxes(1, 2).reshape(values.shape)
        if name == "gemma3" and key.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def perplexity(logprobs: torch.Tensor, text: torch.Tensor) -> float:
    return math.exp(-logprobs[:-1].gather(-1, text[0, 1:, None]).mean().item())


print("largest difference of a log-probability between a model and its GGUF file, both in float32, by tokens read;")
print("perplexity of 400 tokens drawn from the model")
print("model               8     64    400  perplexity  of the file  rope_type read  warnings")
found = {}
for title, config in MODELS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases are not 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:  # attention as sharp as that of trained models
            parameter.add_(3)
    text = model.generate(
        torch.tensor([[3]]), do_sample=True, top_k=0, min_new_tokens=399, max_new_tokens=399, pad_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(model, f"{folder}/model.gguf")
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    one, other = (each(text).logits[0].log_softmax(-1) for each in (model, read))
    far = [(one[:tokens] - other[:tokens]).abs().max().item() for tokens in (8, 64, 400)]
    rope = read.config.rope_parameters
    kind = rope.get("full_attention", rope)["rope_type"]
    found[title] = far[-1]
    print(
        f"{title:14}",
        *(f"{value:6.3f}" for value in far),
        f"{perplexity(one, text):11.1f}",
        f"{perplexity(other, text):12.1f}  {kind:14}  {len(caught):8}",
    )

exact = [found.pop(title) for title in MODELS if title.endswith("none")]
seen = max(exact) < 1e-4 and min(found.values()) > 0.5
print("seen: rope scaling is lost" if seen else "changed: rope scaling is read, or refused")
sys.exit(0 if seen else 4)
PY
