"""Read lm-eval's result files, our own and others, for the gate and for retention.

A file is `results_*.json`, with the `samples_TASK_*.jsonl` next to it if lm-eval ran with --log_samples. Retention
chooses each task's metric; the gate decides which numbers are comparable. Needs neither lm-eval nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import is_file, read_json
from em_evals.results import lm_eval_samples
from em_evals.results.lm_eval_samples import Key

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
        fields if isinstance(fields := config.get("card_fields"), dict) else {},
        str(data.get("chat_template_sha") or ""),
        str(data.get("system_instruction_sha") or ""),
        {
            "limit": json.dumps(config.get("limit")),
            "gen_kwargs": json.dumps(_arguments(config.get("gen_kwargs")), sort_keys=True),
        },
        {
            task: _task(data, task, numbers, path)
            for task, numbers in data["results"].items()
            if isinstance(numbers, dict) and (task in data["configs"] or task in data["n-samples"])
        },
        _groups(data, path),
    )


def _model(data: dict[str, Any], path: Path) -> str:
    config = data["config"]
    given = config.get("model_args")
    named = _arguments(given)
    name = named.get("peft") or named.get("pretrained") or named.get("model")
    if name is None and isinstance(given, str):
        name = given
    return str(config.get("card") or name or data.get("model_name") or path.stem)


def _arguments(given: Any) -> dict[str, Any]:
    """Return arguments by name: a mapping since 0.4.10, before it `KEY=VALUE,…` as typed, or nothing."""
    if isinstance(given, dict):
        return given
    pairs = (part.partition("=") for part in str(given or "").split(",") if "=" in part)
    return {name.strip(): _scalar(value.strip()) for name, _, value in pairs}


def _scalar(text: str) -> Any:
    """Return a typed value as lm-eval's command line reads it."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def _task(data: dict[str, Any], task: str, numbers: dict[str, Any], path: Path) -> TaskResults:
    listed = _value(data, "configs", task, "metric_list") or []
    if not (isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed)):
        raise EmEvalsError(f"`metric_list` of {task} is no list of metrics: the file was edited.", path)
    chance = _value(data, "configs", task, "metadata", "chance")
    split = {
        (metric, way): value
        for key, value in numbers.items()
        for metric, comma, way in (key.partition(","),)
        if comma and isinstance(value, int | float)
    }
    means = {key: value for key, value in split.items() if not key[0].endswith("_stderr")}
    place = lm_eval_samples.find(path, task, _value(data, "config", "model_args"), data["results"])
    logged = lm_eval_samples.read(place, list(means)) if is_file(place) else None
    count, shots = _value(data, "n-samples", task, "effective"), data["n-shot"].get(task)
    if logged is not None and task not in data["n-samples"]:
        count = len(logged.hashes)  # 0.4.2 does not write how many
    found = TaskResults(
        task,
        str(data["versions"].get(task)),
        shots if isinstance(shots, int) else None,
        str(data["task_hashes"].get(task) or (logged.prompts if logged else "")),
        count if isinstance(count, int) else None,
        means,
        {
            (metric.removesuffix("_stderr"), way): v
            for (metric, way), v in split.items()
            if (metric, way) not in means
        },
        logged.items if logged else {},
        {str(entry.get("metric")) for entry in listed if entry.get("aggregation", "mean") == "mean"},
        logged.hashes if logged else {},
        logged.path if logged else None,
        chance if isinstance(chance, int | float) and not isinstance(chance, bool) else None,
    )
    _check(found, path)
    return found


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


def _groups(data: dict[str, Any], path: Path) -> list[tuple[str, list[str]]]:
    listed = data.get("group_subtasks") or {}
    if not (isinstance(listed, dict) and all(map(_are_names, listed.values()))):
        raise EmEvalsError(
            "`group_subtasks` does not name the tasks of each group: the file was edited.", path
        )
    inside: dict[str, list[str]] = listed

    def tasks_of(group: str) -> list[str]:
        # Each name once: groups that list each other twice would expand without end.
        found: list[str] = []
        seen, todo = {group}, inside[group][::-1]
        while todo:
            if (name := todo.pop()) in seen:
                continue
            seen.add(name)
            if inside.get(name):
                todo += inside[name][::-1]
            else:
                found.append(name)
        return found

    summed = [
        (group, tasks_of(group))
        for group, tasks in inside.items()
        if tasks and isinstance(own := data["results"].get(group), dict) and any("," in key for key in own)
    ]
    return sorted(summed, key=lambda entry: -len(entry[1]))


def _are_names(tasks: Any) -> bool:
    return isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)


def _value(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
