"""Layouts that lm-eval 0.4.2 to 0.4.13 write for one measurement: read as the same, and paired with each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.errors import EmEvalsError
from em_evals.gate import lm_eval as gate
from em_evals.results import lm_eval, lm_eval_samples
from em_evals.retention import scores

DATE = "2026-11-21T10-13-28.831591"
RIGHT = [True, False, True, True, False]
LAYOUTS = ("0.4.2", "0.4.2 FILE.json", "0.4.3", "0.4.7", "0.4.9 FILE.json", "0.4.12")
"""The first version that writes each layout."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def rows(layout: str, right: list[bool]) -> list[dict[str, Any]]:
    """One row an item of `arc`; hashes since 0.4.3, filter and metrics since 0.4.7."""
    found = []
    for i, value in enumerate(right):
        doc = {"question": f"Où est {i}?", "answer": i % 2}
        row: dict[str, Any] = {
            "doc_id": i,
            "doc": doc,
            "target": i % 2,
            "arguments": [[f"Q: {i}", " a"], [f"Q: {i}", " b"]],
            "resps": [[[-1.5, False]], [[-2.5, False]]],
            "filtered_resps": [[-1.5, False], [-2.5, False]],
        }
        if not layout.startswith("0.4.2"):
            row["doc_hash"] = sha(json.dumps(doc, indent=2, ensure_ascii=False))
            row |= {"prompt_hash": sha(f"Q: {i}"), "target_hash": sha(str(i % 2))}
        if layout not in ("0.4.2", "0.4.3"):
            row |= {"target": str(i % 2), "filter": "none", "metrics": ["acc"]}
        found.append(row | {"acc": float(value)})
    return found


def write(folder: Path, layout: str, right: list[bool], model: str = "org/base", settings: str = "") -> Path:
    """Write one model's results and samples; return the results file."""
    version, _, named = layout.partition(" ")
    mean = sum(right) / len(right)
    first, lists = version == "0.4.2", version == "0.4.12"
    samples = rows(version, right)
    pairs = dict(pair.split("=") for pair in settings.split(",") if pair)
    data: dict[str, Any] = {
        "results": {"arc": {"alias": "arc", "acc,none": mean, "acc_stderr,none": 0.2449489742783178}},
        "group_subtasks": {"arc": []},
        "configs": {"arc": {"metric_list": [{"metric": "acc", "aggregation": "mean"}]}},
        "versions": {"arc": 1.0},
        "n-shot": {"arc": 0},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model} if lists else f"pretrained={model}",
            "limit": 5.0,
            "gen_kwargs": {key: float(value) for key, value in pairs.items()} if lists else settings or None,
        },
    }
    if not first:
        hashes = (row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in samples)
        data["n-samples"] = {"arc": {"original": 9, "effective": len(right)}}
        data |= {"task_hashes": {"arc": sha("".join(hashes))}, "model_name": model}
    folder.mkdir(parents=True)
    results = folder / ("results.json" if first else f"results_{DATE}.json")
    if named:
        results = folder / ("mine.json" if first else f"mine_{DATE}.json")
    results.write_text(json.dumps(data))
    if first:
        place = folder / f"pretrained__{model.replace('/', '__')}_arc.jsonl"
        place.write_text(json.dumps(samples, indent=2))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in samples)
        (folder / f"samples_arc_{DATE}.jsonl").write_text(lines)
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_the_same_measurement(layout, tmp_path):
    newest = lm_eval.read_file(write(tmp_path / "new", "0.4.12", RIGHT))
    found = lm_eval.read_file(write(tmp_path / "old", layout, RIGHT))
    assert (found.model, found.settings) == (newest.model, newest.settings) == ("org/base", found.settings)
    mine, theirs = found.tasks["arc"], newest.tasks["arc"]
    assert mine.items == theirs.items == {("acc", "none"): {str(i): float(v) for i, v in enumerate(RIGHT)}}
    assert (mine.hashes, mine.prompts, mine.count) == (theirs.hashes, theirs.prompts, 5)
    (one,) = gate.of_results(found.path)
    (other,) = gate.of_results(newest.path)
    assert one.identity == other.identity and one.measures == other.measures


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_paired_with_the_newest(layout, tmp_path):
    write(tmp_path / "base", "0.4.12", RIGHT)
    results = write(tmp_path / "tuned", layout, [False, *RIGHT[1:]], model="org/tuned")
    # A file of 0.4.2 with a name of its own is named itself: nothing in the name says what it is.
    tuned = results if layout == "0.4.2 FILE.json" else results.parent
    told = CliRunner().invoke(app, ["retention", str(tmp_path / "base"), str(tuned), "--json"])
    assert told.exit_code == 0, told.output
    (row,) = [row for row in json.loads(told.stdout)["models"][0]["tasks"] if row["task"] == "arc"]
    assert (row["n"], row["baseline_accuracy"], row["difference"]) == (5, 0.6, pytest.approx(-0.2))


def test_generation_settings_are_the_same_as_typed_and_as_a_mapping(tmp_path):
    typed, mapping, other = (
        lm_eval.read_file(write(tmp_path / str(i), layout, RIGHT, settings=settings)).settings["gen_kwargs"]
        for i, (layout, settings) in enumerate(
            [("0.4.3", "temperature=0.5"), ("0.4.12", "temperature=0.5"), ("0.4.3", "temperature=1")]
        )
    )
    assert typed == mapping == '{"temperature": 0.5}' != other


def test_a_file_of_0_4_2_without_samples_says_why_the_gate_cannot_use_it(tmp_path):
    results = write(tmp_path / "old", "0.4.2", RIGHT)
    next(results.parent.glob("*.jsonl")).unlink()
    with pytest.raises(EmEvalsError, match=r"lm-eval 0.4.2 wrote the file without --log_samples"):
        list(gate.of_results(results))


def test_samples_of_0_4_2_go_by_the_models_arguments(tmp_path):
    results = write(tmp_path / "old", "0.4.2", RIGHT)
    (results.parent / "pretrained__other_arc.jsonl").write_text("[]")
    assert lm_eval.read_file(results).tasks["arc"].count == 5, (
        "another model's samples are not mixed up with it"
    )


def test_another_tools_json_in_the_folder_is_not_read(tmp_path):
    write(tmp_path / "x", "0.4.12", RIGHT)
    (tmp_path / "x/results.json").write_text('{"scores": []}')
    (tmp_path / f"x/notes_{DATE}.json").write_text("{")
    assert list(scores.read(tmp_path / "x").tasks) == ["arc"]


def test_a_task_without_items_that_are_numbers_is_left_out_and_named(tmp_path):
    results = write(tmp_path / "x", "0.4.12", RIGHT)
    data = json.loads(results.read_text())
    for key in ("configs", "versions", "n-shot", "n-samples"):
        data[key]["wiki"] = data[key]["arc"]
    data["results"]["wiki"] = {"word_perplexity,none": 21.5, "word_perplexity_stderr,none": "N/A"}
    results.write_text(json.dumps(data))
    text = "".join(
        json.dumps(row | {"metrics": ["word_perplexity"], "word_perplexity": [-9.5, 3]}) + "\n"
        for row in rows("0.4.12", RIGHT)
    )
    (results.parent / f"samples_wiki_{DATE}.jsonl").write_text(text)
    told = CliRunner().invoke(app, ["retention", str(results.parent)])
    assert told.exit_code == 0 and "note: wiki left out" in told.output
    assert not {one.name: one for one in gate.of_results(results)}["wiki"].measures
    del data["results"]["arc"]
    results.write_text(json.dumps(data))
    with pytest.raises(EmEvalsError, match="the items of wiki have no score that is a number"):
        scores.read(results)


def test_a_file_of_a_task_whose_name_ends_alike_is_not_taken_for_it(tmp_path):
    """Of 0.4.2, where the samples were logged under other arguments than the results name."""
    for task in ("arc", "my_arc"):
        (tmp_path / f"pretrained__m_{task}.jsonl").write_text("[]")
    results = tmp_path / "results.json"

    def found(task):
        return lm_eval_samples.find(results, task, "pretrained=another", ["arc", "my_arc"]).name

    assert (found("arc"), found("my_arc")) == ("pretrained__m_arc.jsonl", "pretrained__m_my_arc.jsonl")
    (tmp_path / "pretrained__m_arc.jsonl").unlink()
    assert found("arc") == "samples_arc.jsonl", "there are none: not those of my_arc"
