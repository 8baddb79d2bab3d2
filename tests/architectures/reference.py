"""What plain transformers says of a sequence: one row, no cache, no padding, one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Its default attention ignores attn_logit_softcapping.
EAGER = {"gemma2", "vaultgemma"}


def load(folder: str) -> Any:
    """Return the model in float32, as a user of transformers loads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    known = type(config) in AutoModelForCausalLM._model_mapping
    kind = AutoModelForCausalLM if known else AutoModelForImageTextToText
    options = {"attn_implementation": "eager"} if config.model_type in EAGER else {}
    return kind.from_pretrained(folder, dtype=torch.float32, **options).eval()


def logits(model: Any, tokens: Sequence[int]) -> Any:
    """Return the logits [len, vocabulary] of one row."""
    import torch

    with torch.no_grad():
        # Dynamic NTK keeps the factors of the longest sequence seen so far: a single token sets them back.
        model(input_ids=torch.tensor([list(tokens[:1])]), use_cache=False)
        return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()


def reference(model: Any, tokens: Sequence[int]) -> Any:
    """Return the log-probability [len - 1] of each token after the first; `model` may be a folder."""
    import torch

    model = load(model) if isinstance(model, str) else model
    log_probabilities = logits(model, tokens)[:-1].log_softmax(dim=-1)
    return log_probabilities.gather(1, torch.tensor(list(tokens[1:]))[:, None])[:, 0]


def greedy(model: Any, tokens: Sequence[int], count: int, end: int | None = None) -> list[int]:
    """Return up to `count` greedy tokens after `tokens`, each by a whole forward pass; stop after `end`."""
    model = load(model) if isinstance(model, str) else model
    row = list(tokens)
    while len(row) < len(tokens) + count:
        row.append(int(logits(model, row)[-1].argmax()))
        if row[-1] == end:
            break
    return row[len(tokens) :]
