"""lm-eval's result files, ours and anybody's: every item's score, ready to be compared item by item.

Reads `results_*.json` with the `samples_TASK_*.jsonl` beside it (lm-eval's --log_samples); needs neither lm-eval nor
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import read_jsonl, read_text
from em_evals.stats import intervals

METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "margin_per_byte")
"""A task's score is the first of these that it has: what its authors and the leaderboards report."""

UNFINISHED = ".partial"
"""What the folder of a measurement ends with until it is whole: a killed one leaves it behind."""


@dataclass(frozen=True)
class TaskScores:
    """One task's items: `scores` by item (its number and digest), in the file's order."""

    task: str
    version: str
    shots: int
    metric: str
    scores: Mapping[str, float]
    path: Path
    chance: float | None = None
    """What guessing scores, where the task says."""
    chat: bool = False
    """Whether prompts went through the model's chat template."""
    system: str = ""
    """Digest of the system message, as lm-eval writes it; empty without one."""

    @property
    def mean(self) -> float:
        """The mean score."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def interval(self) -> intervals.Interval:
        """Its 95% interval, for other items of the kind: Wilson's where items are right or wrong, else Student's."""
        values = list(self.scores.values())
        if set(values) <= {0.0, 1.0}:
            return intervals.fixed_questions(int(sum(values)), len(values))
        return intervals.mean(values)


@dataclass(frozen=True)
class ModelResults:
    """What one model scored. `digest` is its card's, or empty for a model that is none of ours."""

    name: str
    digest: str
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)
    card_fields: Mapping[str, Any] = field(default_factory=dict)
    """The card's fields that the command line overrode."""


def is_results(name: str) -> bool:
    """Whether a command-line argument names result files, not a card."""
    path = Path(name).expanduser()
    return path.suffix == ".json" or (path.is_dir() and bool(_files(path)))


def read(path: Path) -> ModelResults:
    """A result file, or all result files below a folder; the newest run of a task counts.

    Raises:
        EmEvalsError: no lm-eval results, no samples beside them, or results of several models.
    """
    path = path.expanduser()
    files = [path] if path.is_file() else sorted(_files(path), key=lambda file: file.name)
    if not files:
        raise EmEvalsError("there are no lm-eval results here (results_*.json).", path)
    tasks: dict[str, TaskScores] = {}
    models: dict[tuple[str, str], Path] = {}
    fields: dict[str, Any] = {}
    for file in files:
        data = _load(file)
        models[_model(data, file)] = file
        if len(models) > 1:
            names = " and ".join(name for name, _ in models)
            raise EmEvalsError(
                f"these are results of several models ({names}); name one folder for each.", path
            )
        tasks |= {scores.task: scores for scores in _tasks(data, file)}
        fields = data["config"].get("card_fields") or {}
    (name, digest), *_ = models
    return ModelResults(name, digest, tasks, fields)


def _files(folder: Path) -> list[Path]:
    """Result files below a folder, those of unfinished measurements left out."""
    return [
        file
        for file in folder.rglob("results_*.json")
        if not any(part.endswith(UNFINISHED) for part in file.relative_to(folder).parts)
    ]


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise EmEvalsError(f"this is not JSON ({error.msg}).", file, error.lineno) from None
    if not isinstance(data, dict) or not all(isinstance(data.get(k), dict) for k in ("results", "config")):
        raise EmEvalsError("these are no lm-eval results (no `results` and `config`).", file)
    return data


def _model(data: dict[str, Any], file: Path) -> tuple[str, str]:
    config = data["config"]
    if card := config.get("card"):
        return str(card), str(config.get("card_digest", ""))
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        arguments = arguments.get("peft") or arguments.get("pretrained") or arguments.get("model")
    return str(arguments or data.get("model_name") or file.stem), ""


def _tasks(data: dict[str, Any], file: Path) -> list[TaskScores]:
    """The file's tasks. Groups have no samples of their own and are left out."""
    date = file.stem.rpartition("_")[2]
    found = []
    for task, settings in data.get("configs", {}).items():
        samples = file.with_name(f"samples_{task}_{date}.jsonl")
        if not samples.is_file():
            raise EmEvalsError(
                f"the items of {task} are missing ({samples.name}); run lm-eval with --log_samples.", file
            )
        metric, scores = _read_samples(samples)
        found.append(
            TaskScores(
                task,
                version=str(data.get("versions", {}).get(task)),
                shots=int(data.get("n-shot", {}).get(task, 0)),
                metric=metric,
                scores=scores,
                path=samples,
                chance=(settings.get("metadata") or {}).get("chance"),
                chat=bool(data.get("chat_template_sha")),
                system=str(data.get("system_instruction_sha") or ""),
            )
        )
    return found


def _read_samples(path: Path) -> tuple[str, dict[str, float]]:
    """The metric's name, and each item's score."""
    metric, kept = "", None
    scores: dict[str, float] = {}
    for line, row in read_jsonl(path):
        try:
            kept = row["filter"] if kept is None else kept
            if row["filter"] != kept:  # a task may read its answers in several ways: the first one counts
                continue
            metric = metric or _metric(row)
            scores[f"{row['doc_id']} {row['doc_hash']}"] = float(row[metric])
        except (KeyError, TypeError, ValueError) as error:
            raise EmEvalsError(f"this is no sample of lm-eval ({error!r}).", path, line) from None
    if not scores:
        raise EmEvalsError("this file holds no items.", path)
    return metric, scores


def _metric(row: dict[str, Any]) -> str:
    for name in (*METRICS, *row["metrics"]):
        if isinstance(row.get(name), int | float):
            return str(name)
    raise ValueError("no score")
