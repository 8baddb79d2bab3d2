"""Tiny random models of the architectures that transformers builds, for tests of exactness.

`build(name, folder)` saves one with its tokenizer in milliseconds and without network; `CATALOGUE` names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.architectures.composites import COMPOSITES
from tests.architectures.dense import DENSE
from tests.architectures.hybrids import HYBRIDS
from tests.architectures.moe import MOE
from tests.architectures.reference import greedy, load, logits, reference
from tests.architectures.sizes import Factory
from tests.architectures.tokenizer import END, PAD, VOCABULARY, tokenizer
from tests.architectures.weights import randomise

__all__ = ["CATALOGUE", "VOCABULARY", "build", "greedy", "load", "logits", "reference", "tokenizer"]

CATALOGUE: dict[str, Factory] = DENSE | MOE | HYBRIDS | COMPOSITES


def build(name: str, folder: Path | str, seed: int = 0) -> str:
    """Save the model `name` with its tokenizer to `folder` and return the folder."""
    made = random_model(name, seed)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def random_model(name: str, seed: int = 0) -> Any:
    """Return the model `name` in float32 with fixed random weights: composites whole, with their vision tower."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = CATALOGUE[name]()
    torch.manual_seed(seed)
    whole = hasattr(config, "text_config") or type(config) not in AutoModelForCausalLM._model_mapping
    kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return model.eval()
