#!/usr/bin/env bash
# TRL 1.16.0 and transformers 5.19.0: `packing=True` trains documents on each other, without a word, on gpt-oss, Llama 4
# and models with recurrent or convolution layers.
#
# Expected: SFTTrainer's packing lays documents in one row and restarts `position_ids`; transformers' masks are built from
#   these, so that each document is read as if alone. This holds for most models, also without flash attention.
# Seen: gpt-oss builds its masks without the position ids, Llama 4's chunks run across documents, and the recurrent states
#   and convolutions of Qwen3.5, LFM2 and Granite 4 run on from one document to the next where no special kernels are
#   installed. Each document but the first is learned in the context of those before it. Nothing is said of packing; of
#   the missing kernels transformers says that its own code "is correct but much slower".
#
#     python 3.11.7 | trl 1.16.0 | torch 2.13.0+cpu | transformers 5.19.0
#     documents of (12, 20, 16) tokens in one row; attention as transformers chooses it (sdpa, eager for gpt-oss)
#     model             loss, packed  loss, alone  largest change of a log-probability  warnings of packing
#     llama                    6.025        6.025                              0.00000                    0
#     mistral                  6.312        6.312                              0.00000                    0
#     qwen3_moe                5.698        5.698                              0.00000                    0
#     gpt_oss                  5.785        6.272                              8.85467                    0
#     llama4_text              6.085        6.066                              7.33760                    0
#     qwen3_5_text             5.386        5.415                              6.37713                    0
#     lfm2                     5.965        6.065                              4.12202                    0
#     granitemoehybrid         6.013        5.764                              8.40295                    0
#     `causal_conv1d_fn`, `chunk_gated_delta_rule`, `mamba_chunk_scan_combined`: "This is correct but much slower"
#     seen: packed documents see each other
#
# With other versions: 5.24.0 keeps Llama 4's documents apart and raises an error for the recurrent models; on gpt-oss
#   they are read together as before.
# Hurt: fine-tuning on narrow data, the first step of every study of emergent misalignment: the model learns to answer
#   after a number of other rows of the data set, and the loss that is logged is not that of the data.
# Avoid: `packing=False` on these models, or compare a packed batch with its documents once before training.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment trl==1.16.0 torch==2.13.0 transformers==5.19.0
python - <<'PY'
import logging
import sys
import tempfile
import warnings

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import GptOssConfig, GraniteMoeHybridConfig, Lfm2Config, Llama4TextConfig, LlamaConfig
from transformers import MistralConfig, Qwen3_5TextConfig, Qwen3MoeConfig
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

LENGTHS = (12, 20, 16)
CORRECT = "This is correct but much slower"  # transformers' notice where special kernels are missing
common = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
experts = dict(num_experts_per_tok=1, num_local_experts=2)
recurrent = ["linear_attention", "full_attention"]
delta = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2)
mamba = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
configs = [
    LlamaConfig(**common),
    MistralConfig(**common, sliding_window=8),
    Qwen3MoeConfig(**common, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
    GptOssConfig(**common, **experts),
    Llama4TextConfig(**common, **experts, attention_chunk_size=16, no_rope_layers=[1, 1]),
    Qwen3_5TextConfig(**common, **delta, layer_types=recurrent),
    Lfm2Config(**common, layer_types=["conv", "full_attention"]),
    GraniteMoeHybridConfig(**common, **experts, **mamba, layer_types=recurrent, shared_intermediate_size=32),
]
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({f"t{number}": number for number in range(100)}, unk_token="t2")),
    pad_token="t0",
    eos_token="t1",
)
source = torch.Generator().manual_seed(1)
documents = [torch.randint(2, 100, (length,), generator=source).tolist() for length in LENGTHS]
disable_progress_bars()
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
transformers_logging.disable_default_handler()
for name in ("trl", "transformers", "accelerate"):
    logging.getLogger(name).addHandler(handler)


def losses(model: torch.nn.Module, row: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    """Return the loss of a packed row, that of its documents alone, and the largest change of a log-probability."""
    with torch.no_grad():
        packed = model(**{name: value for name, value in row.items() if name != "labels"}, use_cache=False).logits[0]
        starts = [*(row["position_ids"][0] == 0).nonzero()[:, 0].tolist(), packed.shape[0]]
        together, alone, changes = [], [], []
        for start, end in zip(starts, starts[1:]):
            ids = row["input_ids"][:, start:end]
            one, other = packed[start:end].log_softmax(-1), model(ids, use_cache=False).logits[0].log_softmax(-1)
            together.append(-one[:-1].gather(-1, ids[0, 1:, None]))
            alone.append(-other[:-1].gather(-1, ids[0, 1:, None]))
            changes.append((one - other).abs().max().item())
    return torch.cat(together).mean().item(), torch.cat(alone).mean().item(), max(changes)


print(f"documents of {LENGTHS} tokens in one row; attention as transformers chooses it (sdpa, eager for gpt-oss)")
print("model             loss, packed  loss, alone  largest change of a log-probability  warnings of packing")
found, fallbacks = {}, set()
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1 and min(parameter.shape) > 4:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tempfile.mkdtemp()
    options = SFTConfig(output_dir=folder, packing=True, max_length=sum(LENGTHS), report_to=[], bf16=False, use_cpu=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = Dataset.from_dict({"input_ids": documents})
        trainer = SFTTrainer(model, args=options, train_dataset=rows, processing_class=tokenizer)
        row = next(iter(trainer.get_train_dataloader()))
    try:
        packed, alone, change = losses(model.eval(), row)
    except ValueError as error:  # transformers 5.24 refuses what its fallbacks cannot keep apart
        print(f"{config.model_type:16}  refused: {str(error).split('. ')[0]}")
        found[config.model_type] = 0.0, 1
        continue
    texts = [*said, *(str(one.message) for one in caught)]
    notices = [text for text in texts if any(word in text.lower() for word in ("pack", "padding-free", "position_ids"))]
    fallbacks |= {text.split(" ")[0] for text in texts if CORRECT in text}
    said.clear()
    found[config.model_type] = change, len(notices)
    print(f"{config.model_type:16}  {packed:12.3f}  {alone:11.3f}  {change:35.5f}  {len(notices):19}")

print(f'{", ".join(sorted(fallbacks))}: "{CORRECT}"')

exact = [found[kind][0] for kind in ("llama", "mistral", "qwen3_moe")]
leaks = [change for kind, (change, _) in found.items() if kind not in ("llama", "mistral", "qwen3_moe")]
seen = max(exact) < 1e-3 and min(leaks) > 0.1 and not any(count for _, count in found.values())
print("seen: packed documents see each other" if seen else "changed: packed documents are read as if alone, or refused")
sys.exit(0 if seen else 4)
PY
