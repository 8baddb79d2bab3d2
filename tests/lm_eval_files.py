"""Files in the layout of lm-evaluation-harness 0.4.13, as `lm_eval --log_samples --output_path` writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

DATE = "2026-11-21T10-13-28.831591"


OLD = ("filter", "metrics")
"""Keys of samples that lm-eval 0.4.3 to 0.4.5 does not write."""


def write_results(
    folder: Path, task: str, right: Sequence[bool], samples: bool = True, without: Sequence[str] = ()
) -> Path:
    """Results of one multiple-choice task, and its samples beside them, without some keys of the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    count, accuracy = len(right), sum(right) / len(right)
    data = {
        "results": {
            task: {
                "name": task,
                "alias": task,
                "sample_len": count,
                "acc,none": accuracy,
                "acc_stderr,none": math.sqrt(accuracy * (1 - accuracy) / (count - 1)),
            }
        },
        "group_subtasks": {},
        "configs": {
            task: {
                "task": task,
                "output_type": "multiple_choice",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        },
        "versions": {task: 1},
        "n-shot": {task: 0},
        "higher_is_better": {task: {"acc": True}},
        "n-samples": {task: {"original": count, "effective": count}},
        "config": {"model": "dummy", "model_args": {}, "limit": None, "gen_kwargs": {}},
        "task_hashes": {task: "d68f8638"} if samples else {},
        "model_name": "mine",
        "system_instruction_sha": None,
        "chat_template_sha": None,
    }
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")
    if samples:
        rows = (
            {"doc_id": i, "filter": "none", "metrics": ["acc"], "doc_hash": f"{i:064x}", "acc": float(value)}
            for i, value in enumerate(right)
        )
        kept = ({key: value for key, value in row.items() if key not in without} for row in rows)
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (folder / f"samples_{task}_{DATE}.jsonl").write_text(text, encoding="utf-8")
    return path
