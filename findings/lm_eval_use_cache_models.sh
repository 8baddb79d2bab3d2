#!/usr/bin/env bash
# lm_eval 0.4.13: `--use_cache` does not see the model: an adapter or another base is given the first model's answers.
#
# Expected: the cache "allows results of prior runs to be cached, so that there is no need to re-run results in order to
#   re-score or re-run a given (model, task) pair" (docs/interface.md): one file serves any number of such pairs.
# Seen: the key of an answer is the kind of request and its two texts. Whatever model asks next with the same file is given
#   the answers of the first. Only greedy and likelihood requests are kept, so benchmarks of capability. The results name
#   the new model; nothing warns. Where one run covers new documents too, its accuracy is a mixture of two models.
#
#     python 3.11.7 | lm_eval 0.4.13 | torch 2.13.0+cpu | transformers 5.19.0 | peft 0.21.2 | accelerate 1.15.0
#                               without the cache      with one cache file
#     run                       accuracy  sum of LL    accuracy  sum of LL
#     base, first 30 documents     0.533    -161.79       0.533    -161.79
#     base                         0.433    -328.89       0.433    -328.89
#     base with the adapter        0.467    -293.45       0.433    -328.89
#     another base                 0.517    -321.45       0.433    -328.89
#     another base, after 30 documents of the base: accuracy 0.550, sum of LL -317.59
#     seen: later models get the first one's answers
#
# With other versions: 0.4.13 is the newest at the time of writing.
# Hurt: what a fine-tune cost is measured as exactly nothing, and McNemar's test finds no item that differs.
# Avoid: one cache path for each model, adapter, dtype and chat template.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment lm_eval==0.4.13 torch==2.13.0 transformers==5.19.0 peft==0.21.2 accelerate==1.15.0
FOLDER="$(mktemp -d)"
python - "$FOLDER" 2>"$FOLDER/stderr" <<'PY' || { code=$?; [[ $code == 4 ]] || cat "$FOLDER/stderr" >&2; rm -rf "$FOLDER"; exit $code; }
import json
import random
import sys
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

root = Path(sys.argv[1])
words = ["<pad>", "<end>", *(f"w{number}" for number in range(98))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def save(name: str, seed: int) -> LlamaForCausalLM:
    """Save a random model in a folder of its own."""
    torch.manual_seed(seed)
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
        )
    )
    model.save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)
    return model


base = save("base", 0)
save("other", 1)
adapted = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
for name, parameter in adapted.named_parameters():
    if "lora_" in name:  # stands for a training
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
adapted.save_pretrained(root / "adapter")
source = random.Random(0)
rows = [{"q": f"w{source.randrange(98)} w{source.randrange(98)}", "a": source.randrange(2)} for _ in range(60)]
(root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(root / "toy.yaml").write_text(f"""
task: toy
dataset_path: json
dataset_kwargs:
  data_files: {{test: {root}/test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: ["w1", "w2"]
metric_list: [{{metric: acc}}]
""")
manager = TaskManager(include_path=str(root), include_defaults=False)
MODELS = {
    "base, first 30 documents": (f"pretrained={root}/base", 30),
    "base": (f"pretrained={root}/base", None),
    "base with the adapter": (f"pretrained={root}/base,peft={root}/adapter", None),
    "another base": (f"pretrained={root}/other", None),
}


def run(model: str, limit: int | None, cache: str | None) -> tuple[float, float]:
    """Evaluate as `lm_eval --model hf` does; return the accuracy and the sum of the first choices' log-likelihoods."""
    found = simple_evaluate(
        "hf",
        model_args=f"{model},dtype=float32",
        tasks=["toy"],
        task_manager=manager,
        device="cpu",
        batch_size=8,
        limit=limit,
        use_cache=cache,
        bootstrap_iters=0,
    )
    total = sum(one["filtered_resps"][0][0] for one in found["samples"]["toy"])
    return found["results"]["toy"]["acc,none"], total


print("                          without the cache      with one cache file")
print("run                       accuracy  sum of LL    accuracy  sum of LL")
found = {}
for name, (model, limit) in MODELS.items():
    plain, cached = run(model, limit, None), run(model, limit, str(root / "cache"))
    found[name] = (plain[1], cached[1])
    print(f"{name:24}  {plain[0]:8.3f}  {plain[1]:9.2f}    {cached[0]:8.3f}  {cached[1]:9.2f}")

first, base_, adapter, other = found.values()
seen = (
    abs(first[0] - first[1]) < 0.01
    and abs(base_[0] - base_[1]) < 0.01
    and all(abs(pair[1] - base_[0]) < 0.01 < abs(pair[0] - base_[0]) for pair in (adapter, other))
)
mixed = (run(MODELS["base"][0], 30, str(root / "second")), run(MODELS["another base"][0], None, str(root / "second")))[
    1
]
print(f"another base, after 30 documents of the base: accuracy {mixed[0]:.3f}, sum of LL {mixed[1]:.2f}")
seen = seen and min(abs(mixed[1] - other[0]), abs(mixed[1] - base_[0])) > 0.1
print("seen: later models get the first one's answers" if seen else "changed: each model answers for itself")
sys.exit(0 if seen else 4)
PY
rm -rf "$FOLDER"
