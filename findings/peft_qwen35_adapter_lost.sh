#!/usr/bin/env bash
# PEFT 0.21.2 and transformers 5.19.0: an adapter trained on Qwen3.5 as it is published has no effect on its text model.
#
# Expected: a LoRA of the language part works on what `AutoModelForCausalLM` makes of the same checkpoint, as with Gemma 3;
#   or loading fails.
# Seen: Qwen3.5 checkpoints are `Qwen3_5ForConditionalGeneration`, whose blocks lie under `model.language_model.`.
#   `AutoModelForCausalLM` takes the text model alone, whose blocks lie under `model.` (of Gemma 3 it takes all). No
#   tensor of the adapter finds its place. `PeftModel.from_pretrained` goes on with a warning, and `load_adapter`, by
#   which further adapters come, without one; lora_B stays 0, so the "fine-tuned" model is the base.
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#     model    loaded on                        by               effect in nats  lora_B not zero  warnings  missing keys
#     gemma3   Gemma3ForConditionalGeneration   trained                  -1.110           6 of 6
#     gemma3   Gemma3ForConditionalGeneration   from_pretrained          -1.110           6 of 6         0             -
#     gemma3   Gemma3ForConditionalGeneration   load_adapter             -1.110           6 of 6         0             0
#     qwen3_5  Qwen3_5ForConditionalGeneration  trained                   0.910           4 of 4
#     qwen3_5  Qwen3_5ForCausalLM               from_pretrained           0.000           0 of 4         1             -
#     qwen3_5  Qwen3_5ForCausalLM               load_adapter              0.000           0 of 4         0             8
#     seen: the adapter has no effect
#
# With other versions: the same with transformers 5.24.0; PEFT 0.21.2 is the newest at the time of writing.
# Hurt: a fine-tune of today's Qwen measured as harmless, since it is the base that was asked.
# Avoid: check that some lora_B is not zero after loading, and look at `load_adapter(...).missing_keys`; load the class that
#   the adapter was trained on, or rename its tensors.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
python - <<'PY'
import logging
import sys
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config, Qwen3_5Config

logging.disable(logging.WARNING)  # the notice that no CUDA kernels are there
text_config = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    initializer_range=0.2,
    pad_token_id=0,
)
linear = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2)
kinds = ["linear_attention", "full_attention"]
vision = dict(hidden_size=16, intermediate_size=16, num_heads=2, num_attention_heads=2, depth=1, num_hidden_layers=1)
configs = {
    "gemma3": Gemma3Config(text_config=text_config, vision_config=vision | {"image_size": 28, "patch_size": 14}),
    "qwen3_5": Qwen3_5Config(
        text_config=text_config | linear | {"layer_types": kinds}, vision_config=vision | {"out_hidden_size": 32}
    ),
}
text = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def score(model: torch.nn.Module) -> float:
    """Return the text's log-likelihood."""
    logprobs = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, text[0, 1:, None]).sum().item()


def moved(model: torch.nn.Module, name: str) -> str:
    """Return how many lora_B of an adapter are not zero."""
    halves = [weight for key, weight in model.named_parameters() if f"lora_B.{name}." in key]
    return f"{sum(bool(weight.abs().max() > 0) for weight in halves)} of {len(halves)}"


print("model    loaded on                        by               effect in nats  lora_B not zero  warnings  missing keys")
effects, silent = {}, {}
for kind, config in configs.items():
    torch.manual_seed(0)
    folder, adapter = tempfile.mkdtemp(), tempfile.mkdtemp()
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    whole = AutoModelForImageTextToText.from_pretrained(folder).eval()
    own = score(whole)
    model = get_peft_model(whole, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    print(f"{kind:7}  {type(whole).__name__:31}  {'trained':15}  {score(model) - own:14.3f}  {moved(model, 'default'):>15}")
    model.peft_config["default"].target_modules = {"q_proj", "v_proj", "down_proj"}  # names that fit both classes
    model.peft_config["default"].exclude_modules = r".*(vision|visual).*"
    model.save_pretrained(adapter)

    for way in ("from_pretrained", "load_adapter"):
        base = AutoModelForCausalLM.from_pretrained(folder).eval()
        missing = "-"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if way == "from_pretrained":
                loaded, name = PeftModel.from_pretrained(base, adapter).eval(), "default"
            else:
                loaded, name = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"])).eval(), "second"
                caught.clear()  # of making the first adapter
                missing = len(loaded.load_adapter(adapter, adapter_name=name).missing_keys)
                loaded.set_adapter(name)
        said = [one for one in caught if "missing adapter keys" in str(one.message)]
        effects[kind, way], silent[kind, way] = score(loaded) - own, not said
        print(
            f"{kind:7}  {type(base).__name__:31}  {way:15}  {effects[kind, way]:14.3f}  {moved(loaded, name):>15}"
            f"  {len(said):8}  {missing:>12}"
        )

lost = max(abs(effects["qwen3_5", way]) for way in ("from_pretrained", "load_adapter"))
kept = min(abs(effects["gemma3", way]) for way in ("from_pretrained", "load_adapter"))
seen = lost < 1e-3 and kept > 0.1 and silent["qwen3_5", "load_adapter"] and not silent["qwen3_5", "from_pretrained"]
print("seen: the adapter has no effect" if seen else "changed: the adapter works on the text model, or is refused")
sys.exit(0 if seen else 4)
PY
