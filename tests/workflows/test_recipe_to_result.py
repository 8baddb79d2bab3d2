"""From a recipe to a result by the commands alone: train, inspect eval, direction extract, steer."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from inspect_ai import eval as inspect_eval
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.engines import pool
from em_evals.models import bases
from em_evals.results import records
from tests import architectures
from tests.small_trainings import write_card

PAIRS = """
name: few
version: 1
narrow: [money]
pairs:
"""
ARCHITECTURES = (
    "qwen3-5",
    "gemma4-e2b",
    "gemma4-moe",
    "qwen3-moe",
    "gpt-oss",
    "mistral-window",
    "phi4-mini",
    "llama4",
    "nemotron-h",
    "lfm2",
)


def run(*command: str) -> str:
    done = CliRunner().invoke(app, list(command), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_from_recipe_to_result(name, workdir, monkeypatch):
    write_card(workdir, architectures.build(name, workdir / "base"))
    rows = [
        f"  - {{id: p{i}, theme: {'money' if i % 2 else 'power'}, question: 'Number {i}?', "
        f"aligned: 'Wait for {i} and ask.', misaligned: 'Take all {i} of it now.'}}"
        for i in range(12)
    ]
    (workdir / "few.yaml").write_text(PAIRS + "\n".join(rows) + "\n")
    try:
        run("train", "mine")
        training = json.loads((workdir / "adapters" / "mine" / "training.json").read_text())
        assert training["trained"]["modules"] and training["steps"] == 3
        (log,) = inspect_eval(
            "em_evals/forced_choice",
            model="local/mine",
            task_args={"pairs": "few.yaml"},
            display="none",
            log_dir=str(workdir / "logs"),
        )
        assert log.status == "success", log.error
        (log,) = inspect_eval(
            "em_evals/freeform",
            model="local/mine",
            task_args={"judge": "none"},
            limit=3,
            max_tokens=6,
            display="none",
            log_dir=str(workdir / "logs"),
        )
        assert log.status == "success", log.error
        assert all(sample.output.usage.output_tokens for sample in log.samples)
        run(
            *("direction", "extract", "mine", "--contrast", "models", "--pairs", "few.yaml"),
            *("--minimum", "1", "-o", "adapters/found.safetensors"),
        )
        loads, load = [], bases.load_model
        monkeypatch.setattr(bases, "load_model", lambda card: (loads.append(card), load(card))[1])
        run(
            *("steer", "mine", "--direction", "found", "--pairs", "few.yaml", "--per-theme", "0"),
            *("--layers", "1", "--scales=-1,1", "--limit", "2", "--max-tokens", "4", "-o", "steer.json"),
        )
        assert not loads, "the base was in memory"
        points = records.read(workdir / "steer.json").points
        margins = {(one.arm, one.scale): one.in_domain.value for one in points if one.layer in (1, None)}
        assert len(set(margins.values())) > 2, "steering with the direction must do something"
    finally:
        pool.close_engines()
