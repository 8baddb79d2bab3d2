#!/usr/bin/env bash
# transformers 5.19.0: `split_special_tokens` is an argument of one call and a switch of the tokenizer that all threads share.
#
# Expected: a call that encodes plain text (`split_special_tokens=True`) has no effect on calls that do not ask for it.
# Seen: the call sets `encode_special_tokens` of the Rust tokenizer, then encodes. A chat that another thread encodes between
#   the two loses its special tokens: `<|im_start|>` becomes ordinary characters, the prompt has other ids and another
#   length, and nothing is raised. The switch also stays as the last call left it for whoever uses `backend_tokenizer`.
#
#     python 3.11.7 | transformers 5.19.0 | tokenizers 0.23.3
#     threads beside it                     chats encoded   of them wrong   ids of the chat   ids of a wrong one
#     none                                          50000               0                14                    -
#     encodes text, the same way                    50000               0                14                    -
#     encodes text, split_special_tokens            50000              77                14                   43
#     the switch after one such call: True; a copy of the tokenizer for the text: 0 wrong
#     seen: another thread's argument decides
#
# How many are wrong depends on the machine; that some are does not.
# Hurt: servers and evaluations that encode in threads and keep imitated special tokens in contents as text.
# Avoid: a deep copy of the tokenizer for calls with the argument, or one lock around all of them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment transformers==5.19.0 tokenizers==0.23.3
python - <<'PY'
import copy
import sys
import threading

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATS = 50_000
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def built() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = ["why is the sky blue", "user assistant system", "how do plants grow in spring"] * 20
    made.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=MARKS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", additional_special_tokens=MARKS[1:2])


def beside(tokenizer, work):
    """Ids of the chat that were wrong while another thread works."""
    chat = "<|im_start|>user\nwhy is the sky blue<|im_end|>\n<|im_start|>assistant\n"
    right = tokenizer.encode(chat, add_special_tokens=False)
    over, wrong = threading.Event(), []

    def other():
        while not over.is_set():
            work()

    thread = threading.Thread(target=other, daemon=True)
    if work is not None:
        thread.start()
    for _ in range(CHATS):
        ids = tokenizer.encode(chat, add_special_tokens=False)
        if ids != right:
            wrong.append(ids)
    over.set()
    if work is not None:
        thread.join()
    return right, wrong


tokenizer = built()
text = "how do plants grow in spring " * 20
plain = copy.deepcopy(tokenizer)
ways = {
    "none": None,
    "encodes text, the same way": lambda: tokenizer.encode(text, add_special_tokens=False),
    "encodes text, split_special_tokens": lambda: tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True
    ),
}
print(f"{'threads beside it':36}{'chats encoded':>15}{'of them wrong':>16}{'ids of the chat':>18}{'ids of a wrong one':>21}")
counts = {}
for name, work in ways.items():
    right, wrong = beside(tokenizer, work)
    counts[name] = len(wrong)
    print(f"{name:36}{CHATS:15}{len(wrong):16}{len(right):18}{len(wrong[0]) if wrong else '-':>21}")
tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
switch = tokenizer.backend_tokenizer.encode_special_tokens
_, of_a_copy = beside(tokenizer, lambda: plain.encode(text, add_special_tokens=False, split_special_tokens=True))
print(f"the switch after one such call: {switch}; a copy of the tokenizer for the text: {len(of_a_copy)} wrong")
seen = counts["encodes text, split_special_tokens"] > 0 and switch and not of_a_copy
seen = seen and not counts["none"] and not counts["encodes text, the same way"]
print("seen: another thread's argument decides" if seen else "changed: threads do not disturb each other")
sys.exit(0 if seen else 4)
PY
