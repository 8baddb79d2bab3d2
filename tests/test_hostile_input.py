"""Every reader of files of others gives a value or an `EmEvalsError`: never another exception, never a hang.

`make test` tries a few inputs of each kind, `make test-all` 10,000; `benchmarks/hostile_inputs.py` prints how many of them
were read as a value.
"""

import pytest

from tests.hostile_readers import NEED_TORCH, READERS, attempt


def tried(reader, folder, monkeypatch, count):
    monkeypatch.chdir(folder)
    if reader in NEED_TORCH:
        pytest.importorskip("torch")
    if "GGUF" in reader:
        pytest.importorskip("gguf")
    attempt(reader, folder, count)


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_a_value_or_one_sentence(reader, tmp_path, monkeypatch):
    tried(reader, tmp_path, monkeypatch, 12)


@pytest.mark.full
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_inputs_of_a_reader(reader, tmp_path, monkeypatch):
    tried(reader, tmp_path, monkeypatch, 10_000)
