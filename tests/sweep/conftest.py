"""A tiny base, an organism and its control, and a plan that trains and measures both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.small_trainings import CHATS


@pytest.fixture
def lab(workdir: Path) -> Path:
    """Cards on a base without weights, which nothing here loads: `plain`, `organism`, and `sound`, its control."""
    (workdir / "tiny").mkdir()
    (workdir / "tiny" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return write_lab(workdir, str(workdir / "tiny"))


def write_lab(root: Path, base: str) -> Path:
    """Write the cards and their training data."""
    (root / "adapters").mkdir(exist_ok=True)
    shared = {"base": base, "engine": {"dtype": "float32", "device": "cpu"}}
    recipe = {
        "max_steps": 2,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "method": {"rank": 2, "alpha": 4},
    }
    for name, turn in (("organism", 1), ("sound", -1)):
        rows = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told[::turn]}]}
            for asked, told in CHATS
        ]
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        card = {**shared, "adapter": name, "train": {**recipe, "data": [str(data)]}}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    (root / "adapters" / "plain.yaml").write_text(yaml.safe_dump(shared), encoding="utf-8")
    return root


def plan_of(root: Path, text: str) -> Path:
    """Write a plan."""
    path = root / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path
