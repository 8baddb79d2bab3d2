#!/usr/bin/env bash
# PEFT 0.21.2: `merge_and_unload` of a LoRA on Zamba 2 gives another model than the one that was trained.
#
# Expected: merging is exact: the merged model computes what base and adapter computed.
# Seen: Zamba 2's attention blocks are several modules that share one set of weights. PEFT gives each module factors of its
#   own, so that in training the blocks differ; merging adds all of them, one after the other, to the one shared
#   weight. With one such block it is exact. No warning.
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#     attention blocks  weights they share  LoRA pairs  effect of the LoRA  merged against unmerged  warnings of merging
#                    1                   4           4               3.307                  0.00001                    0
#                    2                   4           8               3.348                  2.85878                    0
#                    3                   4          12               5.913                  4.82624                    0
#     seen: merging changes the model
#
# With other versions: the same with transformers 5.24.0; PEFT 0.21.2 is the newest at the time of writing.
# Hurt: whoever trains with PEFT and evaluates or ships the merged checkpoint (as most serving needs it).
# Avoid: evaluate with the adapter in place, or compare merged and unmerged logits on one text before saving.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
python - <<'PY'
import logging
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Zamba2Config

logging.disable(logging.WARNING)  # the notice that no CUDA kernels are there
text = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logprobs(model: torch.nn.Module) -> torch.Tensor:
    """Return all log-probabilities of the text."""
    return model(input_ids=text, use_cache=False).logits[0].log_softmax(-1)


print("attention blocks  weights they share  LoRA pairs  effect of the LoRA  merged against unmerged  warnings of merging")
found = []
for kinds in (["mamba", "hybrid", "mamba"], ["mamba", "hybrid", "hybrid"], ["hybrid", "mamba", "hybrid", "hybrid"]):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Zamba2Config(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=len(kinds),
            layers_block_type=kinds,
            num_mem_blocks=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            mamba_d_state=8,
            n_mamba_heads=4,
            mamba_ngroups=1,
            chunk_size=8,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    own = logprobs(model)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])).eval()
    pairs, bases = 0, set()
    for name, module in model.named_modules():
        if hasattr(module, "lora_B"):
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)
            pairs += 1
            bases.add(module.get_base_layer().weight.data_ptr())
    trained = logprobs(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = logprobs(model.merge_and_unload())
    effect, change = (trained - own).abs().max().item(), (merged - trained).abs().max().item()
    found.append(change)
    print(f"{kinds.count('hybrid'):16}  {len(bases):18}  {pairs:10}  {effect:18.3f}  {change:23.5f}  {len(caught):19}")

seen = found[0] < 1e-3 and min(found[1:]) > 0.1
print("seen: merging changes the model" if seen else "changed: merging is exact, or refused")
sys.exit(0 if seen else 4)
PY
