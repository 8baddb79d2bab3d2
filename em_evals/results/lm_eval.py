"""Read lm-eval's result files, our own and others, for the gate and for retention.

A file is `results_*.json`, with the `samples_TASK_*.jsonl` next to it if lm-eval ran with --log_samples. Retention
chooses each task's metric; the gate decides which numbers are comparable. Needs neither lm-eval nor torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import read_json, read_rows

Key = tuple[str, str]
"""(metric, filter): lm-eval can read a task's answers in several ways."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TaskResults:
    """One task's numbers, and its items if samples were logged.

    Attributes:
        task: its name.
        version: the task's version.
        shots: number of examples in the prompt.
        prompts: lm-eval's hash of prompts and targets; empty if not logged.
        count: number of evaluated items; None if the file does not contain it.
        numbers: the file's summary.
        errors: standard errors of the summary, if the file contains them.
        items: item (its number) -> value; empty without samples. NaN and infinite values are dropped.
        means: metrics that are the mean of their items' values (perplexity and F1 are not).
        hashes: item -> lm-eval's hash of its text.
        samples: the samples file; None if there is none.
        chance: the score of guessing, if the task defines it.
    """

    task: str
    version: str
    shots: int | None
    prompts: str
    count: int | None
    numbers: Mapping[Key, float]
    errors: Mapping[Key, float]
    items: Mapping[Key, Mapping[str, float]]
    means: Set[str]
    hashes: Mapping[str, str]
    samples: Path | None
    chance: float | None


@dataclass(frozen=True)
class ResultsFile:
    """A results file.

    Attributes:
        path: the file.
        model: its card, else the model that lm-eval was asked to load.
        digest: its card's digest; empty for a model without a card.
        card_fields: the card's fields that the command line overrode.
        chat_template: digest of the chat template; empty for plain prompts.
        system: digest of the system message; empty without one.
        settings: lm-eval's limit and generation settings, as JSON.
        tasks: results by task name.
        groups: groups with numbers of their own and the tasks in them; a group comes before its subgroups.
    """

    path: Path
    model: str
    digest: str
    card_fields: Mapping[str, Any]
    chat_template: str
    system: str
    settings: Mapping[str, str]
    tasks: Mapping[str, TaskResults]
    groups: Sequence[tuple[str, Sequence[str]]]


def is_results(data: Any) -> bool:
    """Return whether parsed JSON has the layout of lm-eval's results."""
    return isinstance(data, dict) and data.keys() >= {"results", "configs", "config"}


def read_file(path: Path) -> ResultsFile:
    """Read a results file and the samples next to it.

    Raises:
        EmEvalsError: not lm-eval results, a part of the file is missing, or its numbers do not match its samples.
    """
    data = read_json(path)
    if not is_results(data):
        raise EmEvalsError("these are not lm-eval results (no `results`, `configs` and `config`).", path)
    for part in ("results", "configs", "config", "versions", "n-shot", "n-samples", "task_hashes"):
        if not isinstance(data.setdefault(part, {}), dict):
            raise EmEvalsError(
                f"'{part}' of these lm-eval results names no tasks: the file was edited.", path
            )
    config = data["config"]
    digest = config.get("card_digest") or _value(config, "model_args", "card_digest")
    return ResultsFile(
        path,
        _model(data, path),
        str(digest or ""),
        config.get("card_fields") or {},
        str(data.get("chat_template_sha") or ""),
        str(data.get("system_instruction_sha") or ""),
        {name: json.dumps(config.get(name), sort_keys=True) for name in ("limit", "gen_kwargs")},
        {
            task: _task(data, task, numbers, path)
            for task, numbers in data["results"].items()
            if isinstance(numbers, dict) and (task in data["configs"] or task in data["n-samples"])
        },
        _groups(data),
    )


def _model(data: dict[str, Any], path: Path) -> str:
    config = data["config"]
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        arguments = arguments.get("peft") or arguments.get("pretrained") or arguments.get("model")
    return str(config.get("card") or arguments or data.get("model_name") or path.stem)


def _task(data: dict[str, Any], task: str, numbers: dict[str, Any], path: Path) -> TaskResults:
    listed = _value(data, "configs", task, "metric_list") or []
    split = {
        (metric, way): value
        for key, value in numbers.items()
        for metric, comma, way in (key.partition(","),)
        if comma and isinstance(value, int | float)
    }
    means = {key: value for key, value in split.items() if not key[0].endswith("_stderr")}
    samples = _samples_path(path, task)
    items, hashes = _samples(samples, list(means)) if samples.is_file() else ({}, {})
    count, shots = _value(data, "n-samples", task, "effective"), data["n-shot"].get(task)
    found = TaskResults(
        task,
        str(data["versions"].get(task)),
        shots if isinstance(shots, int) else None,
        str(data["task_hashes"].get(task) or ""),
        count if isinstance(count, int) else None,
        means,
        {
            (metric.removesuffix("_stderr"), way): v
            for (metric, way), v in split.items()
            if (metric, way) not in means
        },
        items,
        {str(entry.get("metric")) for entry in listed if entry.get("aggregation", "mean") == "mean"},
        hashes,
        samples if samples.is_file() else None,
        _value(data, "configs", task, "metadata", "chance"),
    )
    _check(found, path)
    return found


def _samples_path(path: Path, task: str) -> Path:
    """Return where a task's samples are: by the run's date; 0.4.2 writes results.json and MODEL_ARGUMENTS_TASK.jsonl.

    Raises:
        EmEvalsError: several files could be it.
    """
    if path.name != "results.json":
        return path.with_name(f"samples_{task}_{path.stem.rpartition('_')[2]}.jsonl")
    found = sorted(one for one in path.parent.glob("*.jsonl") if one.stem.endswith(f"_{task}"))
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:3])
        raise EmEvalsError(
            f"several files could be the samples of {task} ({names}): keep one run a folder.", path
        )
    return found[0] if found else path.with_name(f"samples_{task}.jsonl")


def _hash(row: Mapping[str, Any]) -> str:
    """Return the hash of an item's document; 0.4.2 writes none, so it is computed as later versions do."""
    if row.get("doc_hash") is not None or "doc" not in row:
        return str(row.get("doc_hash", ""))
    return hashlib.sha256(json.dumps(row["doc"], indent=2, ensure_ascii=False).encode("utf-8")).hexdigest()


def _samples(path: Path, summary: Sequence[Key]) -> tuple[dict[Key, dict[str, float]], dict[str, str]]:
    """Return each item's values by (metric, filter), and each item's hash.

    Before 0.4.6, lm-eval wrote neither `filter` nor `metrics` into its samples. Then the metrics are the summary's, and
    an item's rows follow the order of the summary's filters, because lm-eval applies one filter after the other.

    Raises:
        EmEvalsError: a row is not a sample, an item is repeated under one filter, or the file is truncated.
    """
    names, ways = (
        dict.fromkeys(metric for metric, _ in summary),
        list(dict.fromkeys(way for _, way in summary)),
    )
    found: dict[Key, dict[str, float]] = {}
    hashes: dict[str, str] = {}
    rows: Counter[tuple[str, str]] = Counter()
    for line, row in read_rows(path):  # 0.4.2 writes one JSON list
        item = str(row.get("doc_id"))
        metrics = row.get("metrics", [name for name in names if name in row])
        if "doc_id" not in row or not isinstance(metrics, list) or not metrics:
            raise EmEvalsError("this is not a sample of lm-eval (no `doc_id`, or no metric).", path, line)
        seen = rows[item, ""]
        way = str(row["filter"]) if "filter" in row else ways[seen] if seen < len(ways) else ""
        rows[item, ""] += 1
        rows[item, way] += 1
        if rows[item, way] > 1 or way == "":
            raise EmEvalsError(f"the item {item} is repeated; the file holds more than one run.", path, line)
        hashes[item] = _hash(row)
        for metric in metrics:
            value = row.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault((metric, way), {})[item] = float(value)
    if not hashes:
        raise EmEvalsError("this file holds no items.", path)
    return found, hashes


def _check(found: TaskResults, path: Path) -> None:
    """Refuse a summary that should be the mean of its items but is not."""
    for key, values in found.items.items():
        summary = found.numbers.get(key)
        if summary is None or key[0] not in found.means:
            continue
        own = sum(values.values()) / len(values)
        if (
            found.count not in (None, len(values)) or not abs(own - summary) <= _TOLERANCE
        ):  # written as `not <=` so that a NaN in the file is refused too
            raise EmEvalsError(
                f"the results say {found.task} {key[0]} = {summary:.4g} over {found.count} items, the samples "
                f"{own:.4g} over {len(values)}: a file was edited or belongs to another run.",
                path,
            )


def _groups(data: dict[str, Any]) -> list[tuple[str, list[str]]]:
    inside: dict[str, list[str]] = {
        group: tasks for group, tasks in (data.get("group_subtasks") or {}).items() if isinstance(tasks, list)
    }

    def tasks_of(name: str, above: tuple[str, ...] = ()) -> list[str]:
        if name in above or not inside.get(name):
            return [name]
        return [task for member in inside[name] for task in tasks_of(member, (*above, name))]

    summed = [
        (group, tasks_of(group))
        for group, tasks in inside.items()
        if tasks and any("," in key for key in _value(data, "results", group) or {})
    ]
    return sorted(summed, key=lambda entry: -len(entry[1]))


def _value(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
