#!/usr/bin/env bash
# repeng 0.4.0, dialz 1.1.4: the default method removes the mean difference of the pairs, the very thing that they share.
#
# Expected: a control vector trained on pairs of prompts that differ in one trait points from the negative ones to the
#   positive ones. The method is called `pca_diff` (dialz: `pca`): the first principal component of the pairs' differences.
# Seen: scikit-learn's PCA subtracts the mean of its rows before it looks for a component, and the rows are differences that
#   all have one sign: their mean is what the pairs share. What becomes the vector is the direction in which the effect of
#   the trait varies most with the rest of the prompt. More pairs do not help. The sign is chosen by the pairs afterwards, so
#   the vector ranks more than half of them rightly even where it says nothing.
#
#     python 3.11.7 | repeng 0.4.0 | dialz 1.1.4 | scikit-learn 1.9.1 | torch 2.13.0+cpu | transformers 4.57.6
#     one trait, layer 3, 500 held-out pairs: cosine with their mean difference, share of pairs ranked rightly, and how
#     much of the mean difference is left when the vector is projected out
#     vector              pairs  cosine  ranked  left
#     mean difference        30   0.973   1.000  0.23
#     mean difference      1000   0.998   1.000  0.06
#     repeng, default        30   0.286   0.880  0.96
#     repeng, default       300   0.075   0.596  1.00
#     repeng, default      1000   0.221   0.736  0.98
#     dialz, default         30   0.230   0.814  0.97
#     dialz, default        300   0.432   0.952  0.90
#     dialz, default       1000   0.160   0.684  0.99
#     repeng, pca_center   1000   0.997   1.000  0.08
#     dialz, mean_diff     1000   0.998   1.000  0.06
#     seen: the default vector misses what the pairs share
#
# With other versions: repeng 0.4.0 and dialz 1.1.4 are the newest at the time of writing.
# Hurt: whoever steers by such a vector, or compares it with other directions: a weak effect and a small cosine say nothing
#   about the model. Representation engineering (https://arxiv.org/abs/2310.01405) turns the differences' signs at random,
#   which makes their mean 0, before it takes the component.
# Avoid: `method="pca_center"` in both, or `mean_diff` in dialz.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment repeng==0.4.0 dialz==1.1.4 ipython==9.18.1 scikit-learn==1.9.1 torch==2.13.0 transformers==4.57.6
TQDM_DISABLE=1 python - <<'PY'
import math
import random
import sys
import tempfile
import warnings

import dialz
import numpy as np
import repeng
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

warnings.simplefilter("ignore")
torch.set_grad_enabled(False)
LAYER = 3
words = ["<pad>", "<end>", *(f"w{number}" for number in range(98))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", padding_side="left")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        initializer_range=0.1,
    )
).eval()
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
loaded = dialz.SteeringModel(folder, [LAYER])
chance = random.Random(0)


def pairs(number: int) -> list[tuple[str, str]]:
    """Return prompts that say w1 or w2 (the trait) and then the same six words."""
    texts = [" ".join(f"w{chance.randrange(10, 98)}" for _ in range(6)) for _ in range(number)]
    return [(f"w1 {text}", f"w2 {text}") for text in texts]


def differences(prompts: list[tuple[str, str]]) -> np.ndarray:
    """Return the differences of the residual stream after the layer, at the last token."""
    ends = []
    for side in zip(*prompts):
        states = model(**tokenizer(list(side), return_tensors="pt"), output_hidden_states=True).hidden_states
        ends.append(states[LAYER + 1][:, -1].numpy())
    return ends[0] - ends[1]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def by_repeng(prompts: list[tuple[str, str]], **options: str) -> np.ndarray:
    entries = [repeng.DatasetEntry(*pair) for pair in prompts]
    return repeng.ControlVector.train(model, tokenizer, entries, **options).directions[LAYER]


def by_dialz(prompts: list[tuple[str, str]], **options: str) -> np.ndarray:
    dataset = dialz.Dataset()
    for pair in prompts:
        dataset.add_entry(*pair)
    return dialz.SteeringVector.train(loaded, dataset, **options).directions[LAYER]


held_out = differences(pairs(500))
methods = {
    "mean difference": lambda prompts: differences(prompts).mean(0),
    "repeng, default": by_repeng,
    "dialz, default": by_dialz,
    "repeng, pca_center": lambda prompts: by_repeng(prompts, method="pca_center"),
    "dialz, mean_diff": lambda prompts: by_dialz(prompts, method="mean_diff"),
}
print(
    "one trait, layer 3, 500 held-out pairs: cosine with their mean difference, share of pairs ranked rightly, and how"
)
print("much of the mean difference is left when the vector is projected out")
print("vector              pairs  cosine  ranked  left")
found: dict[str, list[float]] = {}
for name, method in methods.items():
    for number in (30, 300, 1000):
        vector, mean = unit(method(pairs(number))), unit(held_out.mean(0))
        cosine, ranked = float(vector @ mean), float((held_out @ vector > 0).mean())
        found.setdefault(name, []).append(cosine)
        print(f"{name:18}  {number:5}  {cosine:6.3f}  {ranked:6.3f}  {math.sqrt(1 - cosine**2):4.2f}")

poor = [found.pop("repeng, default"), found.pop("dialz, default")]
seen = max(max(row) for row in poor) < 0.5 and min(min(row) for row in found.values()) > 0.95
print(
    "seen: the default vector misses what the pairs share"
    if seen
    else "changed: the default vector is what the pairs share"
)
sys.exit(0 if seen else 4)
PY
