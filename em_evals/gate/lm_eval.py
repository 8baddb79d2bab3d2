"""Evidence out of lm-evaluation-harness's own files: results_*.json, and samples_*.jsonl beside it if logged.

With samples, items are paired and the summary is checked against them. Without, accuracies are taken as counts over the
task as a whole, and other means with the standard error that the file states.

A group that lm-eval sums up (em_mini, mmlu) is one metric over the items of all its tasks, and these are its parts: the
eighty items of one family could never rule out a loss of three points, even if no answer changed. `em-evals retention`
writes a file for each task; em_mini's are put together here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from em_evals.content import documents
from em_evals.errors import EmEvalsError
from em_evals.gate.evidence import Counts, Evidence, Items, Mean, Measure
from em_evals.results import lm_eval
from em_evals.results.lm_eval import ResultsFile, TaskResults
from em_evals.results.logs import named

_OWN_GROUP = "em_mini"
_TOLERANCE = 1e-6


def of_results(path: Path) -> Iterator[Evidence]:
    """One evidence for each task of a results file, and for each group that sums tasks up.

    Raises:
        EmEvalsError: the file lacks what it should have, or its numbers contradict each other or the samples.
    """
    file = lm_eval.read_file(path)
    found = {
        task: Evidence(
            kind="lm_eval",
            name=task,
            model=named(file.model),
            card_digest=file.digest or None,
            identity=_identity(file, own),
            measures=dict(_measures(path, own)),
        )
        for task, own in file.tasks.items()
    }
    if not found:
        raise EmEvalsError("this lm-eval file has no tasks in it.", path)
    parts: dict[str, str] = {}
    for group, tasks in file.groups:
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


def _identity(file: ResultsFile, found: TaskResults) -> dict[str, str]:
    return {
        "task version": found.version,
        "number of examples in the prompt": str(found.shots),
        "prompts and targets": found.prompts or "not logged",
        "chat template": file.chat_template or "none",
        "system message": file.system or "none",
        "items": str(found.count),
        "limit": file.settings["limit"],
        "generation settings": file.settings["gen_kwargs"],
    }


def _measures(path: Path, found: TaskResults) -> Iterable[tuple[str, Measure]]:
    if found.count is None or found.count < 1:
        raise EmEvalsError(
            f"the task {found.task} does not say how many items it has: the file was edited.", path
        )
    ways = {way for _, way in found.numbers}
    for (metric, way), value in found.numbers.items():
        name = f"lm_eval.{found.task}.{metric}" + (f".{way}" if len(ways) > 1 else "")
        if metric in found.means and (metric, way) in found.items:
            yield name, Items(values=dict(found.items[metric, way]))
        elif measure := _summary(
            path, f"{found.task} {metric}", value, found.errors.get((metric, way)), found.count
        ):
            yield name, measure


def _summary(path: Path, what: str, value: float, error: float | None, count: int) -> Measure | None:
    """A mean without its items; None where no error is stated, since nothing can be said of it then."""
    if error is None or not math.isfinite(error) or not math.isfinite(value):
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
