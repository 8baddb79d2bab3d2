"""What a card alone decides is refused before torch is imported, which takes seconds and half a gigabyte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CALLS = """
import sys
from em_evals.cli import main

lines = sys.argv[1].splitlines()
for line in lines:
    try:
        sys.argv = ["em-evals", *line.split()]
        main()
    except SystemExit as end:
        heavy = sorted({"torch", "transformers", "trl", "inspect_ai", "lm_eval"} & set(sys.modules))
        print(line.split()[0], end.code, *heavy, flush=True)
"""

COMMANDS = """train smollm2
train smollm2 --plan
train none
quick none
compile none -o folder
direction extract none -o d.safetensors
data screen rows.jsonl --model none --direction d
trait monitor log.eval --direction d --model none
trait shift none --direction d
insight lens none
insight diff none
insight forecast rows.jsonl --questions core --base none
insight lora-scalars none
steer none --direction d
retention none
conditional none
serve none
trait draft curious --model local/none
insight same none none
verify none"""

FILES = """trait draft curious --model none
data screen none --direction callous --model smollm2
trait monitor none --direction callous --model smollm2
data screen rows.jsonl --direction none --model smollm2
insight scaling none
insight same none.csv none.csv
sweep none
rates none
trait bases none --rates none"""


@pytest.mark.process
def test_a_card_that_is_wrong_is_refused_before_heavy_imports(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLS, COMMANDS], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.stdout.splitlines() == [f"{line.split()[0]} 2" for line in COMMANDS.splitlines()], done.stderr
    assert "the card smollm2 has no `train:` section" in done.stderr
    said = [line for line in done.stderr.splitlines() if "'none'" in line]
    assert len(said) == len(COMMANDS.splitlines()) - 2, done.stderr


@pytest.mark.process
def test_a_file_that_is_not_there_is_refused_before_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "callous.safetensors").touch()
    (tmp_path / "rows.jsonl").touch()
    done = subprocess.run(
        [sys.executable, "-c", CALLS, FILES], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.stdout.splitlines() == [f"{line.split()[0]} 2" for line in FILES.splitlines()], done.stderr
    said = [line for line in done.stderr.splitlines() if "none" in line]
    assert len(said) == len(FILES.splitlines()), done.stderr
    assert "logs do not say" not in done.stderr
