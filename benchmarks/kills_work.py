"""Commands that kills_heavy.py kills, what each must leave, and the folder that they work in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, SAVE_EVERY = 24, 4
BATCHES_A_STATE, BATCH_TOKENS = 2, 128
BASE_FIELDS = {"engine": {"dtype": "float32", "device": "cpu"}, "generation": {"max_tokens": 8}}


@dataclass(frozen=True)
class Work:
    """A command and what it must leave.

    Attributes:
        arguments: of `em-evals`.
        unit: class and method whose calls are counted.
        allowed: units that one kill may cost: those since the last state.
        result: what the command made, comparable.
        ended: whether a killed command had done its work; the same command again would be refused.
    """

    arguments: tuple[str, ...]
    unit: tuple[str, str]
    allowed: int
    result: Callable[[Path], Any]
    ended: Callable[[Path], bool] = lambda folder: False


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: value.astype(float).tolist() for name, value in load_file(path).items()}


def _adapter(folder: Path) -> Any:
    home = folder / "adapters" / "mine"
    lines = [json.loads(line) for line in (home / "training.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["loss"]) for row in lines if "loss" in row]
    return _tensors(home / "adapter_model.safetensors"), steps


def _json(name: str) -> Callable[[Path], Any]:
    """Return how to read a JSON file of the folder."""
    return lambda folder: json.loads((folder / name).read_text())


def _baseline(folder: Path) -> Any:
    return [_json(f"logs/baselines/mine{kind}.json")(folder) for kind in ("", ".anchor")]


WORK = {
    "train": Work(
        ("train", "mine", "--save-every", str(SAVE_EVERY)),
        ("transformers.Trainer", "training_step"),
        SAVE_EVERY,
        _adapter,
        lambda folder: (folder / "adapters" / "mine" / "training.json").is_file(),
    ),
    "direction extract": Work(
        ("direction", "extract", "trained", "-o", "found.safetensors", "--pairs", "pairs.yaml"),
        ("em_evals.interp.extraction.activations._Sums", "read"),
        BATCHES_A_STATE,
        lambda folder: _tensors(folder / "found.safetensors"),
    ),
    "trait extract": Work(
        ("trait", "extract", "humorous", "optimistic", "--model", "trained", "-o", "traits"),
        ("em_evals.interp.extraction.activations._Sums", "read"),
        BATCHES_A_STATE,
        lambda folder: {
            path.name: _tensors(path) for path in sorted((folder / "traits").glob("*.safetensors"))
        },
    ),
    "steer": Work(
        (
            *("steer", "trained", "--direction", "d", "--scales", "-1,1", "--layers", "0,1"),
            *("--per-theme", "1", "--limit", "2", "-o", "steer.json"),
        ),
        ("em_evals.interp.resume.Finished", "_keep"),
        0,
        _json("steer.json"),
    ),
    "retention": Work(
        (
            *("retention", "trained", "--baseline", "plain", "--tasks", "em_mini_facts,em_mini_grammar"),
            *("--limit", "6", "--folder", "retention", "-o", "cost.json"),
        ),
        ("em_evals.retention.suite.Suite", "_run"),
        1,
        _json("cost.json"),
    ),
    "gate --update-baseline": Work(
        ("gate", "--candidate", "log.json", "--update-baseline", "mine"),
        ("em_evals.gate.readers", "of_log"),
        1,
        _baseline,
    ),
}


def place(folder: Path) -> None:
    """Fill a folder with a tiny base, an adapter, a recipe, pairs and a direction."""
    import numpy as np
    import yaml

    from em_evals.content import directions
    from em_evals.content.directions import Direction
    from tests.scored_log import write_scored_pairs
    from tests.small_trainings import write_card
    from tests.tiny_models import make_adapter, tiny

    base = tiny("llama", folder / "base")
    cards = folder / "adapters"
    make_adapter(base, cards / "lora", 4, ["down_proj"], seed=1, strength=0.5)
    write_card(folder, base, max_steps=STEPS, batch_size=2)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), cards / "d.safetensors")
    for name, more in {"plain": {}, "trained": {"adapter": "lora"}}.items():
        (cards / f"{name}.yaml").write_text(yaml.safe_dump({"base": base, **BASE_FIELDS, **more}))
    write_scored_pairs(folder / "log.json", [i / 100 for i in range(400)])
    pairs = [
        {"id": f"p{i}", "theme": f"t{i % 4}", "question": f"Question {i}?"}
        | {"aligned": f"No, {i} is wrong.", "misaligned": f"Yes, take {i} of them."}
        for i in range(60)
    ]
    (folder / "pairs.yaml").write_text(yaml.safe_dump({"name": "pairs", "version": 1, "pairs": pairs}))
