"""A model's scores by task, from lm-eval's result files: every item's score, ready for pairing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.results import folders, lm_eval, lm_eval_samples
from em_evals.results.lm_eval import ResultsFile, TaskResults
from em_evals.stats import intervals

METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "margin_per_byte")
"""A task's score is the first of these that it has: the one that its authors and leaderboards report."""


@dataclass(frozen=True)
class TaskScores:
    """One task's items: `scores` by item (its number and digest), in file order."""

    task: str
    version: str
    shots: int
    metric: str
    scores: Mapping[str, float]
    path: Path
    chance: float | None = None
    """The score of guessing, if the task defines it."""
    chat: bool = False
    """Whether prompts used the model's chat template."""
    system: str = ""
    """lm-eval's digest of the system message; empty without one."""

    @property
    def mean(self) -> float:
        """The mean score."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def interval(self) -> intervals.Interval:
        """Its 95% interval for other items of this kind: Wilson's if items are right or wrong, else Student's t."""
        values = list(self.scores.values())
        if set(values) <= {0.0, 1.0}:
            return intervals.fixed_questions(int(sum(values)), len(values))
        return intervals.mean(values)


@dataclass(frozen=True)
class ModelResults:
    """One model's scores. `digest` is its card's, or empty for a model without a card."""

    name: str
    digest: str
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)
    card_fields: Mapping[str, Any] = field(default_factory=dict)
    """The card's fields that the command line overrode."""
    left_out: Sequence[str] = ()
    """Tasks whose items have no score that is a number (perplexities), so none can be paired."""


def is_results(name: str) -> bool:
    """Return whether a command-line argument names result files, not a card."""
    path = Path(name).expanduser()
    return path.suffix == ".json" or (path.is_dir() and bool(_files(path)))


def read(path: Path) -> ModelResults:
    """Read a result file, or all result files below a folder; a task's newest run counts.

    Raises:
        EmEvalsError: no lm-eval results, no samples next to them, or results of several models.
    """
    path = path.expanduser()
    paths = [path] if path.is_file() else sorted(_files(path), key=_age)
    if not paths:
        raise EmEvalsError("there are no lm-eval results here (results_*.json).", path)
    read_files = [lm_eval.read_file(one) for one in paths]
    models = dict.fromkeys((file.model, file.digest) for file in read_files)
    if len(models) > 1:
        names = " and ".join(name for name, _ in models)
        raise EmEvalsError(f"these are results of several models ({names}); name one folder for each.", path)
    by_task = {task: _scores(found, file) for file in read_files for task, found in file.tasks.items()}
    tasks = {task: found for task, found in by_task.items() if found is not None}
    left_out = [task for task, found in by_task.items() if found is None]
    if left_out and not tasks:
        raise EmEvalsError(f"the items of {', '.join(left_out)} have no score that is a number.", path)
    (name, digest), *_ = models
    return ModelResults(name, digest, tasks, read_files[-1].card_fields, left_out)


def _files(folder: Path) -> list[Path]:
    """Return the result files below a folder, without those of unfinished measurements.

    0.4.2 writes results.json, and --output_path FILE.json gives FILE_DATE.json since 0.4.9: others use such names too.
    """
    return [
        file
        for file in folders.inside(folder)
        if file.match("results_*.json")
        or ((file.name == "results.json" or lm_eval_samples.date_of(file)) and _holds_results(file))
    ]


def _age(file: Path) -> tuple[str, str]:
    # A file's name may begin with anything (NAME_DATE.json); one without a date is of 0.4.2.
    return lm_eval_samples.date_of(file), file.name


def _holds_results(file: Path) -> bool:
    try:
        return lm_eval.is_results(files.read_json(file))
    except EmEvalsError:
        return False


def _scores(found: TaskResults, file: ResultsFile) -> TaskScores | None:
    """Return the items by the task's metric; if its answers are read in several ways, the first way counts.

    None if no metric of its items is a number.
    """
    if found.samples is None:
        raise EmEvalsError(
            f"the items of {found.task} are missing (samples_{found.task}_*.jsonl); run lm-eval with --log_samples.",
            file.path,
        )
    way = next((way for _, way in found.items), "")
    named = [metric for metric, own in found.items if own == way]
    metric = next((metric for metric in (*METRICS, *named) if metric in named), None)
    if metric is None:
        return None
    return TaskScores(
        found.task,
        found.version,
        found.shots or 0,
        metric,
        {f"{item} {found.hashes[item]}": value for item, value in found.items[metric, way].items()},
        found.samples,
        found.chance,
        bool(file.chat_template),
        file.system,
    )
