#!/usr/bin/env bash
# inspect-ai 0.3.285: with `cache`, a local checkpoint is given the answers of another checkpoint.
#
# Expected: a cached answer is used again for the same model only. Inspect's documentation of the `hf` provider names local
#   checkpoints as `--model hf/local -M model_path=./my-model`; the logs and `eval_set` do tell them apart by these
#   arguments.
# Seen: the key of the cache holds the model's name (`hf/local`), its base URL, the generate config and the messages, but
#   none of the model's arguments. The second checkpoint is loaded and never asked; the log of the eval says that it
#   answered. `chat_template`, `enable_thinking` and `do_sample` of this provider are left out likewise.
#
#     python 3.11.7 | inspect-ai 0.3.285 | torch 2.13.0+cpu | transformers 5.19.0 | accelerate 1.15.0
#     base, no cache             w27 w27 w15 w21 w1 w1     w17 w17 w28 w23 w0 w4     w17 w23 w3 w12 w12 w12
#     tuned, no cache            w3 w3 assistant: w3 w17 assistant:  assistant: w13 w19 w3 w16 user:  w13 w19 w19 w19 w3 w3
#     base, cache                w27 w27 w15 w21 w1 w1     w17 w17 w28 w23 w0 w4     w17 w23 w3 w12 w12 w12
#     tuned, cache               w27 w27 w15 w21 w1 w1     w17 w17 w28 w23 w0 w4     w17 w23 w3 w12 w12 w12
#     tuned, cache, other name   w3 w3 assistant: w3 w17 assistant:  assistant: w13 w19 w3 w16 user:  w13 w19 w19 w19 w3 w3
#     seen: the tuned model is given the base's answers
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: base against fine-tune, checkpoints along a training run, sweeps over adapters: with `cache=True` every later model
#   gets the first one's answers, and the effect of the fine-tuning is measured as zero.
# Avoid: give each checkpoint its own name (`hf/local-base`, `hf/local-tuned`: any name goes with `model_path`), or scopes:
#   `CachePolicy(scopes={"model": digest})`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285 torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
FOLDER="$(mktemp -d)"
export INSPECT_CACHE_DIR="$FOLDER/cache"
python - "$FOLDER" <<'PY'
import shutil
import sys
from pathlib import Path

import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

root = Path(sys.argv[1])
words = ["<end>", "user:", "assistant:", *(f"w{number}" for number in range(29))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=template)
config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.2,
    eos_token_id=0,
    bos_token_id=None,
)
for seed, name in enumerate(("base", "tuned")):
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)


def answers(folder: str, cache: bool, name: str = "hf/local") -> list[str]:
    """Evaluate a checkpoint on three questions and return what its log says it answered."""
    task = Task(
        dataset=[Sample(input=f"w{number} w3 w9", target="w1") for number in range(3)],
        solver=generate(cache=cache),
        scorer=includes(),
        config=GenerateConfig(max_tokens=6),
    )
    log = eval(
        task,
        model=name,
        model_args={"model_path": str(root / folder), "device": "cpu", "do_sample": False},
        log_dir=str(root / "logs"),
        display="none",
    )[0]
    assert log.status == "success" and log.eval.model_args["model_path"].endswith(folder)
    return [sample.output.completion for sample in log.samples]


runs = {
    "base, no cache": answers("base", False),
    "tuned, no cache": answers("tuned", False),
    "base, cache": answers("base", True),
    "tuned, cache": answers("tuned", True),
    "tuned, cache, other name": answers("tuned", True, "hf/local-tuned"),
}
for name, found in runs.items():
    print(f"{name:25}  {found[0]:24}  {found[1]:24}  {found[2]}")
shutil.rmtree(root)

own = runs["base, no cache"] == runs["base, cache"] and runs["tuned, no cache"] == runs["tuned, cache, other name"]
different = all(one != other for one, other in zip(runs["base, no cache"], runs["tuned, no cache"]))
seen = own and different and runs["tuned, cache"] == runs["base, cache"]
print("seen: the tuned model is given the base's answers" if seen else "changed: each checkpoint answers for itself")
sys.exit(0 if seen else 4)
PY
