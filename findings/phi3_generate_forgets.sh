#!/usr/bin/env bash
# transformers 5.19.0: when `generate` of Phi-3, Phi-4-mini or Phi-3.5-MoE passes `original_max_position_embeddings`
# (4096), the model forgets the whole text, and from there on each token is drawn from the token before it alone.
#
# Expected: greedy `generate` continues with what one forward pass over the text so far gives. The comment in
#   `prepare_inputs_for_generation` of these models promises as much: the cache is computed again at the border, because
#   its keys were rotated with the short factors.
# Seen: the cache is thrown away, but the input is still cut to the last token, so nothing is computed again. Since
#   nothing is cached from then on, every later step reads one token as well.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     step  text  tokens read  |generate - one pass over the text|  |generate - last token alone|
#        0    28           28                                 0.00                          6.27
#        3    31            1                                 0.00                          6.98
#        4    32            1                                 0.00                          7.73
#        5    33            1                                 7.15                          0.00
#        6    34            1                                 6.08                          0.00
#        9    37            1                                 6.80                          0.00
#     seen: generate forgets the text at the border
#
# With other versions: mended in 5.20.0 (and so in 5.24.0): step 5 reads all 33 tokens again.
# Hurt: every draw that crosses 4096 tokens on these models, as long reasoning and long conversations do.
# Avoid: transformers >= 5.20, or keep prompt and answer on one side of the border.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys

import torch
from transformers import Phi3Config, Phi3ForCausalLM

torch.set_grad_enabled(False)
BORDER, PROMPT, ANSWER = 32, 28, 10
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
prompt = torch.randint(3, 100, (1, PROMPT), generator=torch.Generator().manual_seed(1))

read = []
handle = model.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
drawn = model.generate(
    prompt,
    max_new_tokens=ANSWER,
    min_new_tokens=ANSWER,
    do_sample=False,
    output_logits=True,
    return_dict_in_generate=True,
)
handle.remove()

print("step  text  tokens read  |generate - one pass over the text|  |generate - last token alone|")
whole, alone = [], []
for step in range(ANSWER):
    text = drawn.sequences[:, : PROMPT + step]
    last = torch.tensor([[text.shape[1] - 1]])
    logits = drawn.logits[step][0].log_softmax(-1)
    whole.append((model(text).logits[0, -1].log_softmax(-1) - logits).abs().max().item())
    one = model(text[:, -1:], position_ids=last).logits[0, -1]
    # Beyond the border the long factors hold, whatever the length of the input: position_ids say so.
    alone.append((one.log_softmax(-1) - logits).abs().max().item())
    if step in (0, 3, 4, 5, 6, 9):
        print(f"{step:4}  {text.shape[1]:4}  {read[step]:11}  {whole[step]:35.2f}  {alone[step]:28.2f}")

before, after = BORDER - PROMPT + 1, slice(BORDER - PROMPT + 1, None)
seen = max(whole[:before]) < 1e-4 and min(whole[after]) > 1 and max(alone[after]) < 1e-4
print("seen: generate forgets the text at the border" if seen else "changed: generate no longer forgets the text")
sys.exit(0 if seen else 4)
PY
