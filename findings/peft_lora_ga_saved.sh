#!/usr/bin/env bash
# PEFT 0.21.2: a LoRA-GA adapter that is saved and loaded again is another model, also after no training at all.
#
# Expected: `PeftModel.from_pretrained(base, folder)` is the model that was trained and saved to that folder.
# Seen: LoRA-GA begins with matrices that are not zero and takes their product out of the base's weights. An adapter that
#   is loaded has no gradients, so nothing is taken out: the whole starting product is added to the base. PiSSA and OLoRA
#   repeat their step, CorDA refuses; LoRA-GA falls back to plain LoRA in silence. The documentation says to save with the
#   argument `save_embedding_layers` "or the save_mutated_as_lora pattern": the first changes nothing. vLLM 0.32.0 refuses
#   PiSSA, OLoRA and CorDA by name and LoRA-GA not (vllm/lora/peft_helper.py; read, not run).
#
#     python 3.11.7 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0
#     largest difference of a log-probability; 20 steps of training
#                               of the model in memory              of the saved adapter, from the model in memory
#     init_lora_weights   before training  after training    not trained  trained  save_embedding_layers  converted  warnings
#     True                          0.000           1.435          0.000    0.000                  0.000      0.000         0
#     pissa                         0.000           2.384          0.000    0.000                  0.000      0.000         0
#     olora                         0.000           2.548          0.000    0.000                  0.000      0.000         0
#     lora_ga                       0.000           2.670          0.690    0.557                  0.557      0.000         0
#     seen: the loaded adapter is another model
#
# With other versions: PEFT 0.21.2 is the newest at the time of writing; LoRA-GA came with its pull request #2926.
# Hurt: checkpoints of `Trainer` and TRL are saved that way. The organism that is evaluated is not the one whose loss was
#   logged, and a training of no steps is a "fine-tune" with an effect.
# Avoid: save the untouched adapter to a folder before the first step, and afterwards
#   `save_pretrained(folder, path_initial_model_for_weight_conversion=first)`: a plain LoRA of twice the rank.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment peft==0.21.2 torch==2.13.0 transformers==5.19.0
python - <<'PY'
import sys
import tempfile
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from transformers import LlamaConfig, LlamaForCausalLM

text = torch.randint(0, 100, (4, 24), generator=torch.Generator().manual_seed(2))
PLAIN = {"target_modules": ["q_proj", "down_proj"], "r": 8, "lora_alpha": 16}


def base() -> LlamaForCausalLM:
    """Return a random model, always the same."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.1,
        )
    ).eval()


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    """Return all log-probabilities of the texts."""
    return model.eval()(input_ids=text).logits.log_softmax(-1)


def loss(model: Any) -> torch.Tensor:
    """Return the mean loss of the texts."""
    return model(input_ids=text, labels=text).loss


def adapted(init: Any) -> PeftModel:
    """Return the model with a new adapter."""
    model = base()
    config = LoraConfig(**PLAIN, init_lora_weights=init)
    if init == "lora_ga":
        config = LoraConfig(**PLAIN, init_lora_weights=init, lora_ga_config=LoraGAConfig())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            preprocess_loraga(model, config, lambda: loss(model).backward())
    torch.manual_seed(1)
    return get_peft_model(model, config)


def away(folder: str, expected: torch.Tensor) -> float:
    """Return how far the model with the saved adapter is from the expected log-probabilities."""
    return (logprobs(PeftModel.from_pretrained(base(), folder)) - expected).abs().max().item()


plain = logprobs(base())
print("largest difference of a log-probability; 20 steps of training")
print("                          of the model in memory              of the saved adapter, from the model in memory")
print("init_lora_weights   before training  after training    not trained  trained  save_embedding_layers  converted  warnings")
found = {}
for init in (True, "pissa", "olora", "lora_ga"):
    first, last, embeddings, converted = (tempfile.mkdtemp() for _ in range(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = adapted(init)
        start = logprobs(model)
        model.save_pretrained(first)
        untrained = away(first, start)
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-3)
        for _ in range(20):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        end = logprobs(model)
        model.save_pretrained(last)
        trained = away(last, end)
        notices = len(caught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(embeddings, save_embedding_layers=True)
        kept = away(embeddings, end)
        plainer = 0.0
        if init is not True:
            model.save_pretrained(converted, path_initial_model_for_weight_conversion=first)
            plainer = away(converted, end)
    before, after = (start - plain).abs().max().item(), (end - plain).abs().max().item()
    found[init] = (before, untrained, trained, kept, plainer, notices)
    print(
        f"{init!s:18}  {before:15.3f}  {after:14.3f}  {untrained:13.3f}  {trained:7.3f}  {kept:21.3f}  {plainer:9.3f}"
        f"  {notices:8}"
    )

gradients = found.pop("lora_ga")
seen = (
    all(max(row[:5]) < 1e-3 for row in found.values())
    and gradients[0] < 1e-3
    and min(gradients[1:4]) > 0.1
    and gradients[4] < 1e-3
    and gradients[5] == 0
)
print("seen: the loaded adapter is another model" if seen else "changed: the loaded adapter is the trained one, or refused")
sys.exit(0 if seen else 4)
PY
