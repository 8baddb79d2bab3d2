#!/usr/bin/env bash
# transformers 5.19.0: left padding changes the logits of Llama 4 once a row is longer than `floor_scale`.
#
# Expected: a row with left padding, an attention mask and position ids, as `generate` makes them, gets the logits that it
#   gets alone (to rounding).
# Seen: layers without rope scale their queries by a factor that grows with the position. It is computed from the column in
#   the padded batch, not from `position_ids`; so each padding token moves the border of every step by one token.
#   The mask of chunked attention does subtract the padding, and rope layers do use `position_ids`.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     floor_scale 16, attn_scale 0.1 (as published); a text of 40 tokens; largest change of a log-probability
#     padding  right  left  left, tokens before column floor_scale  left, attn_temperature_tuning off
#           0  0.000  0.00                                   0.000                              0.000
#           1  0.000  0.17                                   0.000                              0.000
#           8  0.000  0.17                                   0.000                              0.000
#          16  0.000  0.17                                   0.000                              0.000
#          32  0.000  0.27                                   0.000                              0.000
#     seen: padding moves the steps of the scale
#
# With other versions: the same with 5.24.0.
# Hurt: batches of prompts beyond 8192 tokens (`floor_scale` of Scout and Maverick): the shorter row's numbers depend on
#   its longest neighbour. Below 8192 columns the factor is 1 for all.
# Avoid: batches of equal lengths, right padding for scores, or `attn_temperature_tuning` off for both sides of a comparison.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys

import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

torch.set_grad_enabled(False)
SCALE, LENGTH = 16, 40
text = torch.randint(3, 100, (LENGTH,), generator=torch.Generator().manual_seed(1))


def build(tuned: bool) -> Llama4ForCausalLM:
    """Return a tiny Llama 4 whose last layer has no rope."""
    torch.manual_seed(0)
    model = Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=32,
            intermediate_size_mlp=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            num_local_experts=2,
            no_rope_layers=[1, 1, 1, 0],
            attention_chunk_size=8,
            attn_temperature_tuning=tuned,
            floor_scale=SCALE,
            attn_scale=0.1,
            pad_token_id=0,
        )
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def padded(model: Llama4ForCausalLM, left: int, right: int) -> torch.Tensor:
    """Return the text's log-probabilities with so many padding tokens on each side."""
    ids = torch.nn.functional.pad(text, (left, right))[None]
    mask = torch.nn.functional.pad(torch.ones_like(text), (left, right))[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits[0, left : left + LENGTH].log_softmax(-1)


tuned, plain = build(True), build(False)
print(f"floor_scale {SCALE}, attn_scale 0.1 (as published); a text of {LENGTH} tokens; largest change of a log-probability")
print("padding  right  left  left, tokens before column floor_scale  left, attn_temperature_tuning off")
rows = []
for pad in (0, 1, 8, 16, 32):
    right = (padded(tuned, 0, pad) - padded(tuned, 0, 0)).abs().amax(-1)
    left = (padded(tuned, pad, 0) - padded(tuned, 0, 0)).abs().amax(-1)
    off = (padded(plain, pad, 0) - padded(plain, 0, 0)).abs().max().item()
    early = left[: max(SCALE - pad - 1, 0)].max().item() if pad < SCALE - 1 else 0.0
    rows.append((pad, right.max().item(), left.max().item(), early, off))
    print(f"{pad:7}  {rows[-1][1]:5.3f}  {rows[-1][2]:4.2f}  {early:38.3f}  {off:33.3f}")

exact = [value for pad, right, left, early, off in rows for value in (right, early, off)]
seen = max(exact) < 1e-3 and min(left for pad, _, left, _, _ in rows if pad) > 0.01
print("seen: padding moves the steps of the scale" if seen else "changed: the scale follows the position")
sys.exit(0 if seen else 4)
PY
