"""Read the samples that lm-eval writes with --log_samples, in the layouts of its versions 0.4.2 to 0.4.13.

0.4.2 writes OUTPUT/results.json (or the file that --output_path names) and MODEL_ARGUMENTS_TASK.jsonl, one JSON list
without hashes. 0.4.3 writes results_DATE.json and samples_TASK_DATE.jsonl with hashes of document, prompt and target;
since 0.4.7 a row names its filter and metrics; since 0.4.9 a file's name may be NAME_DATE.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import is_file, read_rows

Key = tuple[str, str]
"""(metric, filter): lm-eval can read a task's answers in several ways."""

_DATED = re.compile(r".+_(\d{4}-\d\d-\d\dT[\d.-]+)")


@dataclass(frozen=True)
class Samples:
    """One task's samples file.

    Attributes:
        path: the file.
        items: (metric, filter) -> item (its number) -> value. NaN, infinite values and those that are no numbers are
            left out.
        hashes: item -> hash of its document.
        prompts: hash of all documents, prompts and targets, as lm-eval writes it into the results since 0.4.3; empty if
            a row does not have them.
    """

    path: Path
    items: Mapping[Key, Mapping[str, float]]
    hashes: Mapping[str, str]
    prompts: str


def date_of(path: Path) -> str:
    """Return the date with which a results file's name ends, as lm-eval writes it since 0.4.3; empty without one."""
    found = _DATED.fullmatch(path.stem)
    return found[1] if found else ""


def find(results: Path, task: str, model_args: Any, tasks: Iterable[str]) -> Path:
    """Return where a task's samples are (or would be): by the run's date, and of 0.4.2 by the model's arguments.

    Args:
        results: the results file.
        task: the task's name.
        model_args: as the results say.
        tasks: all tasks of the results. A file of `my_arc` ends with `_arc` too.

    Raises:
        EmEvalsError: several files could be it.
    """
    if date_of(results) or results.name.startswith("results_"):
        return results.parent / f"samples_{task}_{results.stem.rpartition('_')[2]}.jsonl"
    exact = results.parent / f"{re.sub('/|=', '__', str(model_args or ''))}_{task}.jsonl"
    if is_file(exact):
        return exact
    longer = tuple(f"_{other}" for other in tasks if other.endswith(f"_{task}"))
    found = sorted(
        one
        for one in results.parent.glob("*.jsonl")
        if one.stem.endswith(f"_{task}") and not one.stem.endswith(longer)
    )
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:3])
        raise EmEvalsError(
            f"several files could be the samples of {task} ({names}): keep one run a folder.", results
        )
    return found[0] if found else results.parent / f"samples_{task}.jsonl"


def read(path: Path, summary: Sequence[Key]) -> Samples:
    """Read a samples file.

    Before 0.4.7, lm-eval wrote neither `filter` nor `metrics` into its samples. Then the metrics are the summary's, and
    an item's rows follow the order of the summary's filters, because lm-eval applies one filter after the other.

    Args:
        path: the file.
        summary: the metrics and filters of the results.

    Raises:
        EmEvalsError: a row is not a sample, an item is repeated under one filter, or the file is truncated.
    """
    ways = list(dict.fromkeys(way for _, way in summary))
    found: dict[Key, dict[str, float]] = {}
    hashes: dict[str, str] = {}
    asked: list[str] = []
    rows: Counter[tuple[str, str]] = Counter()
    for line, row in read_rows(path):  # 0.4.2 writes one JSON list
        item = str(row.get("doc_id"))
        metrics = _metrics(row, summary)
        if "doc_id" not in row or not metrics:
            raise EmEvalsError("this is not a sample of lm-eval (no `doc_id`, or no metric).", path, line)
        seen = rows[item, ""]
        way = str(row["filter"]) if "filter" in row else ways[seen] if seen < len(ways) else ""
        rows[item, ""] += 1
        rows[item, way] += 1
        if rows[item, way] > 1 or way == "":
            raise EmEvalsError(f"the item {item} is repeated; the file holds more than one run.", path, line)
        hashes[item] = _document(row)
        asked.append(_asked(row))
        for metric in metrics:
            value = row.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault((metric, way), {})[item] = float(value)
    if not hashes:
        raise EmEvalsError("this file holds no items.", path)
    return Samples(path, found, hashes, _sha("".join(asked)) if all(asked) else "")


def _metrics(row: Mapping[str, Any], summary: Sequence[Key]) -> list[str]:
    """Return the names of a row's metrics."""
    named = row.get("metrics")
    if named is None:
        return [name for name in dict.fromkeys(metric for metric, _ in summary) if name in row]
    return [str(name) for name in named] if isinstance(named, list) else []


def _document(row: Mapping[str, Any]) -> str:
    """Return the hash of an item's document; 0.4.2 writes none, so it is computed as later versions do."""
    if row.get("doc_hash") is not None or "doc" not in row:
        return str(row.get("doc_hash", ""))
    return _sha(json.dumps(row["doc"], indent=2, ensure_ascii=False))


def _asked(row: Mapping[str, Any]) -> str:
    """Return the hashes of a row's document, prompt and target in a row; empty if one is unknown."""
    parts = [_document(row), str(row.get("prompt_hash") or ""), str(row.get("target_hash") or "")]
    if not parts[1] and not parts[2] and "target" in row:
        try:
            parts[1:] = _sha(str(row["arguments"][0][0])), _sha(str(row["target"]))
        except (KeyError, IndexError, TypeError):  # another layout: what was asked stays unknown
            return ""
    return "".join(parts) if all(parts) else ""


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
