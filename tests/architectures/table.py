"""The table of docs/architectures.md: what the whole run of tests/models/test_architectures.py found, never written by hand.

The run appends a line of JSON for each cell to the file that `EM_EVALS_ARCHITECTURES` names; then
`python -m tests.architectures.table FILE` prints the page.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

VARIABLE = "EM_EVALS_ARCHITECTURES"
CELLS = (
    "draws",
    "scoring",
    "adapters",
    "interventions",
    "writes",
    "compile_add",
    "compile_writes",
    "compile_lora",
    "extraction",
    "training",
)
_TITLES = {
    "writes": "`site: writes`",
    "compile_add": "`add` compiled",
    "compile_writes": "`writes` compiled",
    "compile_lora": "… as a LoRA",
}
_PAGE = """# Architectures

Written by `make test-all` (tests/models/test_architectures.py), with transformers {transformers}, PEFT {peft} and TRL {trl}, on
{count} tiny random models in float32. *exact*: log-probabilities are those of plain transformers, PEFT or hooks, one row
at a time, within 1e-4 nats (extraction: cosines above 1 - 1e-5; training: the losses of three steps). *refused*: one
sentence says why, before anything is measured. Nothing else passes.

| columns | what was compared |
| --- | --- |
| draws, scoring | rows of different lengths with common beginnings, in batches that rows join and leave |
| adapters | two LoRAs (attention; experts, or the MLP) and the base, mixed in one batch |
| interventions | `add`, `ablate` and `clamp` after blocks, mixed in one batch, one with a LoRA |
| `site: writes`, compile | the direction ablated in every write; the compiled checkpoint or LoRA in stock transformers and PEFT |
| extraction | mean activations of texts that begin alike, by group |
| training | three steps of a LoRA on all linear layers, then scored by the engine |

"""


def record(name: str, cell: str, outcome: str) -> None:
    """Note what a cell was found to be, where the run asks for it."""
    if file := os.environ.get(VARIABLE):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([name, cell, outcome]) + "\n")


def page(lines: list[str], names: list[str]) -> str:
    """Return the page for what was recorded, architectures in the catalogue's order."""
    found = {(name, cell): outcome for name, cell, outcome in map(json.loads, lines)}
    rows = [name for name in names if any((name, cell) in found for cell in CELLS)]
    versions = {package: version(package) for package in ("transformers", "peft", "trl")}
    text = _PAGE.format(count=len(rows), **versions)
    text += "| architecture | " + " | ".join(_TITLES.get(cell, cell) for cell in CELLS) + " |\n"
    text += "| --- " * (len(CELLS) + 1) + "|\n"
    for name in rows:
        text += f"| {name} | " + " | ".join(found.get((name, cell), "not run") for cell in CELLS) + " |\n"
    return text


if __name__ == "__main__":
    from tests.architectures import CATALOGUE

    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(), list(CATALOGUE)))
