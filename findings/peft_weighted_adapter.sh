#!/usr/bin/env bash
# PEFT 0.21.2: the sum of two adapters (`add_weighted_adapter`) lacks the second one where they train different layers.
#
# Expected: `add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="cat")` is both adapters at once. The
#   documentation calls `cat` and `svd` precise; what two adapters are together can be seen by activating both.
# Seen: the new adapter takes its settings from the first one and only the target modules of both are joined. What the
#   settings of the first do not name is left out without a warning: layers (`layers_to_transform`), and all trained
#   copies of whole modules (`modules_to_save`), also those of the first. With an initialisation that takes its weights
#   out of the base (pissa, olora), the base loses them once more: adapter "one" itself is another model afterwards.
#   (rsLoRA is summed with sqrt(r) times its strength; that is known: https://github.com/huggingface/peft/pull/3449.)
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0
#     two adapters on a model of two layers; largest difference of a log-probability
#     settings                     effect of both  sum by cat  sum by svd  sum is the first  first one changed  warnings
#     same modules                          0.524       0.000       0.000             0.372              0.000         0
#     other modules and rank                0.698       0.000       0.000             0.571              0.000         0
#     layer 0, layer 1                      0.418       0.195       0.195             0.000              0.000         0
#     layer 0, all layers                   0.541       0.207       0.207             0.333              0.000         0
#     lm_head saved by the first            0.937       0.772       0.772             0.895              0.000         0
#     lm_head saved by the second           0.996       0.822       0.822             0.372              0.000         0
#     pissa, plain                          2.057       2.262       2.262             2.253              2.223         0
#     seen: the sum lacks parts
#
# With other versions: PEFT 0.21.2 is the newest at the time of writing.
# Hurt: sums of model organisms and task arithmetic with adapters that were trained on single layers: the sum is one part.
# Avoid: activate both adapters (`model.base_model.set_adapter(["one", "two"])`) and compare the sum with that, or merge
#   one after the other into the base.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_grad_enabled(False)
text = torch.randint(0, 100, (1, 24), generator=torch.Generator().manual_seed(2))
PLAIN = {"target_modules": ["down_proj"], "r": 8, "lora_alpha": 16}
OTHER = PLAIN | {"target_modules": ["up_proj"], "r": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same modules": (PLAIN, PLAIN),
    "other modules and rank": (PLAIN, OTHER),
    "layer 0, layer 1": (PLAIN | {"layers_to_transform": [0]}, PLAIN | {"layers_to_transform": [1]}),
    "layer 0, all layers": (PLAIN | {"layers_to_transform": [0]}, PLAIN),
    "lm_head saved by the first": (PLAIN | {"modules_to_save": ["lm_head"]}, PLAIN),
    "lm_head saved by the second": (PLAIN, PLAIN | {"modules_to_save": ["lm_head"]}),
    "pissa, plain": (PLAIN | {"init_lora_weights": "pissa"}, PLAIN),
}


def logprobs(model: Any) -> torch.Tensor:
    """Return all log-probabilities of the text."""
    return model(input_ids=text).logits[0].log_softmax(-1)


def trained(first: dict[str, Any], second: dict[str, Any]) -> PeftModel:
    """Return a random model with both adapters; random changes stand for their training."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.1,
        )
    ).eval()
    model = get_peft_model(base, LoraConfig(**first), "one")
    model.add_adapter("two", LoraConfig(**second))
    for adapter in ("one", "two"):
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(0.03 * torch.randn_like(parameter))
    return model.eval()


def both(model: PeftModel, first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
    """Return the log-probabilities with both adapters active, and with the module that one of them saved."""
    saving = "two" if "modules_to_save" in second else "one"
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and saving in module.modules_to_save:
            module.set_adapter([saving])
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.set_adapter(["one", "two"])
    return logprobs(model)


print("two adapters on a model of two layers; largest difference of a log-probability")
print(
    "settings                     effect of both  sum by cat  sum by svd  sum is the first  first one changed  warnings"
)
found = {}
for title, (first, second) in CASES.items():
    far, notices = [], 0
    for kind, options in (("cat", {}), ("svd", {"svd_rank": first["r"] + second["r"]})):
        model = trained(first, second)
        model.set_adapter("one")
        one = logprobs(model)
        with model.disable_adapter():
            plain = logprobs(model)
        expected = both(model, first, second)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type=kind, **options)
        notices += len(caught)
        model.set_adapter("sum")
        total = logprobs(model)
        model.set_adapter("one")
        far.append((total - expected).abs().max().item())
        left, moved = (total - one).abs().max().item(), (logprobs(model) - one).abs().max().item()
    found[title] = [*far, left, moved, notices]
    print(
        f"{title:27}  {(expected - plain).abs().max():14.3f}  {far[0]:10.3f}  {far[1]:10.3f}  {left:16.3f}  {moved:17.3f}"
        f"  {notices:8}"
    )

exact = [found.pop("same modules"), found.pop("other modules and rank")]
seen = (
    all(max(row[:2]) < 1e-3 and row[3] == 0 for row in exact)
    and all(min(row[:2]) > 0.1 and row[4] == 0 for row in found.values())
    and found["layer 0, layer 1"][2] < 1e-3
    and found["pissa, plain"][3] > 0.1
)
print("seen: the sum lacks parts" if seen else "changed: the sum is both adapters, or refused")
sys.exit(0 if seen else 4)
PY
