#!/usr/bin/env bash
# inspect-ai 0.3.285: the `hf` provider reports log-probabilities of tokens that the model did not write.
#
# Expected: `ModelOutput.choices[0].logprobs.content` has one entry per token of the answer, with that token and its
#   log-probability, as Inspect's other providers (and the OpenAI API that the type copies) give it.
# Seen: each entry is the most likely token of its step, whatever was drawn; the drawn token's own log-probability is
#   nowhere unless it is among `top_logprobs`. An answer that ends before its batch gets further entries for its padding,
#   and `usage.output_tokens` counts that padding too. An answer that was cut by `max_tokens` has no stop reason.
#
#     python 3.11.7 | inspect-ai 0.3.285 | torch 2.13.0+cpu | transformers 5.24.0 | accelerate 1.15.0
#     answer  tokens  entries  output_tokens  entries naming the token written  sum of entries  log-likelihood  stop
#          0      24       24             24                           4 of 24          -34.26          -65.81  unknown
#          1      13       24             24                           3 of 13          -21.40          -34.74  unknown
#          2      24       24             24                           5 of 24          -39.27          -71.08  unknown
#          3      24       24             24                           3 of 24          -40.60          -72.84  unknown
#     seen: the entries are not the answer's
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: confidences, perplexities and likelihood ratios of sampled answers: they are those of the greedy token at each
#   step, hence always too high, and the more so the hotter the sampling and the shorter the answer. Counts of answers
#   that were cut are zero.
# Avoid: score the answer by a forward pass of your own, or draw with temperature 0 and one answer per batch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285 torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
python - <<'PY'
import asyncio
import sys
import tempfile

import torch
from inspect_ai.model import GenerateConfig, get_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

END, LENGTH = 0, 24
words = ["<end>", "user:", "assistant:", *(f"w{number}" for number in range(29))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
folder = tempfile.mkdtemp()
PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", chat_template=template).save_pretrained(folder)
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        eos_token_id=END,
        bos_token_id=None,
    )
).save_pretrained(folder)
tokenizer, plain = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()


async def draw(prompts: list[str]) -> list:
    config = GenerateConfig(temperature=1.0, max_tokens=LENGTH, logprobs=True, max_connections=len(prompts))
    async with get_model("hf/tiny", model_path=folder, device="cpu", config=config) as model:
        set_seed(1)
        return await asyncio.gather(*(model.generate(prompt) for prompt in prompts))


prompts = ["w1 w2 w3", "w4 w5 w6", "w7 w8 w9", "w1 w5 w9"]
print("answer  tokens  entries  output_tokens  entries naming the token written  sum of entries  log-likelihood  stop")
named = total = cut = 0
padded, higher = [], []
for number, (prompt, output) in enumerate(zip(prompts, asyncio.run(draw(prompts)))):
    answer = tokenizer(output.completion).input_ids
    ended = len(answer) < LENGTH
    written = answer + [END] * ended
    head = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], return_dict=False)
    with torch.no_grad():
        logprobs = plain(torch.tensor([head + written])).logits[0, len(head) - 1 : -1].log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(written)[:, None]).sum().item()
    entries = output.choices[0].logprobs.content
    agree = sum(entry.token == words[token] for entry, token in zip(entries, written))
    reported = sum(entry.logprob for entry in entries[: len(written)])
    named, total, cut = named + agree, total + len(written), cut + (output.stop_reason == "max_tokens")
    padded.append(ended and len(entries) > len(written) and output.usage.output_tokens > len(written))
    higher.append(reported - own)
    share = f"{agree} of {len(written)}"
    print(
        f"{number:6}  {len(written):6}  {len(entries):7}  {output.usage.output_tokens:13}  {share:>32}  {reported:14.2f}"
        f"  {own:14.2f}  {output.stop_reason}"
    )

seen = named < total / 2 and any(padded) and min(higher) > 1 and cut == 0
print("seen: the entries are not the answer's" if seen else "changed: the entries are the answer's own")
sys.exit(0 if seen else 4)
PY
