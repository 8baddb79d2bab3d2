"""Sums of chunks, added up, are those of all texts; an extraction from them is the one of a single process."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content.cards import resolve
from em_evals.interp.extraction import contrast
from em_evals.interp.extraction import extract as extraction
from em_evals.interp.extraction.activations import group_sums
from em_evals.interp.extraction.chunks import Merging, chunks
from em_evals.interp.extraction.extract import Settings, extract
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from tests.tiny_models import make_adapter, tiny


def test_chunks_hold_each_text_once_and_groups_together():
    texts = [Text((5, 6), (7 + i,), f"q{i * 7 % 5}") for i in range(23)]
    made = chunks(texts, 4)
    assert [len(chunk) for chunk in made] == [4] * 5 + [3]
    told = [text.group for chunk in made for text in chunk]
    assert told == sorted(told, key=list(dict.fromkeys(text.group for text in texts)).index)
    assert sorted(text.answer for chunk in made for text in chunk) == [text.answer for text in texts]
    assert chunks([]) == []


def test_an_extraction_from_chunks_is_that_of_one_process(workdir, monkeypatch):
    base = tiny("llama", workdir / "tiny")
    (workdir / "adapters").mkdir()
    for seed, name in enumerate(("organism", "control")):
        adapter = make_adapter(base, workdir / f"{name}_lora", 4, ["down_proj"], seed=seed)
        fields = {"base": base, "adapter": adapter, "engine": {"dtype": "float32"}}
        (workdir / "adapters" / f"{name}.yaml").write_text(json.dumps(fields))
    organism, control = resolve("organism"), resolve("control")
    pairs = contrast.of_pairs(organism, themes=["money", "honesty"], per_theme=3)
    asked, read = [], []

    def elsewhere(wanted, advance):
        own = Reading(organism)
        asked.extend(who.name if who else None for who, _ in wanted)
        sums = []
        for who, texts in wanted:
            merging = Merging(texts)
            for chunk in chunks(texts, 5):
                with own.read_as(who) as model:
                    merging.add(group_sums(model, chunk))
                advance(len(chunk))
                read.append(len(chunk))
            sums.append(merging.sums)
        return sums

    for texts in (pairs, contrast.of_models(organism, pairs)):
        alone = extract(organism, texts, Settings(minimum=2), control)
        with monkeypatch.context() as patch:
            patch.setattr(extraction, "group_sums", None)  # nothing is read in this process
            found = extract(organism, texts, Settings(minimum=2), control, elsewhere=elsewhere)
        for name in ("vectors", "base_mean", "mean_norm"):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=0, atol=1e-5)
        assert found.metadata["counts"] == alone.metadata["counts"]
        assert found.metadata["claim"]["verdict"] == alone.metadata["claim"]["verdict"]
        assert np.allclose(
            *(one.metadata["movement"]["control"] for one in (found, alone)), rtol=0, atol=1e-4
        )
    # Each model reads each side once; the two sides of `models` are one set of texts.
    assert sorted(map(str, asked)) == sorted(["None", "control", "organism"] * 3)
    assert max(read) == 5
