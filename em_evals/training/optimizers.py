"""From a recipe's `optimizer` to the Trainer's: names of transformers, or a class of torch with its options."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError, install

_NAMES = {
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""transformers' names. AdamW is its default, whichever implementation of torch that is."""


def check(recipe: AdapterRecipe, device: torch.device) -> None:
    """Refuse an optimizer that cannot run here, before weights load.

    Raises:
        EmEvalsError: names the package or device that it needs.
    """
    name = recipe.optimizer
    if "8bit" in name or "paged" in name:
        if find_spec("bitsandbytes") is None:
            raise EmEvalsError(f"`optimizer: {name}` needs the package 'bitsandbytes': {install('quant')}.")
        if "paged" in name and device.type != "cuda":
            raise EmEvalsError(
                f"`optimizer: {name}` pages its states between GPU and CPU, and this trains on {device.type}: say "
                f"`{name.removeprefix('paged_')}`."
            )
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise EmEvalsError(f"`optimizer: muon` needs torch 2.9 or later, and this is {torch.__version__}.")


def arguments(recipe: AdapterRecipe) -> dict[str, Any]:
    """Return the fields of TrainingArguments."""
    return {"optim": _NAMES[recipe.optimizer]} if recipe.optimizer in _NAMES else {}


def factory(recipe: AdapterRecipe) -> tuple[type, dict[str, Any]] | None:
    """Return a class and its options that transformers has no name for; None for the others."""
    if recipe.optimizer != "muon":
        return None
    # The update's root mean square is that of AdamW's, so that its learning rates carry over (arXiv 2502.16982).
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    return torch.optim.Muon, options | {"adjust_lr_fn": "match_rms_adamw"}
