#!/usr/bin/env bash
# transformers 5.19.0: with a static cache GPT-Neo's local layers look at the end of the cache instead of at the text.
#
# Expected: `cache_implementation="static"` changes where keys and values are kept, not what the model says.
# Seen: the mask of the local layers (every second one) is cut from a stored table by the number of keys. A static cache has
#   as many keys as it has places, filled or not: each token is masked as if it were at the last place. Once the cache is
#   longer than the window, tokens that the layer should see are hidden; with as many free places as the window holds, all
#   of them are. Text comes out, without a warning.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     16 prompts of 12 tokens, window 16: share of greedy tokens that are the most likely of a forward pass
#     model    new tokens  default cache  static cache  largest regret in nats  warnings
#     Llama             2          1.000         1.000                   0.000         0
#     Llama             8          1.000         1.000                   0.000         0
#     Llama            40          1.000         1.000                   0.000         0
#     GPT-Neo           2          1.000         1.000                   0.000         0
#     GPT-Neo           8          1.000         0.922                   1.303         0
#     GPT-Neo          40          1.000         0.538                   4.738         0
#     seen: the static cache gives other text
#
# With other versions: the same with 5.24.0.
# Hurt: draws from GPT-Neo and its kin, as the TinyStories models that much interpretability work is done on; greedy answers
#   are not the model's most likely tokens.
# Avoid: the default cache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys
import warnings

import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

torch.set_grad_enabled(False)
WINDOW, PROMPT = 16, 12
torch.manual_seed(0)
neo = GPTNeoForCausalLM(
    GPTNeoConfig(
        vocab_size=100,
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        window_size=WINDOW,
        initializer_range=0.3,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
).eval()
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
).eval()
prompts = torch.randint(0, 100, (16, PROMPT), generator=torch.Generator().manual_seed(1))


def measure(model: PreTrainedModel, tokens: int, cache: str | None) -> tuple[float, float, int]:
    """Draw greedily; return the share of tokens that are the most likely, the worst regret in nats, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            cache_implementation=cache,
            disable_compile=True,
        )
    logprobs = model(drawn).logits.log_softmax(-1)[:, PROMPT - 1 : -1]
    regret = logprobs.max(-1).values - logprobs.gather(-1, drawn[:, PROMPT:, None])[..., 0]
    return (regret < 1e-3).float().mean().item(), regret.max().item(), len(caught)


print(f"16 prompts of {PROMPT} tokens, window {WINDOW}: share of greedy tokens that are the most likely of a forward pass")
print("model    new tokens  default cache  static cache  largest regret in nats  warnings")
found = {}
for name, model in (("Llama", llama), ("GPT-Neo", neo)):
    for tokens in (2, 8, 40):
        plain, static = measure(model, tokens, None), measure(model, tokens, "static")
        found[name, tokens] = (plain[0], static[0])
        print(f"{name:7}  {tokens:10}  {plain[0]:13.3f}  {static[0]:12.3f}  {static[1]:22.3f}  {static[2]:8}")

# Prompt and 2 new tokens fit into the window.
wrong = [found.pop(("GPT-Neo", tokens))[1] for tokens in (8, 40)]
seen = max(wrong) < 0.95 and wrong[1] < 0.7 and all(pair == (1, 1) for pair in found.values())
print("seen: the static cache gives other text" if seen else "changed: both caches give one text")
sys.exit(0 if seen else 4)
PY
