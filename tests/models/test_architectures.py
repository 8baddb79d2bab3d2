"""Every architecture, every kind of measurement: equal to plain transformers, PEFT and hooks, or refused by name.

A few architectures and cells run in `make test`, all of them in `make test-all`, which also writes
docs/architectures.md.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.errors import EmEvalsError
from tests.architectures import CATALOGUE, artefacts, cells, table
from tests.architectures.lab import Lab

REQUIRED = {
    *("qwen3", "qwen3-moe", "qwen3-next", "qwen3-5-text", "qwen3-5-moe-text", "qwen3-5", "qwen3-5-moe"),
    *("gemma3-text", "gemma3", "gemma4-text", "gemma4-e2b", "gemma4-moe", "gemma4", "gemma4-unified"),
    *(
        "gpt-oss",
        "llama4-text",
        "llama4",
        "mistral",
        "mistral-window",
        "ministral",
        "mistral3",
        "phi",
        "phi3",
    ),
    *("phi3-window", "phi3-longrope", "phi4-mini", "granite4", "granite4-dense", "falcon-h1", "nemotron-h"),
    *("lfm2", "lfm2-moe", "glm4", "glm4-moe", "deepseek-v3", "mixtral", "mixtral-window", "longcat-flash"),
    *("llama", "llama-llama3-rope", "llama-yarn", "qwen2", "qwen2-window", "gemma", "gemma2", "granite"),
}
"""No refusal is an answer for these, in the cells below."""

NEVER_REFUSED = ("draws", "scoring", "adapters", "interventions", "extraction", "training")

FAST: dict[str, tuple[str, ...]] = {
    "mistral-window": ("draws", "extraction"),
    "phi4-mini": ("scoring",),
    "gemma2": ("draws",),
    "gemma4": ("draws", "interventions"),
    "gpt-oss": ("draws",),
    "llama4": ("draws",),
    "qwen3-5": ("draws", "scoring", "extraction", "adapters"),
    "qwen3-moe": ("adapters",),
    "nemotron-h": ("draws", "scoring"),
    "lfm2": ("draws",),
}
"""What `make test` runs of the table: of each kind of mask, rope, cache and block one architecture."""

IN_A_FOLDER = ("compile_add", "compile_writes", "compile_lora", "training")
"""Cells that write files of their own."""


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    """Models by name, each built once."""
    root = tmp_path_factory.mktemp("labs")
    made: dict[str, Lab] = {}

    def lab(name: str) -> Lab:
        if name not in made:
            made.clear()  # cells come architecture by architecture: one in memory is enough
            made[name] = Lab(name, root / name)
        return made[name]

    return lab


def plan():
    for name in CATALOGUE:
        for cell in table.CELLS:
            fast = cell in FAST.get(name, ())
            yield pytest.param(name, cell, id=f"{name}-{cell}", marks=[] if fast else [pytest.mark.full])


@pytest.mark.parametrize(("name", "cell"), plan())
def test_is_exact_or_refused(name, cell, labs, workdir):
    lab = labs(name)
    work = getattr(cells, cell, None) or getattr(artefacts, cell)
    more = (workdir,) if cell in IN_A_FOLDER else ()
    outcome = "wrong"
    try:
        work(lab, *more)
        outcome = "exact"
    except EmEvalsError as error:
        assert not (name in REQUIRED and cell in NEVER_REFUSED), f"refused: {error}"
        outcome = "refused"
    finally:
        table.record(name, cell, outcome)


def test_the_catalogue_is_large_enough():
    assert len(CATALOGUE) >= 60 and set(CATALOGUE) >= REQUIRED | set(FAST)
