"""The guide's picture of traits: docs/pictures.py draws a record of `em-evals trait map`."""

import importlib.util
import re
from pathlib import Path

from em_evals.interp.traits.map import trait_map
from em_evals.results import records
from tests.interp.test_trait_separation import concepts

FOLDER = Path(__file__).parents[2] / "docs"


def labels(path):
    return re.findall(r">([a-z_]+[0-9]?)</text>", path.read_text(encoding="utf-8"))


def test_a_map_s_record_becomes_the_picture(tmp_path):
    found = trait_map(concepts(0.3, 0.5), 0, narrow=["advice0", "advice1"])
    records.write(found, tmp_path / "traits.json")
    spec = importlib.util.spec_from_file_location("pictures", FOLDER / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.traits(tmp_path / "traits.json", tmp_path / "traits.svg")
    assert set(found.names) <= set(labels(tmp_path / "traits.svg"))
    committed = FOLDER / "pictures" / "traits.json"
    if committed.exists():  # a run takes minutes; its record is drawn again as it stands in the guide
        pictures.traits(committed, tmp_path / "again.svg")
        assert labels(tmp_path / "again.svg") == labels(FOLDER / "pictures" / "traits.svg")
