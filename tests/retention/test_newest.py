"""A folder with several runs of a task: the newest counts, however lm-eval's files are named."""

import json

from em_evals.retention import scores


def run(folder, name, date, value):
    """A results file of one item and its samples, as lm-eval 0.4.9 writes them with --output_path NAME.json."""
    (folder / f"{name}_{date}.json").write_text(
        json.dumps(
            {
                "results": {"task": {"acc,none": value}},
                "configs": {"task": {"metric_list": [{"metric": "acc"}]}},
                "config": {"model_args": "pretrained=a"},
                "versions": {"task": 1},
                "n-samples": {"task": {"effective": 1}},
            }
        )
    )
    row = {"doc_id": 0, "doc_hash": "h", "filter": "none", "metrics": ["acc"], "acc": value}
    (folder / f"samples_task_{date}.jsonl").write_text(json.dumps(row) + "\n")


def test_a_run_is_newest_by_its_date_and_not_by_its_name(tmp_path):
    run(tmp_path, "zebra", "2025-01-01T00-00-00.000001", 0.0)
    run(tmp_path, "results", "2025-06-01T00-00-00.000001", 0.0)
    run(tmp_path, "aardvark", "2026-01-01T00-00-00.000001", 1.0)
    assert scores.read(tmp_path).tasks["task"].mean == 1.0
