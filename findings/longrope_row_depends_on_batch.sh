#!/usr/bin/env bash
# transformers 5.19.0: with `rope_type: longrope` one long row changes the logits of every other row of its batch.
#
# Expected: with padding, attention mask and position ids as `generate` makes them, rows of a batch are independent.
# Seen: the short or the long factors are chosen for the whole batch, by its largest position. As soon as one row passes
#   `original_max_position_embeddings`, short rows are computed with the long factors, which no short text alone is.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     border 32; a row of 12 tokens; alone its log-likelihood is -66.160
#     neighbour's tokens  padding  log-likelihood  largest change of a log-probability
#                     31  left            -66.160                             0.000003
#                     31  right           -66.160                             0.000003
#                     32  left            -66.160                             0.000003
#                     32  right           -66.160                             0.000003
#                     33  left            -64.623                             2.677332
#                     33  right           -64.623                             2.677334
#                     64  left            -64.623                             2.677334
#                     64  right           -64.623                             2.677334
#     seen: the neighbour decides the row's factors
#
# With other versions: the same with 5.24.0.
# Hurt: whoever scores or draws in batches on Phi-3-mini-128k, Phi-3.5-mini or Phi-4-mini: numbers depend on batch size and
#   order. In `generate` a row whose answer grows beyond the border changes its neighbours in mid-answer.
# Avoid: sort by length and never put texts from both sides of the border into one batch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys

import torch
from transformers import Phi3Config, Phi3ForCausalLM

torch.set_grad_enabled(False)
BORDER = 32
torch.manual_seed(0)
model = Phi3ForCausalLM(
    Phi3Config(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=4 * BORDER,
        original_max_position_embeddings=BORDER,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0 + 0.5 * i for i in range(8)],
            "factor": 4.0,
            "original_max_position_embeddings": BORDER,
        },
    )
).eval()
short, long = torch.randint(3, 100, (2, 64), generator=torch.Generator().manual_seed(1))
short = short[:12]


def beside(neighbour: torch.Tensor, left: bool) -> torch.Tensor:
    """Return the short text's log-probabilities from a batch with a longer one, padded on the given side."""
    pad = len(neighbour) - len(short)
    widths = (pad, 0) if left else (0, pad)
    ids = torch.stack([torch.nn.functional.pad(short, widths), neighbour])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(short), widths), torch.ones_like(neighbour)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[0]
    return (logits[pad:] if left else logits[: len(short)]).log_softmax(-1)


alone = model(short[None]).logits[0].log_softmax(-1)
target = short[1:, None]
print(f"border {BORDER}; a row of 12 tokens; alone its log-likelihood is {alone[:-1].gather(-1, target).sum():.3f}")
print("neighbour's tokens  padding  log-likelihood  largest change of a log-probability")
changes = {}
for tokens in (31, 32, 33, 64):
    for side in ("left", "right"):
        found = beside(long[:tokens], side == "left")
        changes[tokens, side] = (found - alone).abs().max().item()
        likelihood = found[:-1].gather(-1, target).sum().item()
        print(f"{tokens:18}  {side:7}  {likelihood:14.3f}  {changes[tokens, side]:35.6f}")

below = max(change for (tokens, _), change in changes.items() if tokens <= BORDER)
above = min(change for (tokens, _), change in changes.items() if tokens > BORDER)
seen = below < 1e-4 and above > 0.5
print("seen: the neighbour decides the row's factors" if seen else "changed: rows of a batch are independent")
sys.exit(0 if seen else 4)
PY
