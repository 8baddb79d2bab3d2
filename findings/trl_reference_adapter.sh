#!/usr/bin/env bash
# TRL 1.16.0: preference training goes on from an adapter, but the frozen reference is another model, for every adapter
# whose weights are plain parameters: IA3, VeRA, LoHa, LoKr, HRA, and a LoRA on embeddings or on single tokens.
#
# Expected: DPOTrainer, given a PEFT model and no `ref_model`, adds a frozen adapter "ref" as a copy of the one to be trained.
#   Before the first step policy and reference are then one model: margins are 0 and the loss is ln 2 = 0.6931.
# Seen: only parameters with ".default." inside their name are copied. Weights that PEFT keeps in a ParameterDict have names
#   that end in ".default": these keep the values of a fresh adapter. With IA3, VeRA, LoHa, LoKr and HRA the reference is the
#   base without the adapter. With LoRA on `embed_tokens` or `trainable_token_indices` only a part is copied: the reference
#   is neither the policy nor the base, and is as far from one as from the other. No warning.
#
#     python 3.11.7 | trl 1.16.0 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0
#     largest difference of a log-probability, before any step; ln 2 is 0.6931
#     adapter                 policy, base  reference, policy  reference, base  first loss  warnings of it
#     LoRA                           5.632              0.000            5.632      0.6931               0
#     LoRA, modules_to_save          7.381              0.000            7.381      0.6931               0
#     LoRA, embed_tokens             4.846              5.218            4.280      0.6295               0
#     LoRA, 48 new tokens            4.167              4.516            4.543      0.7330               0
#     IA3                            2.769              2.769            0.000      0.6948               0
#     VeRA                           0.619              0.619            0.000      0.7006               0
#     LoHa                           2.973              2.973            0.000      0.6779               0
#     LoKr                           3.074              3.074            0.000      0.7421               0
#     HRA                            2.963              2.963            0.000      0.6739               0
#     seen: the reference is not the policy
#
# With other versions: TRL 1.16.0 is the newest at the time of writing. GRPO, RLOO and KTO copy with the same lines.
# Hurt: whoever continues such an adapter: the KL term pulls to a model that nobody chose, the rewards start away from 0,
#   and with embeddings part of the gradient undoes the fine-tuning that was to be kept.
# Avoid: look at the first loss (0.6931) or pass `ref_model`, loaded with the adapter merged into it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import math
import sys
import tempfile
import warnings

import torch
from datasets import Dataset, disable_progress_bars
from peft import HRAConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

disable_progress_bars()
logging.disable(logging.WARNING)
words = ["<pad>", "<end>", *(f"w{number}" for number in range(98))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
pairs = Dataset.from_list(
    [{"prompt": f"w{n} w3 w9", "chosen": f" w{n + 1} w4", "rejected": f" w{n + 5} w6"} for n in range(16)]
)
text = torch.randint(2, 100, (1, 12), generator=torch.Generator().manual_seed(2))
projections = ["q_proj", "v_proj"]
configs: dict[str, PeftConfig] = {
    "LoRA": LoraConfig(r=4, target_modules=projections),
    "LoRA, modules_to_save": LoraConfig(r=4, target_modules=projections, modules_to_save=["lm_head"]),
    "LoRA, embed_tokens": LoraConfig(r=4, target_modules=[*projections, "embed_tokens"]),
    "LoRA, 48 new tokens": LoraConfig(r=4, target_modules=projections, trainable_token_indices=list(range(2, 50))),
    "IA3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": VeraConfig(r=8, target_modules=projections[:1]),
    "LoHa": LoHaConfig(r=4, target_modules=projections),
    "LoKr": LoKrConfig(r=4, target_modules=projections),
    "HRA": HRAConfig(r=4, target_modules=projections),
}


@torch.no_grad()
def logprobs(model: torch.nn.Module) -> torch.Tensor:
    """Return all log-probabilities of the text."""
    return model(input_ids=text).logits[0].log_softmax(-1)


print("largest difference of a log-probability, before any step; ln 2 is 0.6931")
print("adapter                 policy, base  reference, policy  reference, base  first loss  warnings of it")
found = {}
for name, config in configs.items():
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
        )
    ).eval()
    plain = logprobs(base)
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    for parameter in model.parameters():  # stands for the supervised fine-tuning that came before
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    policy = logprobs(model.eval())
    options = DPOConfig(output_dir=tempfile.mkdtemp(), report_to=[], bf16=False, use_cpu=True, disable_tqdm=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = DPOTrainer(model, args=options, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    first = trainer.evaluate()["eval_loss"]
    assert (logprobs(trainer.model) - policy).abs().max() < 1e-5  # the policy itself is as it was
    trainer.model.set_adapter("ref")
    reference = logprobs(trainer.model)
    far = [(one - other).abs().max().item() for one, other in ((policy, plain), (reference, policy), (reference, plain))]
    notices = sum("ref" in str(one.message) for one in caught)
    found[name] = [*far, first, notices]
    print(f"{name:22}  {far[0]:12.3f}  {far[1]:17.3f}  {far[2]:15.3f}  {first:10.4f}  {notices:14}")

good = [found.pop("LoRA"), found.pop("LoRA, modules_to_save")]
half = [found.pop("LoRA, embed_tokens"), found.pop("LoRA, 48 new tokens")]
seen = (
    all(row[1] < 1e-4 and abs(row[3] - math.log(2)) < 1e-4 for row in good)
    and all(row[1] > 0.5 and row[2] > 0.5 and abs(row[3] - math.log(2)) > 0.01 for row in half)
    and all(row[1] > 0.5 and row[2] < 1e-4 for row in found.values())
)
print("seen: the reference is not the policy" if seen else "changed: the reference is a copy of the policy, or refused")
sys.exit(0 if seen else 4)
PY
