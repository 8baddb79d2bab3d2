#!/usr/bin/env bash
# transformers 5.19.0: with `rope_type: dynamic` the logits of a text depend on what the model read before it.
#
# Expected: a forward pass is a function of its input. The rope functions document `seq_len` as the current length of the
#   sequence, and dynamic NTK (https://arxiv.org/abs/2309.00071) scales by the current length.
# Seen: after a text longer than `max_position_embeddings` the model keeps that text's frequencies for all shorter ones,
#   down to `max_position_embeddings` tokens; only texts shorter than that are computed as before. The order in which an
#   evaluation goes through its samples changes its numbers, and a sample repeated alone gives other ones.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     trained length 32; the log-likelihood of one text in nats, and the largest change of a log-probability
#     tokens  after a short text  after 200 tokens  after a short text again  largest change
#         31            -182.229          -182.229                  -182.229           0.000
#         32            -191.264          -191.109                  -191.264           7.147
#         40            -237.429          -239.531                  -237.429           5.857
#         64            -381.275          -388.748                  -381.275           7.622
#        100            -600.436          -600.070                  -600.436           9.477
#     seen: a text is scored with an earlier text's frequencies
#
# With other versions: the same with 5.24.0.
# Hurt: log-likelihoods, perplexities and draws on texts at or beyond the trained length, on every model whose
#   configuration has `rope_type: dynamic`; services that keep a model loaded.
# Avoid: read one token before each such text (a short text restores the frequencies), or only texts shorter than
#   `max_position_embeddings`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_grad_enabled(False)
TRAINED = 32
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
).eval()
text = torch.randint(0, 100, (1, 200), generator=torch.Generator().manual_seed(1))


def score(tokens: int) -> tuple[torch.Tensor, float]:
    """Return all log-probabilities of the text's first tokens, and their sum over the text."""
    logprobs = model(text[:, :tokens]).logits[0].log_softmax(-1)
    return logprobs, logprobs[:-1].gather(-1, text[0, 1:tokens, None]).sum().item()


print(f"trained length {TRAINED}; the log-likelihood of one text in nats, and the largest change of a log-probability")
print("tokens  after a short text  after 200 tokens  after a short text again  largest change")
changes = {}
for tokens in (31, 32, 40, 64, 100):
    score(8)
    first, before = score(tokens)
    score(200)
    second, after = score(tokens)
    score(8)
    changes[tokens] = (first - second).abs().max().item()
    print(f"{tokens:6}  {before:18.3f}  {after:16.3f}  {score(tokens)[1]:24.3f}  {changes[tokens]:14.3f}")

seen = changes.pop(31) == 0 and min(changes.values()) > 1
print("seen: a text is scored with an earlier text's frequencies" if seen else "changed: no trace of the earlier text")
sys.exit(0 if seen else 4)
PY
