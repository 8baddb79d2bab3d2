#!/usr/bin/env bash
# transformers 5.19.0: Nemotron-H and Zamba 2 are another model when they decode than when they read.
#
# Expected: with a cache, a text read token by token, as `generate` reads its own answer, gives the logits of one pass.
# Seen: Mamba 2 layers raise their time steps to `time_step_min` (0.001) while they read several tokens at once, and leave
#   them as they are in the step of one token. A head that has learned to keep its state closes its time step: then each
#   token of a prompt still lets it forget by 0.001 times its rate, and each drawn token does not. The difference adds
#   up with the length. Mamba 2 itself has the same two forms, but its configuration sets no bound.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     one text read at once and token by token; largest change of the next token's log-probability after so many tokens
#     model       lower bound  time steps below it       1      8     32    128    256  bound lifted
#     nemotron_h        0.001                  81%   0.000  0.000  0.009  0.009  0.031       0.00000
#     zamba2            0.001                  80%   0.000  0.001  0.011  0.038  0.100       0.00001
#     mamba2              0.0                   0%   0.000  0.000  0.000  0.000  0.000       0.00001
#     seen: decoding has no lower bound, reading has
#
# With other versions: the same with 5.24.0.
# Hurt: whoever scores what the model drew (log-likelihoods, KL, importance weights, policy gradients: the policy that
#   drew is not the policy that is trained), and whoever compares a prefilled answer with a drawn one.
# Avoid: set `time_step_limit = (0.0, float("inf"))` on every Mamba layer, or clamp what `in_proj` puts out for both forms.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import sys

import torch
from transformers import AutoModelForCausalLM, Mamba2Config, NemotronHConfig, Zamba2Config

logging.disable(logging.WARNING)  # the notice that no CUDA kernels are there
torch.set_grad_enabled(False)
LENGTHS = (1, 8, 32, 128, 256)
common = dict(vocab_size=100, hidden_size=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)
attention = dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
configs = [
    NemotronHConfig(
        **common,
        **attention,
        layers_block_type=["linear_attention", "full_attention", "linear_attention"],
        num_hidden_layers=3,
        head_dim=16,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=64,
    ),
    Zamba2Config(
        **common,
        **attention,
        layers_block_type=["mamba", "hybrid", "mamba"],
        num_hidden_layers=3,
        mamba_d_state=8,
        n_mamba_heads=8,
        mamba_ngroups=1,
        chunk_size=64,
    ),
    Mamba2Config(**common, num_hidden_layers=3, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=64),
]
text = torch.randint(3, 100, (1, max(LENGTHS)), generator=torch.Generator().manual_seed(1))


def both(model: torch.nn.Module) -> list[float]:
    """Return the largest change of the next token's log-probability between the two ways of reading, by length."""
    steps, past = [], {}
    for column in range(max(LENGTHS)):
        output = model(text[:, column : column + 1], use_cache=True, **past)
        past = {name: output[name] for name in ("past_key_values", "cache_params") if name in output}
        steps.append(output.logits[0, 0].log_softmax(-1))
    found = []
    for length in LENGTHS:
        whole = model(text[:, :length], use_cache=False).logits[0, -1].log_softmax(-1)
        found.append((steps[length - 1] - whole).abs().max().item())
    return found


print("one text read at once and token by token; largest change of the next token's log-probability after so many tokens")
print("model       lower bound  time steps below it ", *(f"{length:6}" for length in LENGTHS), " bound lifted")
found, lifted = {}, {}
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    layers = [module for module in model.modules() if hasattr(module, "time_step_limit")]
    for parameter in model.parameters():
        if parameter.dim() == 2 and min(parameter.shape) > 8:
            torch.nn.init.normal_(parameter, std=0.3)
    for layer in layers:
        layer.in_proj.weight.normal_(std=1.0)
        layer.dt_bias.fill_(-12.0)  # heads open for few tokens and keep what they hold during all others
    bound = layers[0].time_step_limit[0]
    steps = []
    hooks = [
        layer.in_proj.register_forward_hook(
            lambda _, __, out, layer=layer: steps.append(torch.nn.functional.softplus(out[..., -8:] + layer.dt_bias))
        )
        for layer in layers
    ]
    row = found[config.model_type] = both(model)
    below = torch.cat([step.flatten() for step in steps]).lt(bound).float().mean().item()
    for hook, layer in zip(hooks, layers):
        hook.remove()
        layer.time_step_limit = (0.0, float("inf"))
    lifted[config.model_type] = max(both(model))
    values = " ".join(f"{value:6.3f}" for value in row)
    print(f"{config.model_type:10}  {bound:11}  {below:19.0%}  {values}  {lifted[config.model_type]:12.5f}")

exact = [*lifted.values(), *found["mamba2"], found["nemotron_h"][0], found["zamba2"][0]]
seen = max(exact) < 1e-3 and min(found["nemotron_h"][-1], found["zamba2"][-1]) > 0.02
print("seen: decoding has no lower bound, reading has" if seen else "changed: reading and decoding agree")
sys.exit(0 if seen else 4)
PY
