"""SECURITY.md: every threat names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][2:]


def test_the_table_has_rows():
    assert len(ROWS) > 20 and all(row.count("|") == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_every_threat_names_a_test_that_exists(row):
    file, name = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)`", row).groups()
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {
        one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }
