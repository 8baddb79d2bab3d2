#!/usr/bin/env bash
# TRL 1.16.0: precomputed reference log-probabilities are taken from a cache that does not know what they were computed with.
#
# Expected: with `precompute_ref_log_probs` DPOTrainer computes the reference once, before training, and the loss is the one
#   that it is without the option: before the first step policy and reference are one model, margins are 0, the loss is ln 2.
# Seen: the values stay on disk under a hash of the tokenized dataset and of the weights. Truncation happens later, in the
#   collator, and `ld_alpha` in the sum of the tokens: neither is in the hash. With the default `max_length` a filter that
#   happens to hold all settings comes before, which hides this; with `max_length=None` or `keep_end` there is no filter.
#   What is no tensor of the model is never in it: `lora_alpha` of the adapter that is trained on, the scaling of rope. The
#   next run on the same pairs subtracts the reference of another one. No warning.
#
#     python 3.11.7 | trl 1.16.0 | peft 0.21.2 | torch 2.13.0+cpu | transformers 5.19.0 | datasets 5.2.0
#     loss and mean margin before any step (ln 2 = 0.6931 and 0) with a precomputed reference, two runs on the same pairs;
#     at the right the second run with the reference computed as it goes, and with a cache of its own
#     settings                    first run       second run      not precomputed  own cache
#     max_length 8, then 12     0.6931  0.000   0.6931  0.000   0.6931  0.000   0.6931  0.000
#     the same with keep_end    0.6931  0.000   2.2629 -2.143   0.6931  0.000   0.6931  0.000
#     ld_alpha none, then 0.3   0.6931  0.000   0.6931  0.000   0.6931  0.000   0.6931  0.000
#     the same, no max_length   0.6931  0.000   0.0761  2.560   0.6931  0.000   0.6931  0.000
#     lora_alpha 4, then 32     0.6931  0.000   0.7986 -0.126   0.6931  0.000   0.6931  0.000
#     rope plain, then scaled   0.6931  0.000   0.7073 -0.016   0.6931  0.000   0.6931  0.000
#     seen: the reference is another run's
#
# With other versions: TRL 1.16.0 is the newest at the time of writing.
# Hurt: sweeps over such a setting: all runs but the first start with wrong margins, and their order decides which.
# Avoid: no `precompute_ref_log_probs`, or a dataset cache (`HF_DATASETS_CACHE`) for each run; the first loss of sigmoid DPO
#   must be 0.6931.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.19.0 datasets==5.2.0
FOLDER="$(mktemp -d)"
export HF_DATASETS_CACHE="$FOLDER/cache" TQDM_DISABLE=1
python - "$FOLDER" <<'PY' || { code=$?; rm -rf "$FOLDER"; exit $code; }
import copy
import json
import logging
import math
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

root = Path(sys.argv[1])
disable_progress_bars()
warnings.simplefilter("ignore", FutureWarning)  # keep_end will go in TRL 2
logging.disable(logging.WARNING)
words = ["<pad>", "<end>", *(f"w{number}" for number in range(98))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
rows = [
    {
        "prompt": f"w{n} w3 w9",
        "chosen": "".join(f" w{(n * 7 + k * 5) % 98}" for k in range(12)),
        "rejected": "".join(f" w{(n * 3 + k * 11) % 98}" for k in range(5)),
    }
    for n in range(16)
]
(root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def first_loss(alpha: int | None = None, rope: dict[str, Any] | None = None, **options: Any) -> tuple[float, float]:
    """Return the loss and the mean margin before any step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
            rope_parameters={"rope_theta": 10000.0, "rope_type": "default"} | (rope or {}),
        )
    )
    if alpha:
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"]))
        torch.manual_seed(1)
        for parameter in model.parameters():  # stands for the supervised fine-tuning that came before
            if parameter.requires_grad:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    pairs = load_dataset("json", data_files=str(root / "pairs.jsonl"), split="train")
    settings = DPOConfig(
        output_dir=str(root / "out"), report_to=[], bf16=False, use_cpu=True, disable_tqdm=True, **options
    )
    reference = None if alpha or settings.precompute_ref_log_probs else copy.deepcopy(model)
    trainer = DPOTrainer(
        model, reference, args=settings, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    found = trainer.evaluate()
    return found["eval_loss"], found["eval_rewards/margins"]


END = {"truncation_mode": "keep_end"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_length 8, then 12": ({"max_length": 8}, {"max_length": 12}),
    "the same with keep_end": (END | {"max_length": 8}, END | {"max_length": 12}),
    "ld_alpha none, then 0.3": ({}, {"ld_alpha": 0.3}),
    "the same, no max_length": ({"max_length": None}, {"max_length": None, "ld_alpha": 0.3}),
    "lora_alpha 4, then 32": ({"alpha": 4}, {"alpha": 32}),
    "rope plain, then scaled": ({}, {"rope": {"rope_type": "linear", "factor": 4.0}}),
}
print(
    "loss and mean margin before any step (ln 2 = 0.6931 and 0) with a precomputed reference, two runs on the same pairs;"
)
print("at the right the second run with the reference computed as it goes, and with a cache of its own")
print("settings                    first run       second run      not precomputed  own cache")
found = {}
for name, (first, second) in CASES.items():
    runs = []
    for options, precompute, cleared in (
        (first, True, True),
        (second, True, False),
        (second, False, False),
        (second, True, True),
    ):
        if cleared:
            shutil.rmtree(root / "cache", ignore_errors=True)
        runs.append(first_loss(precompute_ref_log_probs=precompute, **options))
    found[name] = [loss for loss, _ in runs]
    print(f"{name:23}", *(f"{loss:8.4f} {margin:6.3f}" for loss, margin in runs))

right = [found.pop("max_length 8, then 12"), found.pop("ld_alpha none, then 0.3")]
seen = all(abs(loss - math.log(2)) < 1e-4 for losses in right for loss in losses) and all(
    abs(losses[1] - math.log(2)) > 0.005 and all(abs(losses[run] - math.log(2)) < 1e-4 for run in (0, 2, 3))
    for losses in found.values()
)
print("seen: the reference is another run's" if seen else "changed: each run has a reference of its own")
sys.exit(0 if seen else 4)
PY
rm -rf "$FOLDER"
