#!/usr/bin/env bash
# transformers 5.19.0 and PEFT 0.21.2: Gemma 3n reads `inputs_embeds`, and so every soft prompt, as another model.
#
# Expected: `model(inputs_embeds=model.get_input_embeddings()(ids))` is `model(ids)`, and a prompt-tuning vector that equals
#   a token's embedding acts as that token, as on other models.
# Seen: Gemma 3n adds an embedding of the token to every block, which it looks up by `input_ids`. When only embeddings are
#   given it leaves these inputs out, for all tokens, also for those of the text that follows a soft prompt, and says
#   nothing. Gemma 4, built likewise, looks the tokens up again or raises an error that says why it cannot.
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#     largest change of a log-probability; a soft prompt that equals the embeddings of the text's first 5 tokens
#     model         inputs_embeds  PEFT prompt tuning  with per_layer_inputs  warnings
#     llama               0.00000             0.00000                      -         0
#     gemma3_text         0.00000             0.00000                      -         0
#     gemma3n_text        1.89591             1.89591                0.00000         0
#     seen: Gemma 3n drops its per-layer inputs
#
# With other versions: the same with transformers 5.24.0; PEFT 0.21.2 is the newest at the time of writing.
# Hurt: prompt tuning and prefix search (soft prompts that elicit or suppress a behaviour), attributions by gradients on the
#   embeddings, steering of the embeddings: the effect of the prompt is mixed with that of another model, and the
#   answer of the unsteered model is no baseline.
# Avoid: pass `per_layer_inputs=model.model.get_per_layer_inputs(ids)` beside `inputs_embeds`; do not use PEFT's prompt
#   learning on Gemma 3n.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
python - <<'PY'
import sys
import warnings

import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, Gemma3TextConfig, LlamaConfig

PROMPT = 5
common = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    pad_token_id=0,
)
kinds = ["sliding_attention", "full_attention"] * 2
configs = [
    LlamaConfig(**common),
    Gemma3TextConfig(**common, layer_types=kinds),
    Gemma3nTextConfig(
        **common,
        layer_types=kinds,
        vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    ),
]
text = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(1))


def change(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest change of a log-probability after the prompt."""
    return (one[0, PROMPT:].log_softmax(-1) - other[0, PROMPT:].log_softmax(-1)).abs().max().item()


print(f"largest change of a log-probability; a soft prompt that equals the embeddings of the text's first {PROMPT} tokens")
print("model         inputs_embeds  PEFT prompt tuning  with per_layer_inputs  warnings")
found = {}
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        if name.endswith("correct_output_scale"):  # built as zeros, which would keep the per-layer inputs out
            torch.nn.init.ones_(parameter)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        whole = model(text).logits
        embeddings = model.get_input_embeddings()(text)
        embedded = change(model(inputs_embeds=embeddings).logits, whole)
        given = None
        if hasattr(model.model, "get_per_layer_inputs"):
            inputs = model.model.get_per_layer_inputs(text)
            given = change(model(inputs_embeds=embeddings, per_layer_inputs=inputs).logits, whole)
        tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT))
        tuned.prompt_encoder["default"].embedding.weight.copy_(embeddings[0, :PROMPT])
        rest = text[:, PROMPT:]
        soft = change(tuned(input_ids=rest, attention_mask=torch.ones_like(rest)).logits, whole)
    found[config.model_type] = embedded, soft, given
    own = "-" if given is None else f"{given:.5f}"
    told = sum(one.category is UserWarning for one in caught)
    print(f"{config.model_type:12}  {embedded:13.5f}  {soft:18.5f}  {own:>21}  {told:8}")

*others, (embedded, soft, given) = found.values()
seen = max(value for row in others for value in row[:2]) < 1e-3 and given < 1e-3 and min(embedded, soft) > 0.1
print("seen: Gemma 3n drops its per-layer inputs" if seen else "changed: embeddings are read as their tokens are")
sys.exit(0 if seen else 4)
PY
