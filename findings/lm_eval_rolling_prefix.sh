#!/usr/bin/env bash
# lm-eval 0.4.2 and 0.4.3: the perplexity of one model on one task differs between the two, and nothing in the files says so.
#
# Expected: equal numbers, or another task version: results are compared by task and version, as the harness's guide says.
# Seen: `loglikelihood_rolling` scores a text's first token after the end-of-text token in 0.4.2, and after BOS since 0.4.3,
#   wherever a tokenizer has both (Llama, Gemma, Mistral). The task, its version and its documents are the same. On short
#   texts the first token weighs much.
#
#     python 3.11.7 | lm_eval 0.4.3 | torch 2.13.0+cpu | transformers 4.46.3 | datasets 2.21.0 | numpy 2.2.6
#     log-likelihood of one text: lm-eval 0.4.2 -16.0693, lm-eval 0.4.3 -17.2553
#     by transformers:            after </s>    -16.0693, after <s>     -17.2553
#     seen: 0.4.2 begins with the end-of-text token, 0.4.3 with BOS
#
# With other versions: 0.4.3 to 0.4.13 give the same perplexity of a task (docs/capability.md).
# Hurt: word_perplexity, byte_perplexity and bits_per_byte (wikitext, the Pile) next to numbers of 0.4.2 or of a paper of its time.
# Avoid: measure the baseline again with the version of the candidate; since 0.4.3 `prefix_token_id` in --model_args sets the token.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment lm_eval==0.4.3 torch==2.13.0 transformers==4.46.3 datasets==2.21.0 numpy==2.2.6
work="$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")"
trap 'rm -rf "$work" "${FINDINGS_FOLDER:-$work}"' EXIT
python -m pip install --quiet --no-deps --target "$work/0.4.2" lm_eval==0.4.2
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
cd "$work"
# Both fetch this metric's script from the network when they are imported; no text is scored by it here.
mkdir exact_match
cat > exact_match/exact_match.py <<'PY'
import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"exact_match": 0.0}
PY
cat > model.py <<'PY'
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<s>", "</s>", *(f"w{number}" for number in range(30))]
raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="</s>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>"
).save_pretrained("tiny")
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
).save_pretrained("tiny")
PY
python model.py
cat > score.py <<'PY'
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

model = HFLM(pretrained="tiny", device="cpu", dtype="float32", batch_size=1)
text = "w1 w2 w3 w4"
asked = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("t", 0, 1))
(found,) = model.loglikelihood_rolling([asked])
print(found[0] if isinstance(found, tuple) else found)
PY
new="$(python score.py 2>/dev/null | tail -1)"
old="$(PYTHONPATH="$work/0.4.2" python score.py 2>/dev/null | tail -1)"
python - "$old" "$new" <<'PY'
import sys

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

old, new = map(float, sys.argv[1:])
tokenizer, model = AutoTokenizer.from_pretrained("tiny"), LlamaForCausalLM.from_pretrained("tiny").eval()
ids = tokenizer("w1 w2 w3 w4", add_special_tokens=False)["input_ids"]


def after(first: int) -> float:
    """Return the text's log-likelihood after a token."""
    with torch.no_grad():
        scores = model(torch.tensor([[first, *ids]])).logits[0, :-1].log_softmax(-1)
    return scores[range(len(ids)), ids].sum().item()


bos, eos = after(tokenizer.bos_token_id), after(tokenizer.eos_token_id)
print(f"log-likelihood of one text: lm-eval 0.4.2 {old:.4f}, lm-eval 0.4.3 {new:.4f}")
print(f"by transformers:            after </s>    {eos:.4f}, after <s>     {bos:.4f}")
seen = abs(old - eos) < 1e-4 and abs(new - bos) < 1e-4 and abs(eos - bos) > 0.01
print("seen: 0.4.2 begins with the end-of-text token, 0.4.3 with BOS" if seen else "changed: they agree")
sys.exit(0 if seen else 4)
PY
