#!/usr/bin/env bash
# transformers 5.19.0, torchao 0.18.0: `get_memory_footprint` reports a quantized model at the size of its float weights.
#
# Expected: "the memory footprint of the current model in bytes": about a quarter of float32 with int8 weights.
# Seen: torchao's weights are tensors that call themselves float32 (their dtype after dequantization), and the method
#   multiplies their elements by that dtype's size: the number is that of the model before it was quantized. The bytes in
#   memory are as expected. bitsandbytes' weights are uint8, and are counted, without their scales.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0 | torchao 0.18.0
#                 get_memory_footprint  bytes in memory
#     float32                8,598,784        8,598,784
#     int8                   8,598,784        2,340,608
#     seen: 3.7 times what is held
#
# Hurt: tables of memory by quantization, and device plans made from them.
# Avoid: add up `__tensor_flatten__`'s inner tensors, or the bytes of the saved file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 torchao==0.18.0
python - <<'PY'
import logging
import sys
import tempfile
import warnings

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TorchAoConfig

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
from torchao.quantization import Int8WeightOnlyConfig

config = LlamaConfig(
    vocab_size=100,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
)
folder = tempfile.mkdtemp()
AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor consists of."""
    if not hasattr(tensor, "__tensor_flatten__") or type(tensor) is torch.nn.Parameter:
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]


print("            get_memory_footprint  bytes in memory")
ratio = {}
for name, how in (("float32", {}), ("int8", {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())})):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **how)
    held = sum(part.nbytes for tensor in (*model.parameters(), *model.buffers()) for part in parts(tensor))
    ratio[name] = model.get_memory_footprint() / held
    print(f"{name:10}  {model.get_memory_footprint():20,}  {held:15,}")
seen = abs(ratio["float32"] - 1) < 0.01 and ratio["int8"] > 3
print(f"seen: {ratio['int8']:.1f} times what is held" if seen else "changed: the footprint is what is held")
sys.exit(0 if seen else 4)
PY
