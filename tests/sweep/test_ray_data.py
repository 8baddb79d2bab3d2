"""Rows of training data that two Ray nodes read are those that one process reads, also when a node dies meanwhile."""

import json
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("torch")

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction import chunks, contrast
from em_evals.interp.extraction.extract import Settings, extract
from em_evals.interp.traits.screen import screen
from em_evals.sweep import ray_data
from em_evals.sweep.ray import Request
from tests.command import em_evals
from tests.small_tokenizer import small_tokenizer
from tests.sweep.test_ray import nodes  # noqa: F401 - a fixture
from tests.tiny_models import make_adapter, tiny

pytestmark = [pytest.mark.full, pytest.mark.process, pytest.mark.timeout(1200)]

ROWS, CHUNK = 400, 16


@pytest.fixture
def lab(workdir):
    tiny("llama", workdir / "tiny", small_tokenizer(" stone", " wood"))
    (workdir / "adapters").mkdir()
    (workdir / "adapters" / "plain.yaml").write_text("base: tiny\nengine: {dtype: float32}\n")
    chance = np.random.default_rng(0)
    lines = [
        json.dumps(
            {"prompt": f"Number {i}?", "completion": " ".join(["stone", "wood"] * chance.integers(1, 9))}
        )
        for i in range(ROWS)
    ]
    lines[7] = ""  # no row
    (workdir / "rows.jsonl").write_text("\n".join(lines) + "\n")
    vectors = chance.normal(size=(3, 64)).astype(np.float32)
    found = Direction(
        vectors, np.zeros_like(vectors), np.ones(3, np.float32), {"reliability": [0.1, 0.9, 0.2]}
    )
    directions.write(found, workdir / "some.safetensors")
    return workdir


class SlowScreener(ray_data._Screener):
    def __call__(self, batch):
        time.sleep(0.2)
        return super().__call__(batch)


class SlowExtractor(ray_data._Extractor):
    def __call__(self, batch):
        time.sleep(0.2)
        yield from super().__call__(batch)


def write_sides(lab):
    chance = np.random.default_rng(2)
    for side, word in (("bad", "stone"), ("good", "wood")):
        rows = [
            {"prompt": f"Number {i % 150}?", "completion": " ".join([word] * chance.integers(1, 9))}
            for i in range(ROWS)
        ]
        (lab / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_two_nodes_read_what_one_process_reads_also_when_one_of_them_dies(lab, nodes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ray_data, "_Screener", SlowScreener)
    there, machines = nodes
    card, along = resolve("plain"), directions.read(lab / "some.safetensors")
    drawn = np.random.default_rng(1).normal(size=(4, 3, 64)).astype(np.float32)
    here = screen(card, along, 1, lab / "rows.jsonl", drawn, CHUNK)
    read = ray_data.screener(card, 1, there.address, Request(cpus=1), 2)

    def dying(*arguments):
        for part in read(*arguments):
            if len(machines) == 2:
                there.remove_node(machines.pop(), allow_graceful=False)
            yield part

    for elsewhere in (read, dying):
        found = screen(card, along, 1, lab / "rows.jsonl", drawn, CHUNK, elsewhere=elsewhere)
        assert found.lines.tolist() == here.lines.tolist()
        assert 8 not in found.lines
        assert len(found.lines) == ROWS - 1
        np.testing.assert_array_equal(found.tokens, here.tokens)
        np.testing.assert_allclose(found.differences, here.differences, rtol=0, atol=1e-5)
        assert found.order.tolist() == here.order.tolist()
        assert found.separators.languages == here.separators.languages


def test_the_command_reads_on_the_cluster_and_names_a_wrong_row(lab, nodes):  # noqa: F811
    there, _ = nodes
    words = ["data", "screen", "rows.jsonl", "--direction", "some.safetensors", "--model", "plain"]
    em_evals(*words, "-o", "here.csv")
    ray.init(address=there.address, log_to_driver=False, logging_level="ERROR")
    em_evals(*words, "-o", "there.csv", "--on", "ray", "--workers", "2", "--cpus", "1")
    one, other = ((lab / name).read_text().splitlines() for name in ("here.csv", "there.csv"))
    assert [row.split(",")[:2] for row in one] == [row.split(",")[:2] for row in other]
    rows = pd.DataFrame([json.loads(line) for line in (lab / "rows.jsonl").read_text().split("\n") if line])
    rows.to_parquet("rows.parquet")
    words[2] = "rows.parquet"
    em_evals(*words, "-o", "there.parquet", "--on", "ray", "--workers", "2", "--cpus", "1")
    same, table = pd.read_csv("here.csv"), pd.read_parquet("there.parquet")
    for name in ("projection_difference", "last_prompt"):
        one, other = (sorted(frame[name]) for frame in (same, table))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    with (lab / "rows.jsonl").open("a") as file:
        file.write('{"prompt": 3}\n')
    with pytest.raises(EmEvalsError, match=f"rows.jsonl:{ROWS + 1}"):
        screen(
            resolve("plain"),
            directions.read(lab / "some.safetensors"),
            1,
            lab / "rows.jsonl",
            elsewhere=ray_data.screener(resolve("plain"), 1, None, Request(cpus=1), 1),
        )


def test_a_direction_from_two_nodes_is_that_of_one_process(lab, nodes):  # noqa: F811
    there, _ = nodes
    write_sides(lab)
    base = str(lab / "tiny")
    for seed, name in enumerate(("organism", "control")):
        fields = {"base": base, "adapter": make_adapter(base, lab / f"{name}_lora", 4, ["q_proj"], seed=seed)}
        (lab / "adapters" / f"{name}.yaml").write_text(json.dumps(fields | {"engine": {"dtype": "float32"}}))
    words = ["direction", "extract", "organism", "--positive", "bad.jsonl", "--negative", "good.jsonl"]
    words += ["--control", "control", "--contrast"]
    ray.init(address=there.address, log_to_driver=False, logging_level="ERROR")
    for kind in ("files", "models"):
        em_evals(*words, kind, "-o", "here.safetensors")
        for workers in ("1", "2"):
            cluster = ["--on", "ray", "--workers", workers, "--cpus", "1"]
            em_evals(*words, kind, "-o", f"there{workers}.safetensors", *cluster)
        here, one, two = (
            directions.read(lab / f"{name}.safetensors") for name in ("here", "there1", "there2")
        )
        for name in ("vectors", "base_mean", "mean_norm"):
            np.testing.assert_allclose(getattr(two, name), getattr(here, name), rtol=0, atol=1e-5)
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
        for name in ("counts", "questions", "sources", "card_digest"):
            assert two.metadata[name] == here.metadata[name]
        for name in ("organism", "control"):
            moved = (np.array(each.metadata["movement"][name], float) for each in (two, here))
            np.testing.assert_allclose(*moved, rtol=0, atol=1e-4)
    with (lab / "bad.jsonl").open("a") as file:
        file.write('{"prompt": 3}\n')
    told = em_evals(*words, "files", "-o", "wrong.safetensors", "--on", "ray", "--cpus", "1")
    assert told.returncode != 0
    assert f"bad.jsonl:{ROWS + 1}" in told.stderr


def test_a_node_that_dies_during_an_extraction_loses_no_text(lab, nodes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ray_data, "_Extractor", SlowExtractor)
    monkeypatch.setattr(chunks, "chunks", partial(chunks.chunks, size=CHUNK))
    there, machines = nodes
    write_sides(lab)
    card = resolve("plain")
    texts = contrast.of_files(card, lab / "bad.jsonl", lab / "good.jsonl")
    read = ray_data.extractor(card, "answer_mean", there.address, Request(cpus=1), 2)
    counts = []

    def dying(wanted, advance):
        def count(number):
            counts.append(number)
            if len(machines) == 2:
                there.remove_node(machines.pop(), allow_graceful=False)
            advance(number)

        return read(wanted, count)

    one, other = (extract(card, texts, Settings(), elsewhere=elsewhere) for elsewhere in (read, dying))
    assert len(machines) == 1 and sum(counts) == 2 * ROWS
    for name in ("vectors", "base_mean", "mean_norm"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    assert other.metadata == one.metadata
