#!/usr/bin/env bash
# steering-vectors 0.12.2: with a KV cache `min_token_index` counts from the newest token, so that answers are not steered.
#
# Expected: `min_token_index=n` steers from the n-th token of the text on, whether `generate` keeps keys and values (its
#   default) or computes the text anew for each token. With n the length of the prompt the answer is steered, and with 1
#   everything but the first token, whose activations are an outlier in most models.
# Seen: the positions are counted in each forward pass. With the cache every pass after the first one holds one token, number
#   0: no token of an answer lies at or beyond n, and none is steered. `token_indices=[0]`, meant for the first token, steers
#   every token of the answer. Nothing warns.
#
#     python 3.11.7 | steering-vectors 0.12.2 | torch 2.13.0+cpu | transformers 4.57.6
#     a prompt of 12 tokens; how many of 24 tokens of the answer agree
#                                         with steering by hand       with no steering
#     tokens that are steered             no cache   with cache   no cache   with cache   warnings
#     all tokens                                24           24          0            0          0
#     min_token_index=12, the answer            24            2          2           24          0
#     min_token_index=1, not the first          24            2          0            0          0
#     token_indices=[0], the first              24            2         21            2          0
#     seen: positions count from the newest token
#
# With other versions: 0.12.2 is the newest at the time of writing.
# Hurt: steering "of the answer only" is the unsteered model, and a direction that works is reported as having no effect, at any
#   strength. Leaving out the first token leaves out all answers as well.
# Avoid: `generate(..., use_cache=False)`, or steer all tokens.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment steering-vectors==0.12.2 torch==2.13.0 transformers==4.57.6
python - <<'PY'
import sys
import warnings
from typing import Any

import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
torch.set_grad_enabled(False)
PROMPT, ANSWER, LAYER = 12, 24, 1
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
).eval()
prompt = torch.randint(1, 200, (1, PROMPT), generator=torch.Generator().manual_seed(1))
direction = torch.randn(64)
vector = SteeringVector({LAYER: direction}, "decoder_block")


def answer(cache: bool, **options: Any) -> list[int]:
    """Return the greedy answer of the model that is steered with these options."""
    with vector.apply(model, multiplier=4.0, **options):
        given = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ANSWER, do_sample=False, use_cache=cache
        )
    return given[0, PROMPT:].tolist()


def by_hand(mask: torch.Tensor) -> list[int]:
    """Return the greedy answer where the direction is added to the positions of the mask, one whole text at a time."""

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        stream += 4.0 * mask[: stream.shape[1]].reshape(1, -1, 1) * direction

    hook = model.model.layers[LAYER].register_forward_hook(add)
    tokens = prompt
    for _ in range(ANSWER):
        tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    hook.remove()
    return tokens[0, PROMPT:].tolist()


def same(one: list[int], other: list[int]) -> int:
    """Return how many tokens two answers begin with in common."""
    return next((index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), len(one))


positions = torch.arange(PROMPT + ANSWER)
prompt_only = by_hand((positions < PROMPT).float())
CASES = {
    "all tokens": ({}, positions >= 0),
    "min_token_index=12, the answer": ({"min_token_index": PROMPT}, positions >= PROMPT),
    "min_token_index=1, not the first": ({"min_token_index": 1}, positions >= 1),
    "token_indices=[0], the first": ({"token_indices": [0], "min_token_index": None}, positions == 0),
}
plain = by_hand(torch.zeros(len(positions)))
print(f"a prompt of {PROMPT} tokens; how many of {ANSWER} tokens of the answer agree")
print("                                    with steering by hand       with no steering")
print("tokens that are steered             no cache   with cache   no cache   with cache   warnings")
found = {}
for title, (options, mask) in CASES.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slow, fast = answer(False, **options), answer(True, **options)
    right = by_hand(mask.float())
    found[title] = (same(slow, right), same(fast, right), same(slow, plain), same(fast, plain), len(caught))
    print(f"{title:32}  {found[title][0]:10}  {found[title][1]:11}  {found[title][2]:9}  {found[title][3]:11}  {len(caught):9}")

every, rest, not_first, first = found.values()
seen = (
    all(row[0] == ANSWER and row[4] == 0 for row in found.values())
    and every[1] == ANSWER
    and rest[3] == ANSWER
    and rest[2] < ANSWER
    and max(rest[1], not_first[1], first[1]) < ANSWER
)
print("seen: positions count from the newest token" if seen else "changed: positions are those of the text")
sys.exit(0 if seen else 4)
PY
