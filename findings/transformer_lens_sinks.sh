#!/usr/bin/env bash
# TransformerLens 4.3.0: compatibility mode changes gpt-oss: value biases are folded as if attention weights added up to 1.
#
# Expected: `enable_compatibility_mode()` rewrites the weights (norms folded, writing weights centred, value biases moved
#   into the output bias) so that each analysis has simple weights and the model computes what it computed before.
# Seen: value biases may be moved because "attention patterns add up to 1", as `fold_value_biases` says of itself. gpt-oss
#   has a learned sink in each head that takes a share of the attention, another one at each token: there the weights add
#   up to less. The bridge computes the sink, and the processing ignores it. No warning.
#
#     python 3.11.7 | transformer-lens 4.3.0 | torch 2.13.0+cpu | transformers 5.24.0
#     largest difference of a log-probability from transformers
#     model or option          sum of attention  bridge  compatibility mode  warnings
#     gpt-oss                             0.934  0.0000              0.1777         0
#     gpt-oss, stronger sinks             0.727  0.0000              2.9221         0
#     gpt-oss, sinks shut                 1.000  0.0000              0.0000         0
#     gpt-oss, no value bias              0.939  0.0000              0.0000         0
#     fold_value_biases=False             0.934  0.0000              0.0000         0
#     no_processing=True                  0.934  0.0000              0.0000         0
#     seen: compatibility mode is another model
#
# With other versions: 4.3.0 is the newest at the time of writing.
# Hurt: logit lenses, direct logit attribution, patching and ablation on gpt-oss in compatibility mode, which the
#   documentation calls required for them: the clean run is another model already.
# Avoid: `enable_compatibility_mode(fold_value_biases=False)`, and compare the logits with those before.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment transformer-lens==4.3.0 torch==2.13.0 transformers==5.24.0
TQDM_DISABLE=1 python - <<'PY'
import sys
import tempfile
import warnings

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

torch.set_grad_enabled(False)
text = torch.randint(3, 100, (1, 30), generator=torch.Generator().manual_seed(1))
raw = Tokenizer(models.WordLevel({f"w{number}": number for number in range(100)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", eos_token="w1", bos_token="w2")


def tiny(sink: float, value_bias: bool) -> GptOssForCausalLM:
    """Return a random gpt-oss; a sink of -30 takes nothing."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            initializer_range=0.2,
            sliding_window=16,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.fill_(sink)
        elif name.endswith("v_proj.bias") and not value_bias:
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def logprobs(logits: torch.Tensor) -> torch.Tensor:
    return logits[0].log_softmax(-1)


def total(model: GptOssForCausalLM) -> float:
    """Return the mean sum of the attention weights over the text, all heads and layers."""
    model.set_attn_implementation("eager")
    weights = torch.stack(model(text, output_attentions=True).attentions)
    return weights.sum(-1).mean().item()


CASES = {
    "gpt-oss": (0.0, True, {}),
    "gpt-oss, stronger sinks": (2.0, True, {}),
    "gpt-oss, sinks shut": (-30.0, True, {}),
    "gpt-oss, no value bias": (0.0, False, {}),
    "fold_value_biases=False": (0.0, True, {"fold_value_biases": False}),
    "no_processing=True": (0.0, True, {"no_processing": True}),
}
print("largest difference of a log-probability from transformers")
print("model or option          sum of attention  bridge  compatibility mode  warnings")
found = {}
for name, (sink, value_bias, options) in CASES.items():
    model = tiny(sink, value_bias)
    expected, attention = logprobs(model(text).logits), total(model)
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32)
    before = (logprobs(bridge(text)) - expected).abs().max().item()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bridge.enable_compatibility_mode(**options)
    after = (logprobs(bridge(text)) - expected).abs().max().item()
    found[name] = (before, after)
    print(f"{name:23}  {attention:16.3f}  {before:6.4f}  {after:18.4f}  {len(caught):8}")

wrong = [found.pop("gpt-oss")[1], found.pop("gpt-oss, stronger sinks")[1]]
seen = min(wrong) > 0.1 and all(max(pair) < 1e-3 for pair in found.values())
print(
    "seen: compatibility mode is another model" if seen else "changed: compatibility mode keeps the model, or refuses"
)
sys.exit(0 if seen else 4)
PY
