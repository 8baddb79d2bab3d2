#!/usr/bin/env bash
# bitsandbytes 0.50.2: in 8 bits, a row's logits depend on the other rows of its batch.
#
# Expected: `load_in_8bit=True` quantizes weights, and each token's activations by the token's own scale. A row is computed
#   as if it were alone, up to rounding, as in float32, in NF4 or with torchao's int8.
# Seen: a column of the activations with a value of at least `llm_int8_threshold` (6.0 by default) in *any* token of the
#   batch is computed in 16 bits for all of them. A neighbour with outliers changes a row's logits; and a text that is scored
#   in one pass differs from the same text drawn token by token, whose passes have other columns. With a threshold of 0
#   each token is on its own.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0 | bitsandbytes 0.50.2
#     largest change of a log-probability of one row, in nats
#                                  in a batch of 8  last token from the cache
#     float32                              0.00000                    0.00001
#     4 bits (nf4)                         0.00000                    0.00000
#     8 bits, llm_int8_threshold 0         0.00000                    0.00000
#     8 bits                               0.31333                    0.12661
#     seen: a row depends on its batch
#
# Hurt: log-probabilities compared across batch sizes, greedy draws that change with the load of a server, perplexities
#   beside samples "of the same model".
# Avoid: `BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)`, batches of one row, or another int8.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 bitsandbytes==0.50.2
python - <<'PY'
import logging
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

logging.disable(logging.WARNING)
torch.set_grad_enabled(False)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)
model = AutoModelForCausalLM.from_config(config)
for parameter in model.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.25)
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
rows = torch.randint(3, 200, (8, 12), generator=torch.Generator().manual_seed(1))


def change(**options) -> tuple[float, float]:
    """Return how far row 0 is from itself alone: in a batch of 8, and when its last token is read from a cache."""
    how = dict(quantization_config=BitsAndBytesConfig(**options)) if options else {}
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **how).eval()
    alone = loaded(rows[:1]).logits.log_softmax(-1)
    batch = loaded(rows).logits[:1].log_softmax(-1)
    first = loaded(rows[:1, :-1], use_cache=True)
    last = loaded(rows[:1, -1:], past_key_values=first.past_key_values).logits.log_softmax(-1)
    return float((batch - alone).abs().max()), float((last[0, -1] - alone[0, -1]).abs().max())


print("largest change of a log-probability of one row, in nats")
print("                             in a batch of 8  last token from the cache")
table = {
    "float32": change(),
    "4 bits (nf4)": change(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "8 bits, llm_int8_threshold 0": change(load_in_8bit=True, llm_int8_threshold=0.0),
    "8 bits": change(load_in_8bit=True),
}
for name, (batch, cache) in table.items():
    print(f"{name:28} {batch:15.5f}  {cache:25.5f}")
exact = max(max(row) for name, row in table.items() if name != "8 bits")
seen = exact < 1e-3 and min(table["8 bits"]) > 0.02
print("seen: a row depends on its batch" if seen else "changed: a row is its own")
sys.exit(0 if seen else 4)
PY
