"""The examples in docstrings say what the code returns; those of the public API are in tests/api/test_api_docs.py."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    for path in sorted((ROOT / "em_evals").rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts
        if own[1] != "api" and re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield ".".join(part for part in own if part != "__init__")


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0
