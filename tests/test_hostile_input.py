"""Every reader of files of others gives a value or an `EmEvalsError`: never another exception, never a hang.

`make test` tries a few inputs of each kind, `make test-all` 10,000; `benchmarks/hostile_inputs.py` prints how many of them
were read as a value.
"""

import json

import pytest

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.gate import baseline, readers
from em_evals.results import calibration, lm_eval, logs
from tests.hostile_readers import NEED_TORCH, READERS, attempt
from tests.hostile_samples import good


def tried(reader, folder, monkeypatch, count):
    monkeypatch.chdir(folder)
    if reader in NEED_TORCH:
        pytest.importorskip("torch")
    if "GGUF" in reader:
        pytest.importorskip("gguf")
    if "parquet" in reader:
        pytest.importorskip("pyarrow")
    attempt(reader, folder, count)


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_a_value_or_one_sentence(reader, tmp_path, monkeypatch):
    tried(reader, tmp_path, monkeypatch, 12)


@pytest.mark.full
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_inputs_of_a_reader(reader, tmp_path, monkeypatch):
    tried(reader, tmp_path, monkeypatch, 10_000)


def test_groups_of_lm_eval_that_list_each_other_twice_cost_nothing(tmp_path):
    data = json.loads(good("lm-eval results")[0])
    data["group_subtasks"] = {f"g{i}": [f"g{i + 1}"] * 2 for i in range(60)} | {"g60": ["t", "g0"]}
    data["results"]["g0"] = {"acc,none": 0.5}
    path = tmp_path / "results_a.json"
    path.write_text(json.dumps(data))
    assert lm_eval.read_file(path).groups == [("g0", ["t"])]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("metric_list", 5),
        ("metric_list", "acc"),
        ("metric_list", ["acc"]),
        ("group_subtasks", "t"),
        ("group_subtasks", {"g": [{}]}),
    ],
)
def test_parts_of_lm_evals_results_that_are_something_else_are_refused(part, value, tmp_path):
    data = json.loads(good("lm-eval results")[0])
    (data if part == "group_subtasks" else data["configs"]["t"])[part] = value
    path = tmp_path / "results_a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match=part):
        lm_eval.read_file(path)


@pytest.mark.parametrize("change", [-3, 2.7, True, "3", 10**30, None])
def test_counts_of_a_calibration_that_are_no_counts_are_refused(change, tmp_path):
    data = json.loads(good("calibrations")[0])
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    assert calibration.read(path).arms["all"].total == 16
    data["arms"]["all"]["true_positives"] = change
    path.write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match="this is no calibration"):
        calibration.read(path)


def test_a_log_without_plain_draws_is_no_evidence_about_cues(tmp_path):
    data = json.loads(good("conditional")[0])
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    assert readers.of_log(path).kind == "conditional"
    for sample in data["samples"]:
        sample["metadata"]["cue"] = "medical"
    path.write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match="no draw of 'plain' counts for"):
        readers.of_log(path)


def test_a_baseline_with_half_a_character_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.json"
    path.write_text(good("baselines")[0])
    evidence = [
        one.model_copy(update={"model": "\ud800"}) for one in baseline.read(path, files.read_json(path))
    ]
    kept = baseline.write("mine", evidence)
    assert {one.model for one in baseline.read(kept, files.read_json(kept))} == {"\ud800"}


def test_a_json_file_that_holds_no_object_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(EmEvalsError, match="expected one JSON object"):
        files.read_object(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rubrics", [1]),
        ("kinds", {"other": 3}),
        ("grades", "x"),
        ("grades", {"other": [1]}),
        ("scales", {"other": [0]}),
        ("misaligned_below", "low"),
        ("misaligned_below", None),
        ("coherent_above", float("nan")),
    ],
)
def test_a_log_whose_scores_note_something_else_is_refused(name, value, tmp_path):
    data = json.loads(good("logs")[2])
    data["samples"][0]["scores"]["judge"]["metadata"][name] = value
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match=f"has a `{name}` that is not"):
        logs.read_log(path)


@pytest.mark.parametrize("what", ["recipe", "narrow", "store"])
def test_a_log_of_pairs_with_other_values_is_refused_or_read(what, tmp_path):
    data = json.loads(good("logs")[0])
    sample = data["samples"][0]
    if what == "recipe":
        sample["output"]["metadata"]["recipe"] = ["a"]
    elif what == "narrow":
        del sample["metadata"]["narrow"]
    else:
        sample["store"]["aligned"] = [{}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    if what == "recipe":
        assert readers.of_log(path).model
        return
    with pytest.raises(EmEvalsError, match=r"does not say|has no log-probabilities"):
        readers.of_log(path)
