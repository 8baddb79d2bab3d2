#!/usr/bin/env bash
# bitsandbytes 0.50.2: on some processors 4-bit layers compute in bfloat16, whatever `bnb_4bit_compute_dtype` says.
#
# Expected: with `bnb_4bit_compute_dtype=torch.float32` a layer dequantizes its weights and multiplies in float32, in
#   training and in evaluation alike; two machines with the same versions agree up to float32's rounding.
# Seen: on a processor with AVX512-BF16, the first pass in evaluation mode that needs no gradient packs the weights for a
#   kernel that rounds activations and scales to bfloat16. Log-probabilities move by tenths of a nat, the same model in
#   training mode gives other numbers than in evaluation mode, and a processor without these instructions gives those of
#   training mode. No warning speaks of it.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0 | bitsandbytes 0.50.2
#     largest change of a log-probability from dequantized weights in float32, in nats
#     layers of bitsandbytes, training mode       0.00000
#     layers of bitsandbytes, evaluation mode     0.18142
#     the same with the kernel switched off       0.00000
#     seen: float32 is computed in bfloat16
#
# On a processor without AVX512-BF16 the script says so and ends with 3.
# Hurt: scores of QLoRA models compared across machines or with their own training, greedy draws, "float32" references.
# Avoid: `module.support_avx512bf16_for_cpu = False` on each Linear4bit before the first pass.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 bitsandbytes==0.50.2
python - <<'PY'
import logging
import sys
import tempfile

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

if not has_avx512bf16():
    print("this processor has no AVX512-BF16: nothing to see")
    sys.exit(3)
logging.disable(logging.WARNING)
torch.set_grad_enabled(False)
torch.manual_seed(0)
folder = tempfile.mkdtemp()
made = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
)
made.save_pretrained(folder)
rows = torch.randint(3, 200, (4, 24), generator=torch.Generator().manual_seed(1))
four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def loaded(quantized=True):
    how = {"quantization_config": four} if quantized else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **how)


def layers(model):
    return {name: one for name, one in model.named_modules() if isinstance(one, bnb.nn.Linear4bit)}


def scores(model):
    return model(rows, use_cache=False).logits.log_softmax(-1)


packed, plain = loaded(), loaded(quantized=False).eval()
for name, layer in layers(packed).items():
    plain.get_submodule(name).weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
right = scores(plain)
off = loaded().eval()
for layer in layers(off).values():
    layer.support_avx512bf16_for_cpu = False
table = {
    "layers of bitsandbytes, training mode": scores(packed.train()),
    "layers of bitsandbytes, evaluation mode": scores(packed.eval()),
    "the same with the kernel switched off": scores(off),
}
apart = {name: float((found - right).abs().max()) for name, found in table.items()}
print("largest change of a log-probability from dequantized weights in float32, in nats")
for name, value in apart.items():
    print(f"{name:40} {value:10.5f}")
training, evaluation, without = apart.values()
seen = training < 1e-4 and without < 1e-4 and evaluation > 5e-3
print("seen: float32 is computed in bfloat16" if seen else "changed: float32 is float32")
sys.exit(0 if seen else 4)
PY
