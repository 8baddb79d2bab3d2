#!/usr/bin/env bash
# transformers 5.19.0: Jamba, Mamba and Falcon Mamba forget a cached prefix when more than one token follows at once.
#
# Expected: logits of a text do not depend on how it is cut into calls with a cache; a cached prefix (system prompt, first
#   turns of a conversation) is there to be continued.
# Seen: a call with one token goes on from the recurrent state; a call with two or more scans from a zero state and then
#   overwrites the cache with what it found. Only the convolution still sees the last tokens of the prefix, and in
#   Jamba its attention layers. Mamba 2 hands the state to its scan and is exact.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     prefix 20 tokens, 6 follow; largest change of a log-probability against one pass over the whole text
#     model         one at a time  two at a time  all at once
#     jamba               0.00000        0.67168      0.13671
#     mamba               0.00000        0.36751      0.36751
#     falcon_mamba        0.00000        1.65335      0.73498
#     mamba2              0.00000        0.00000      0.00000
#     seen: the prefix's state is dropped
#
# With other versions: the same with 5.24.0.
# Hurt: prompts scored after a shared cached prefix, many-shot and multi-turn runs that keep the cache between turns
#   (the new turn has more than one token), chunked prefill. `generate` on one whole prompt is not affected.
# Avoid: feed what follows a cached prefix token by token, or compute the whole text anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import sys

import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, JambaConfig, Mamba2Config, MambaConfig

logging.disable(logging.WARNING)  # the notice that no CUDA kernels are there
torch.set_grad_enabled(False)
PREFIX, REST = 20, 6
common = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
attention = dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
configs = [
    JambaConfig(**common, **attention, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_d_state=8),
    MambaConfig(**common, state_size=8),
    FalconMambaConfig(**common, state_size=8),
    Mamba2Config(**common, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
]
text = torch.randint(3, 100, (1, PREFIX + REST), generator=torch.Generator().manual_seed(1))


def continued(model: torch.nn.Module, ids: torch.Tensor, step: int) -> torch.Tensor:
    """Return the log-probabilities after the prefix, read from its cache `step` tokens at a time."""
    cache = model(ids[:, :PREFIX], use_cache=True)
    found = []
    for start in range(PREFIX, PREFIX + REST, step):
        past = {name: cache[name] for name in ("past_key_values", "cache_params") if name in cache}
        cache = model(ids[:, start : start + step], use_cache=True, **past)
        found.append(cache.logits[0])
    return torch.cat(found).log_softmax(-1)


print(f"prefix {PREFIX} tokens, {REST} follow; largest change of a log-probability against one pass over the whole text")
print("model         one at a time  two at a time  all at once")
changes = {}
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2 and min(parameter.shape) > 8:
            torch.nn.init.normal_(parameter, std=0.2)
    whole = model(text, use_cache=False).logits[0, PREFIX:].log_softmax(-1)
    row = [(continued(model, text, step) - whole).abs().max().item() for step in (1, 2, REST)]
    changes[config.model_type] = row
    print(f"{config.model_type:12}  {row[0]:13.5f}  {row[1]:13.5f}  {row[2]:11.5f}")

exact = [*changes["mamba2"], *(row[0] for row in changes.values())]
wrong = [value for kind in ("jamba", "mamba", "falcon_mamba") for value in changes[kind][1:]]
seen = max(exact) < 1e-3 and min(wrong) > 0.1
print("seen: the prefix's state is dropped" if seen else "changed: the prefix's state is used")
sys.exit(0 if seen else 4)
PY
