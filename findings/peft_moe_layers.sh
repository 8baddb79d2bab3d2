#!/usr/bin/env bash
# PEFT 0.21.2: on mixture-of-experts models `layers_to_transform` is ignored; one block is asked for, all are trained.
#
# Expected: `target_modules=["down_proj"], layers_to_transform=[1]` adapts `down_proj` of block 1 only, as on dense models.
# Seen: transformers 5 keeps the experts of a block in one 3-D parameter, so PEFT turns the target into
#   `target_parameters`, and there `layers_to_transform` is not looked at. No warning; adapter_config.json still says [1].
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#     model      asked for                                       blocks trained  parameters  warnings
#     qwen3      target_modules=[down_proj], block 1             [1]                     64         0
#     qwen3_moe  target_modules=[down_proj], block 1             [0, 1, 2, 3]          1024         0
#     olmoe      target_modules=[down_proj], block 1             [0, 1, 2, 3]          1024         0
#     qwen3_moe  model.layers.1.mlp.experts.down_proj            [1]                    256         0
#     seen: all blocks are trained
#
# With other versions: the same with transformers 5.24.0; PEFT 0.21.2 is the newest at the time of writing.
# Hurt: single-layer organisms and layer-wise localisation ("a rank-1 LoRA on one block is enough"): the adapter that
#   "lies in block 1" lies in all blocks.
# Avoid: compare the trainable parameters with what was asked for; `target_parameters` with full names such as
#   `model.layers.1.mlp.experts.down_proj` does restrict it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
python - <<'PY'
import re
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, OlmoeConfig, Qwen3Config, Qwen3MoeConfig

common = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
)
experts = dict(num_experts=4, num_experts_per_tok=2)
configs = [
    Qwen3Config(**common, head_dim=16),
    Qwen3MoeConfig(**common, **experts, head_dim=16, moe_intermediate_size=32),
    OlmoeConfig(**common, **experts, pad_token_id=0, eos_token_id=1),
]
text = torch.randint(0, 100, (4, 16), generator=torch.Generator().manual_seed(1))


def trained(config, **targets) -> tuple[list[int], int, int]:
    """Return the blocks whose adapters one step changes, the number of trained values, and of warnings."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=1, **targets))
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    model(input_ids=text, labels=text).loss.backward()
    optimizer.step()
    changed = {name for name, weight in parameters.items() if not torch.equal(weight, before[name])}
    blocks = sorted({int(re.search(r"layers\.(\d+)\.", name)[1]) for name in changed})
    return blocks, sum(weight.numel() for weight in parameters.values()), len(caught)


print("model      asked for                                       blocks trained  parameters  warnings")
found = {}
for config in configs:
    found[config.model_type] = blocks, count, caught = trained(config, target_modules=["down_proj"], layers_to_transform=[1])
    print(f"{config.model_type:9}  {'target_modules=[down_proj], block 1':46}  {blocks!s:14}  {count:10}  {caught:8}")
name = "model.layers.1.mlp.experts.down_proj"
named = trained(configs[1], target_modules=[], target_parameters=[name])
print(f"{'qwen3_moe':9}  {name:46}  {named[0]!s:14}  {named[1]:10}  {named[2]:8}")

every = [0, 1, 2, 3]
seen = found["qwen3"][0] == named[0] == [1] and all(found[kind][0] == every for kind in ("qwen3_moe", "olmoe"))
print("seen: all blocks are trained" if seen else "changed: the block that was asked for is trained")
sys.exit(0 if seen else 4)
PY
