"""Evidence out of lm-evaluation-harness's own files: results_*.json, and samples_*.jsonl beside it if logged.

With samples, items are paired and the summary is checked against them. Without, accuracies are taken as counts over the
task as a whole, and other means with the standard error that the file states.

A group that lm-eval sums up (em_mini, mmlu) is one metric over the items of all its tasks, and these are its parts: the
eighty items of one family could never rule out a loss of three points, even if no answer changed. `em-evals retention`
writes a file for each task; em_mini's are put together here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.content import documents
from em_evals.errors import EmEvalsError
from em_evals.gate.evidence import Counts, Evidence, Items, Mean, Measure
from em_evals.results.logs import named

_OWN_GROUP = "em_mini"
_TOLERANCE = 1e-6
_PARTS = {"results", "versions", "n-samples"}
_SETTINGS = {"limit": "limit", "gen_kwargs": "generation settings"}


def is_results(data: Any) -> bool:
    """Whether parsed JSON has the layout of lm-eval's results."""
    return isinstance(data, dict) and data.keys() >= _PARTS


def of_results(path: Path, data: dict[str, Any]) -> Iterator[Evidence]:
    """One evidence for each task of a results file, and for each group that sums tasks up.

    Raises:
        EmEvalsError: the file lacks what it should have, or its numbers contradict each other or the samples.
    """
    for part in _PARTS:
        if not isinstance(data[part], dict):
            raise EmEvalsError(
                f"'{part}' of these lm-eval results names no tasks: the file was edited.", path
            )
    found: dict[str, Evidence] = {}
    for task, numbers in data["results"].items():
        if task not in data["n-samples"] or not isinstance(numbers, dict):
            continue
        items = _samples(path, task)
        found[task] = Evidence(
            kind="lm_eval",
            name=task,
            model=named(str(data.get("model_name") or _told(data, "config", "model"))),
            card_digest=_digest(data),
            identity=_identity(data, task),
            measures=dict(_measures(path, data, task, numbers, items)),
        )
    if not found:
        raise EmEvalsError("this lm-eval file has no tasks in it.", path)
    parts: dict[str, str] = {}
    for group, tasks in _groups(data):
        members = [found[task] for task in tasks if task in found]
        if (
            len(members) == len(tasks)
            and not parts.keys() & set(tasks)
            and (whole := _pooled(group, members))
        ):
            parts |= dict.fromkeys(tasks, group)
            yield whole
    for task, evidence in found.items():
        yield evidence.model_copy(update={"part_of": parts.get(task)})


def with_own_group(found: dict[str, Evidence]) -> dict[str, Evidence]:
    """The same, and em_mini as one metric where `em-evals retention` measured its tasks one by one for one card."""
    group = documents.load(documents.SHIPPED / "tasks" / "retention" / f"{_OWN_GROUP}.yaml").data
    members = [one for task in group["task"] if (one := found.get(f"lm_eval/{task}")) and one.part_of is None]
    digests = {one.card_digest for one in members}
    if len(members) < len(group["task"]) or len(digests) != 1 or None in digests:
        return found
    whole = _pooled(_OWN_GROUP, members)
    if whole is None or whole.key in found:
        return found
    parts = {one.key: one.model_copy(update={"part_of": _OWN_GROUP}) for one in members}
    return found | {whole.key: whole} | parts


def _groups(data: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Groups that have numbers of their own, and the tasks in them; a group comes before those inside it."""
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
        if tasks and any("," in key for key in _told(data, "results", group) or {})
    ]
    return sorted(summed, key=lambda entry: -len(entry[1]))


def _pooled(group: str, members: Sequence[Evidence]) -> Evidence | None:
    """All items of a group's tasks, by the metrics that all of them have in one form; None without any."""

    def of(member: Evidence) -> dict[str, Measure]:
        return {name.removeprefix(f"lm_eval.{member.name}."): own for name, own in member.measures.items()}

    measures: dict[str, Measure] = {}
    for metric in of(members[0]):
        own = {member.name: of(member).get(metric) for member in members}
        name = f"lm_eval.{group}.{metric}"
        if all(isinstance(measure, Items) for measure in own.values()):
            measures[name] = Items(
                values={
                    f"{task}/{item}": value
                    for task, measure in own.items()
                    if isinstance(measure, Items)
                    for item, value in measure.values.items()
                }
            )
        elif all(isinstance(measure, Counts) for measure in own.values()):
            measures[name] = Counts(
                clusters={
                    f"{task}/{cluster}": counts
                    for task, measure in own.items()
                    if isinstance(measure, Counts)
                    for cluster, counts in measure.clusters.items()
                }
            )
    if not measures:
        return None
    first = members[0]
    identity = {what: _common([(one.name, one.identity[what]) for one in members]) for what in first.identity}
    return first.model_copy(update={"name": group, "identity": identity, "measures": measures})


def _common(told: Sequence[tuple[str, str]]) -> str:
    """What all tasks say, or what each of them says."""
    values = {value for _, value in told}
    return values.pop() if len(values) == 1 else ", ".join(f"{task} {value}" for task, value in told)


def _identity(data: dict[str, Any], task: str) -> dict[str, str]:
    told = {
        "task version": str(data["versions"].get(task)),
        "number of examples in the prompt": str(_told(data, "n-shot", task)),
        "prompts and targets": str(_told(data, "task_hashes", task) or "not logged"),
        "chat template": str(data.get("chat_template_sha") or "none"),
        "system message": str(data.get("system_instruction_sha") or "none"),
        "items": str(_told(data["n-samples"], task, "effective")),
    }
    settings = {words: _told(data, "config", key) for key, words in _SETTINGS.items()}
    return told | {words: json.dumps(value, sort_keys=True) for words, value in settings.items()}


def _measures(
    path: Path,
    data: dict[str, Any],
    task: str,
    numbers: dict[str, Any],
    items: dict[tuple[str, str], dict[str, float]] | None,
) -> Iterable[tuple[str, Measure]]:
    count = _told(data["n-samples"], task, "effective")
    if not isinstance(count, int) or count < 1:
        raise EmEvalsError(f"the task {task} does not say how many items it has: the file was edited.", path)
    filters = {key.partition(",")[2] for key in numbers if "," in key}
    for key, value in numbers.items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        name = f"lm_eval.{task}.{metric}" + (f".{way}" if len(filters) > 1 else "")
        values = (items or {}).get((metric, way))
        if values is not None and _is_mean(data, task, metric):
            own = sum(values.values()) / len(values)
            if len(values) != count or not abs(own - value) <= _TOLERANCE:  # the file's may be NaN
                raise EmEvalsError(
                    f"the results say {task} {metric} = {value:.4g} over {count} items, the samples {own:.4g} over "
                    f"{len(values)}: a file was edited or belongs to another run.",
                    path,
                )
            yield name, Items(values=values)
        elif measure := _summary(
            path, f"{task} {metric}", value, numbers.get(f"{metric}_stderr,{way}"), count
        ):
            yield name, measure


def _summary(path: Path, what: str, value: float, error: Any, count: int) -> Measure | None:
    """A mean without its items; None where no error is stated, since nothing can be said of it then."""
    if not isinstance(error, int | float) or not math.isfinite(error) or not math.isfinite(value):
        return None
    events = round(value * count)
    if 0 <= value <= 1 and abs(value * count - events) < _TOLERANCE * count:
        expected = math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else 0.0
        if abs(expected - error) < _TOLERANCE:
            return Counts(clusters={"all items": (events, count)})
        if "acc" in what or "exact_match" in what:
            raise EmEvalsError(
                f"{what} = {value:.4g} over {count} items has the standard error {expected:.4g}, the file says "
                f"{error:.4g}: it was edited.",
                path,
            )
    return Mean(value=value, error=error, draws=count)


def _samples(path: Path, task: str) -> dict[tuple[str, str], dict[str, float]] | None:
    """(metric, filter) -> item -> value, of the samples file of the same run; None where there is none.

    Raises:
        EmEvalsError: an item stands twice under one filter, or the file is cut.
    """
    run = path.stem.rpartition("_")[2]
    file = path.with_name(f"samples_{task}_{run}.jsonl")
    if not file.is_file():
        return None
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line, row in files.read_jsonl(file):
        way, item = str(row.get("filter", "none")), str(row.get("doc_id"))
        for metric in row.get("metrics") or []:
            value = row.get(metric)
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            values = found.setdefault((metric, way), {})
            if item in values:
                raise EmEvalsError(
                    f"the item {item} stands twice; the file holds more than one run.", file, line
                )
            values[item] = float(value)
    return found


def _is_mean(data: dict[str, Any], task: str, metric: str) -> bool:
    """Whether the task's number is the mean of its items' (perplexity and F1 are not)."""
    listed = _told(data, "configs", task, "metric_list") or []
    return any(
        entry.get("metric") == metric and entry.get("aggregation", "mean") == "mean" for entry in listed
    )


def _digest(data: dict[str, Any]) -> str | None:
    """The card's digest, which em-evals' own lm-eval model puts among its settings."""
    found = _told(data, "config", "card_digest") or _told(data, "config", "model_args", "card_digest")
    return str(found) if found else None


def _told(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
