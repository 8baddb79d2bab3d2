"""Evidence from lm-evaluation-harness's own files: results_*.json, and samples_*.jsonl next to it if logged.

With samples, items are paired and the summary is checked against them. Without, accuracies are counts over the whole
task, and other means come with the standard error in the file.

A group that lm-eval aggregates (em_mini, mmlu) is one metric over the items of all its tasks, which become its parts:
the eighty items of one family could never rule out a loss of three points, even if no answer changed. `em-evals
retention` writes one file per task; em_mini's are pooled here.
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
    """Yield one evidence per task of a results file, and one per group of tasks.

    Raises:
        EmEvalsError: the file is incomplete, or its numbers contradict each other or the samples.
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
    """Add em_mini as one metric if `em-evals retention` measured all of its tasks one by one for one card."""
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
    """Pool all items of a group's tasks, for metrics in the same form in all of them; None if there are none."""

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
    """Return the value that all tasks share, or each task's own value."""
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
            f"the task {found.task} does not say how many items it has: lm-eval 0.4.2 wrote the file without "
            "--log_samples, or the file was edited.",
            path,
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
    """Return the measure of a mean without items; None without a standard error, which allows no test."""
    if error is None or not math.isfinite(error) or not math.isfinite(value):
        return None
    events = round(value * count)
    if 0 <= value <= 1 and abs(value * count - events) < _TOLERANCE * count:
        # A mean of zeros and ones has exactly this standard error; then the mean stands for counts.
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
