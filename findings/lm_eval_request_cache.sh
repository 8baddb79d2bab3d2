#!/usr/bin/env bash
# lm_eval 0.4.13: with `cache_requests`, few-shot seeds and chat templates have no effect, and after `samples` the
# documents are scored with the prompts of other documents.
#
# Expected: `--cache_requests true` saves the time of building prompts; the numbers are those of a run without it.
# Seen: the key of the cache holds the task, the number of shots, the system prompt and the tokenizer's path. It does not
#   hold the few-shot seed, the arguments of the chat template, or the documents chosen by `--samples`. The results file names the
#   new seed and the new documents all the same. With `samples`, the first run's prompts are paired in order with the second
#   run's documents: their targets are right, the log-likelihoods belong to others.
#
#     python 3.11.7 | lm_eval 0.4.13 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#                              without the cache                with the cache
#     run                    accuracy  sum of LL          accuracy  sum of LL    prompts that lack their document
#     few-shot seed 1           0.525    -202.64             0.525    -202.64             0
#     few-shot seed 2           0.500    -190.90             0.525    -202.64             0
#     few-shot seed 3           0.400    -207.10             0.525    -202.64             0
#     template, think on        0.550    -197.23             0.550    -197.23             0
#     template, think off       0.550    -188.44             0.550    -197.23             0
#     samples 0-9               0.400     -50.77             0.400     -50.77             0
#     samples 20-29             0.600     -48.59             0.400     -50.77            10
#     seen: later runs get the first run's prompts
#
# With other versions: 0.4.13 is the newest at the time of writing. Seeds and samples are reported in its issue #4084 and in
#   pull request #4105; neither is merged.
# Hurt: the spread over few-shot seeds is measured as zero, thinking on and off as the same, and a run on a chosen subset
#   has an accuracy that is none: the prompts that were answered are not the documents that its samples file shows.
# Avoid: no `--cache_requests`, or `--cache_requests refresh` in each run; compare `arguments` and `doc` in the samples.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment lm_eval==0.4.13 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
FOLDER="$(mktemp -d)"
export LM_HARNESS_CACHE_PATH="$FOLDER/cache"
python - "$FOLDER" 2>"$FOLDER/stderr" <<'PY' || { code=$?; [[ $code == 4 ]] || cat "$FOLDER/stderr" >&2; rm -rf "$FOLDER"; exit $code; }
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

root = Path(sys.argv[1])
words = ["<pad>", "<end>", "user:", "assistant:", "think:", *(f"w{number}" for number in range(95))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if think %}think: {% endif %}assistant: "
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", chat_template=template
)
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
    )
).eval()
source = random.Random(0)
for split, count in (("train", 50), ("test", 40)):
    rows = [{"q": f"w{source.randrange(95)} w{source.randrange(95)}", "a": source.randrange(2)} for _ in range(count)]
    (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(root / "toy.yaml").write_text(f"""
task: toy
dataset_path: json
dataset_kwargs:
  data_files: {{train: {root}/train.jsonl, test: {root}/test.jsonl}}
fewshot_split: train
test_split: test
output_type: multiple_choice
num_fewshot: 3
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: ["w1", "w2"]
metric_list: [{{metric: acc}}]
""")
manager = TaskManager(include_path=str(root), include_defaults=False)
cache = Path(root / "cache")


def run(cached: bool, think: bool | None = None, **options: Any) -> tuple[float, float, int]:
    """Evaluate once; return accuracy, the sum of the first choices' log-likelihoods, and prompts without their document."""
    found = simple_evaluate(
        HFLM(model, tokenizer=tokenizer, device="cpu", batch_size=8, chat_template_args={"think": think}),
        tasks=["toy"],
        task_manager=manager,
        cache_requests=cached,
        apply_chat_template=think is not None,
        bootstrap_iters=0,
        **options,
    )
    samples = found["samples"]["toy"]
    foreign = sum(one["doc"]["q"] not in one["arguments"][0][0] for one in samples)
    total = sum(one["filtered_resps"][0][0] for one in samples)
    return found["results"]["toy"]["acc,none"], total, foreign


groups = [
    [(f"few-shot seed {seed}", {"fewshot_random_seed": seed}) for seed in (1, 2, 3)],
    [("template, think on", {"think": True}), ("template, think off", {"think": False})],
    [("samples 0-9", {"samples": {"toy": list(range(10))}}), ("samples 20-29", {"samples": {"toy": list(range(20, 30))}})],
]
print("                         without the cache                with the cache")
print("run                    accuracy  sum of LL          accuracy  sum of LL    prompts that lack their document")
rows = []
for group in groups:
    plain = [run(False, **options) for _, options in group]
    shutil.rmtree(cache, ignore_errors=True)
    cached = [run(True, **options) for _, options in group]
    rows.append((plain, cached))
    for (name, _), one, other in zip(group, plain, cached):
        print(f"{name:21}  {one[0]:8.3f}  {one[1]:9.2f}          {other[0]:8.3f}  {other[1]:9.2f}    {other[2]:10}")

stale = all(
    abs(cached[0][1] - plain[0][1]) < 0.01  # the first run is right
    and all(abs(one[1] - cached[0][1]) < 0.01 for one in cached)  # all later ones repeat it
    and all(abs(one[1] - plain[0][1]) > 0.1 for one in plain[1:])  # and should not
    for plain, cached in rows
)
seen = stale and rows[2][1][1][2] == 10 and rows[2][0][1][2] == 0
print("seen: later runs get the first run's prompts" if seen else "changed: each run gets prompts of its own")
sys.exit(0 if seen else 4)
PY
rm -rf "$FOLDER"
