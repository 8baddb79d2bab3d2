"""A tiny base, an organism and its control, and a plan that trains and measures both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from em_evals.sweep import table
from tests.few_pairs import few_pairs
from tests.small_tokenizer import small_tokenizer
from tests.small_trainings import CHATS

TRAINED = """
name: small
models:
  - matrix: {card: [organism, sound], train.seed: SEEDS}
  - card: plain
controls: {organism: sound}
measures:
  - task: em_evals/forced_choice
  - name: direction
    run: em-evals direction extract {model} --per-theme 2 --minimum 2 --control {control} -o {out}/one.safetensors
  - run: em-evals gate --policy loose.yaml --baseline {logs.control} --candidate {logs.model} -o {out}/gate.json
"""


@pytest.fixture
def trained_lab(workdir: Path) -> Path:
    """A tiny base, few pairs and a loose policy: what TRAINED needs."""
    from tests.tiny_models import tiny

    base = tiny("llama", workdir / "tiny", small_tokenizer(" good", " bad"))
    few_pairs(workdir, each=2, themes={"finance", "daily"})
    (workdir / "loose.yaml").write_text("version: 1\nminimum_items: 2\n")
    return write_lab(workdir, base)


def values(made: Any, folder: Path) -> Any:
    """A sweep's table without the times."""
    frame = table.table(list(made.steps), folder)
    return frame[~frame.metric.str.contains("seconds")].reset_index(drop=True)


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
