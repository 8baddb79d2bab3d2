#!/usr/bin/env bash
# transformers 5.19.0: with a cache and no `position_ids`, Bamba reads every further call as if it began at position 0.
#
# Expected: `position_ids` are optional. A call with a cache goes on where the cache ends, as on Llama, Granite 4 or Jamba.
# Seen: Bamba counts the positions of each call from 0. Its attention layers, which have rope, then take the new tokens for
#   the first of the text; its Mamba layers go on rightly. `generate` passes positions, so that it hides the fault.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     prefix 20 tokens, 8 follow; largest change of a log-probability against one pass over the whole text
#     model             one at a time  all at once  one at a time, position_ids  all at once, position_ids
#     llama                   0.00001      0.00000                      0.00001                    0.00000
#     granitemoehybrid        0.00001      0.00000                      0.00001                    0.00000
#     bamba                   2.08191      1.38245                      0.00000                    0.00000
#     seen: positions start again at 0
#
# With other versions: the same with 5.24.0.
# Hurt: decoding loops of one's own (steering, activation patching, contrastive decoding, step-wise monitors) and prompts
#   scored after a cached prefix: they are plausible and wrong, and differ from `generate` on the same model.
# Avoid: always pass `position_ids` with a cache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import sys

import torch
from transformers import AutoModelForCausalLM, BambaConfig, GraniteMoeHybridConfig, LlamaConfig

logging.disable(logging.WARNING)  # the notice that no CUDA kernels are there
torch.set_grad_enabled(False)
PREFIX, REST = 20, 8
common = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
mamba = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
hybrid = dict(layer_types=["linear_attention", "full_attention"], shared_intermediate_size=32)
configs = [
    LlamaConfig(**common),
    GraniteMoeHybridConfig(
        **common, **mamba, **hybrid, num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope"
    ),
    BambaConfig(**common, **mamba, attn_layer_indices=[1]),
]
text = torch.randint(3, 100, (1, PREFIX + REST), generator=torch.Generator().manual_seed(1))


def change(model: torch.nn.Module, step: int, given: bool) -> float:
    """Return the largest change of a log-probability after the prefix, read `step` tokens at a time."""
    whole = model(text, use_cache=False).logits[0, PREFIX:].log_softmax(-1)
    output = model(text[:, :PREFIX], use_cache=True)
    found = []
    for start in range(PREFIX, PREFIX + REST, step):
        positions = torch.arange(start, start + step)[None] if given else None
        past = output.past_key_values
        output = model(text[:, start : start + step], past_key_values=past, position_ids=positions, use_cache=True)
        found.append(output.logits[0])
    return (torch.cat(found).log_softmax(-1) - whole).abs().max().item()


print(f"prefix {PREFIX} tokens, {REST} follow; largest change of a log-probability against one pass over the whole text")
print("model             one at a time  all at once  one at a time, position_ids  all at once, position_ids")
found = {}
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2 and min(parameter.shape) > 8:
            torch.nn.init.normal_(parameter, std=0.3)
    row = [change(model, step, given) for given in (False, True) for step in (1, REST)]
    found[config.model_type] = row
    print(f"{config.model_type:16}  {row[0]:13.5f}  {row[1]:11.5f}  {row[2]:27.5f}  {row[3]:25.5f}")

wrong, exact = found["bamba"][:2], found["bamba"][2:]
exact += [value for kind, row in found.items() if kind != "bamba" for value in row]
seen = max(exact) < 1e-3 and min(wrong) > 0.1
print("seen: positions start again at 0" if seen else "changed: positions go on from the cache")
sys.exit(0 if seen else 4)
PY
