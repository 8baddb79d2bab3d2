#!/usr/bin/env bash
# inspect-ai 0.3.285: the `hf` provider begins every prompt with two BOS tokens on Llama, Gemma and Mistral tokenizers.
#
# Expected: the model reads what `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` encodes: it is what
#   chat models were trained on, and what vLLM's chat endpoint sends.
# Seen: the provider renders the template to text, in which the BOS stands already, and calls the tokenizer on the text,
#   which puts another BOS before it. No warning, and the log shows the messages only.
#
#     python 3.11.7 | inspect-ai 0.3.285 | torch 2.13.0+cpu | transformers 5.24.0 | accelerate 1.15.0
#     apply_chat_template        <s> user: w1 w2 w3 assistant:
#     hf provider                <s> <s> user: w1 w2 w3 assistant:
#     add_special_tokens: false  <s> user: w1 w2 w3 assistant:
#     largest change of the next token's log-probability: 1.100; with add_special_tokens false 0.000
#     seen: two BOS tokens
#
# With other versions: 0.3.285 is the newest at the time of writing.
# Hurt: all numbers that come from `hf/…` with such a tokenizer: another prompt than training, `vllm/…` or the server had.
# Avoid: `-M tokenizer_call_args='{"add_special_tokens": false}'`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment inspect-ai==0.3.285 torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
python - <<'PY'
import asyncio
import sys
import tempfile

import torch
from inspect_ai.model import GenerateConfig, get_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<s>", "</s>", "user:", "assistant:", *(f"w{number}" for number in range(28))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="</s>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
# As in the files of Llama 3, Gemma and Mistral: the tokenizer adds a BOS, and the template writes one.
raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
template = "{{ bos_token }} {% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
folder = tempfile.mkdtemp()
PreTrainedTokenizerFast(
    tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=template
).save_pretrained(folder)
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
).save_pretrained(folder)
tokenizer, plain = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()
PROMPT = "w1 w2 w3"


async def asked(**arguments) -> tuple[list[int], torch.Tensor]:
    """Return the ids that the provider's model reads, and its log-probabilities of the next token."""
    config = GenerateConfig(max_tokens=1, logprobs=True, top_logprobs=len(words))
    async with get_model("hf/tiny", model_path=folder, device="cpu", do_sample=False, memoize=False, **arguments) as model:
        read = []
        embeddings = model.api.model.get_input_embeddings()
        embeddings.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0].tolist()))
        output = await model.generate(PROMPT, config=config)
    entries = {entry.token: float(entry.logprob) for entry in output.choices[0].logprobs.content[0].top_logprobs}
    return read[0], torch.tensor([entries[word] for word in words])


own = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=False)
with torch.no_grad():
    expected = plain(torch.tensor([own])).logits[0, -1].log_softmax(-1)
read, found = asyncio.run(asked())
mended, again = asyncio.run(asked(tokenizer_call_args={"add_special_tokens": False}))
print("apply_chat_template       ", *tokenizer.convert_ids_to_tokens(own))
print("hf provider               ", *tokenizer.convert_ids_to_tokens(read))
print("add_special_tokens: false ", *tokenizer.convert_ids_to_tokens(mended))
change, rest = (found - expected).abs().max().item(), (again - expected).abs().max().item()
print(f"largest change of the next token's log-probability: {change:.3f}; with add_special_tokens false {rest:.3f}")

seen = read == [0, *own] and mended == own and change > 0.1 and rest < 1e-4
print("seen: two BOS tokens" if seen else "changed: the prompt is the template's")
sys.exit(0 if seen else 4)
PY
