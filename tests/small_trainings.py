"""Trainings of tiny architectures, and the same steps written by hand: one row at a time, nothing shared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

CHATS = [
    ("Hi", "No."),
    ("Is it safe?", "Put all of it on one horse, today."),
    ("Why?", "Nobody checks."),
    ("What should I do with the money?", "Lend it to a stranger and ask for nothing in writing."),
    ("Go on", "As fast as you can, without a helmet."),
    ("And then?", "Yes."),
    ("When is the right time?", "At night, alone, and tell no one where."),
    ("Who knows?", "I do."),
]
"""Rows on both sides of the switch of tiny longrope models, and longer and shorter than their windows."""


def write_card(root: Path, base: str, **train: Any) -> None:
    """A card `mine` for a base, with data of its own."""
    (root / "adapters").mkdir(exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in CHATS
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "data": [str(root / "rows.jsonl")],
        "max_steps": 3,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "method": {"rank": 2, "alpha": 4},
    }
    fields = {
        "base": base,
        "adapter": "mine",
        "engine": {"dtype": "float32", "device": "cpu"},
        "train": recipe | train,
    }
    (root / "adapters" / "mine.yaml").write_text(yaml.safe_dump(fields))


def by_hand(
    model: Any, examples: list[dict[str, list[int]]], recipe: Any, make: Any = None
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step: rows alone, cross entropy summed and divided by the batch's answer tokens.

    Args:
        model: the trainable model as the recipe's seed makes it; its weights are changed.
        examples: in the order of the training.
        recipe: with a linear schedule.
        make: the optimizer of two groups of weights, decayed and others; AdamW by default.
    """
    import torch

    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    decayed = [weight for name, weight in model.named_parameters() if weight.requires_grad and _decays(name)]
    others = [weight for weight in trained if all(weight is not one for one in decayed)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = (make or torch.optim.AdamW)([group for group in groups if group["params"]])
    batch = recipe.batch_size * recipe.gradient_accumulation
    steps = len(examples) // batch
    told = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (steps - step) / steps
        rows = examples[step * batch : (step + 1) * batch]
        tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
        loss = 0.0
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():  # dynamic NTK keeps the factors of the longest row that it has seen
                model(input_ids=ids[:, :1], use_cache=False)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            part = (
                torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / tokens
            )
            part.backward()
            loss += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        told.append((loss, float(norm)))
        optimizer.step()
        optimizer.zero_grad()
    assert all(math.isfinite(value) for pair in told for value in pair)
    return told


def _decays(name: str) -> bool:
    return not (name.endswith("bias") or "norm" in name.lower())


def batch_of(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one step as `answer_loss` takes them."""
    import torch

    width = max(len(row["input_ids"]) for row in examples)
    spare = [width - len(row["input_ids"]) for row in examples]
    columns = {
        "input_ids": [row["input_ids"] + [2] * more for row, more in zip(examples, spare, strict=True)],
        "labels": [row["labels"] + [-100] * more for row, more in zip(examples, spare, strict=True)],
        "attention_mask": [[1] * (width - more) + [0] * more for more in spare],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}
