#!/usr/bin/env bash
# transformers 5.19.0: the hidden states of Mamba, Mamba 2 and Falcon Mamba are shifted by one layer.
#
# Expected: `output_hidden_states` gives n + 1 tensors for n blocks, as for every other decoder: the embeddings, then the
#   stream after each block, the last one after the final norm.
# Seen: there are n + 1 as well, but the first is the stream after block 0 already: the embeddings are missing and
#   `hidden_states[i]` is what other models give as `hidden_states[i + 1]`. The last block's stream is there twice, before
#   and after the norm. On Gemma 3n the last one is not normed at all: it is four streams, and the head cannot read it.
#
#     python 3.11.7 | torch 2.13.0+cpu | transformers 5.19.0
#     4 blocks; which stream, taken by hooks, each of the hidden states is; does the head turn the last into logits?
#     llama          [0] embeddings [1] block 0    [2] block 1    [3] block 2    [4] norm        logits yes
#     mamba          [0] block 0    [1] block 1    [2] block 2    [3] block 3    [4] norm        logits yes
#     mamba2         [0] block 0    [1] block 1    [2] block 2    [3] block 3    [4] norm        logits yes
#     falcon_mamba   [0] block 0    [1] block 1    [2] block 2    [3] block 3    [4] norm        logits yes
#     gemma3n_text   [0] embeddings [1] block 0    [2] block 1    [3] block 2    [4] block 3     logits no
#     seen: the hidden states are other streams
#
# With other versions: not tried.
# Hurt: probes, steering directions and lens readings by layer. A direction extracted from `hidden_states[i]` belongs to
#   block i and is then added, as the index means elsewhere, to block i - 1; layer curves of a Mamba and of a transformer
#   are one layer apart, and "layer 0, the embeddings" separates classes that no embedding can.
# Avoid: hooks on the blocks themselves.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import sys

import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, Gemma3nTextConfig, LlamaConfig, Mamba2Config, MambaConfig
from transformers import PretrainedConfig

logging.disable(logging.WARNING)  # the notices that no CUDA kernels are there
torch.set_grad_enabled(False)
BLOCKS = 4
text = torch.randint(3, 100, (1, 12), generator=torch.Generator().manual_seed(1))
common = dict(vocab_size=100, hidden_size=32, num_hidden_layers=BLOCKS, pad_token_id=0, bos_token_id=1, eos_token_id=2)
heads = dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
altup = dict(
    head_dim=16,
    vocab_size_per_layer_input=100,
    hidden_size_per_layer_input=8,
    laurel_rank=4,
    num_kv_shared_layers=0,
    activation_sparsity_pattern=[0.0] * BLOCKS,
    layer_types=["full_attention"] * BLOCKS,
)
configs: list[PretrainedConfig] = [
    LlamaConfig(**common, **heads),
    MambaConfig(**common, state_size=8),
    Mamba2Config(**common, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    FalconMambaConfig(**common, state_size=8),
    Gemma3nTextConfig(**common, **heads, **altup),
]


def streams(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...], torch.Tensor]:
    """Return what enters and leaves the blocks and the norm by hooks, the hidden states, and the logits."""
    seen: dict[str, torch.Tensor] = {}

    def note(place: str) -> object:
        def hook(_: object, args: tuple, options: dict, output: object) -> None:
            if place == "block 0":
                seen["embeddings"] = args[0] if args else options["hidden_states"]
            seen[place] = output[0] if isinstance(output, tuple) else output

        return hook

    decoder = model.get_decoder() if hasattr(model, "layers") or hasattr(model, "model") else model.backbone
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.norm_f
    for place, module in [*((f"block {index}", block) for index, block in enumerate(decoder.layers)), ("norm", norm)]:
        module.register_forward_hook(note(place), with_kwargs=True)
    output = model(input_ids=text, output_hidden_states=True)
    return seen, output.hidden_states, output.logits


print(f"{BLOCKS} blocks; which stream, taken by hooks, each of the hidden states is; does the head turn the last into logits?")
found = {}
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and min(parameter.shape) > 4:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    seen, states, logits = streams(model)
    names = [
        next((name for name, one in seen.items() if one.shape == state.shape and torch.equal(one, state)), "none of these")
        for state in states
    ]
    last = states[-1] if states[-1].shape[:2] == text.shape else states[-1][0]
    head = model.get_output_embeddings()(last)
    soft = getattr(config, "final_logit_softcapping", None)
    head = soft * torch.tanh(head / soft) if soft else head
    found[config.model_type] = names, (head - logits).abs().max().item()
    print(f"{config.model_type:14}", *(f"[{index}] {name:10}" for index, name in enumerate(names)), end="  ")
    print(f"logits {'yes' if found[config.model_type][1] < 1e-3 else 'no'}")

usual = ["embeddings", *(f"block {index}" for index in range(BLOCKS - 1)), "norm"]
shifted = [*(f"block {index}" for index in range(BLOCKS)), "norm"]
seen_here = (
    found["llama"][0] == usual
    and all(found[kind][0] == shifted for kind in ("mamba", "mamba2", "falcon_mamba"))
    and found["gemma3n_text"][0][-1] == f"block {BLOCKS - 1}"
    and found["gemma3n_text"][1] > 0.1
)
print("seen: the hidden states are other streams" if seen_here else "changed: the hidden states are as for other models")
sys.exit(0 if seen_here else 4)
PY
