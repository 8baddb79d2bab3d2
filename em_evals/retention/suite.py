"""Run a suite on cards, task by task; finished tasks are kept, and an interrupted run resumes after them.

Results are lm-eval's own files, in one folder per card, digest and task. A retrained adapter, a new task version or
other items get a new folder, so old results are never reused for them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from em_evals import files, locks
from em_evals.content.cards import ResolvedCard, nested, resolve
from em_evals.errors import EmEvalsError
from em_evals.lm_eval_plugin import command
from em_evals.results.folders import UNFINISHED
from em_evals.retention import scores
from em_evals.retention.scores import ModelResults, TaskScores

SUITE = ("em_mini",)


@dataclass(frozen=True)
class Planned:
    """A task to run: lm-eval's name and version, number of items (None: all), whether to use the chat template."""

    task: str
    version: str
    items: str
    """Digest of all its items."""
    limit: int | None
    chat: bool


class Suite:
    """Tasks by name, with groups expanded.

    Args:
        names: tasks and groups, ours or lm-eval's.
        limit: use only the first `limit` items of each task; default: a group's own `metadata: limits`, else all.
        unsafe: allow tasks that run generated code.

    Raises:
        EmEvalsError: a task is unknown (the message suggests the nearest) or cannot be loaded.
    """

    def __init__(self, names: Sequence[str] = SUITE, limit: int | None = None, unsafe: bool = False) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about each of our tasks
        kind = command.task_manager_class()
        self._manager = kind(
            include_defaults=False
        )  # indexing lm-eval's thousands of files takes half a minute
        if any(name not in self._manager.task_index for name in names) or "em_retention" in names:
            self._manager = kind()
        for name in names:
            if name not in self._manager.task_index:
                raise EmEvalsError(f"there is no lm-eval task '{name}'; {command.nearest_task(name)}")
        self._unsafe = unsafe
        if unsafe:
            os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # HumanEval's metric requires a second opt-in
        try:
            loaded = self._manager.load(list(names))
        except (OSError, ValueError, ImportError) as error:
            reason = next(iter(str(error).strip().splitlines()), error.__class__.__name__)
            raise EmEvalsError(
                f"the tasks {', '.join(names)} cannot be loaded ({reason[:200]}); lm-eval's own come from the hub, and "
                "humaneval needs --confirm-run-unsafe-code."
            ) from None
        self._loaded = list(loaded["tasks"].values())
        limits = _limits(loaded.get("groups", {}))
        self.tasks = [
            Planned(
                name,
                _version(task),
                _items(task),
                limit or limits.get(name),
                bool(_metadata(task).get("chat")),
            )
            for name, task in loaded["tasks"].items()
        ]

    def reserve(self, name: str, folder: Path, fields: Mapping[str, Any] | None = None) -> None:
        """Announce a card that will be measured, so that the engine reserves capacity for it; see `measure`."""
        from em_evals.engines.pool import reserve

        card = resolve(name, fields)
        if not all(_place(folder, card, planned).is_dir() for planned in self.tasks):
            reserve(card)

    def measure(self, name: str, folder: Path, fields: Mapping[str, Any] | None = None) -> ModelResults:
        """Return a card's results; tasks without stored results are measured now.

        Args:
            name: a card's name, as in `local/NAME`.
            folder: the folder of stored results.
            fields: card fields that override the file's.

        Raises:
            EmEvalsError: the card is invalid, or a stored result does not match its folder's name.
        """
        card = resolve(name, fields)
        model = None
        found = {}
        for number, planned in enumerate(self.tasks, start=1):
            place = _place(folder, card, planned)
            if not place.is_dir():
                with locks.alone(place):
                    if not place.is_dir():  # another process may have measured it meanwhile
                        model = model or self._model(name, fields)
                        Console(stderr=True).print(
                            f"{name}: {planned.task} ({number} of {len(self.tasks)})",
                            highlight=False,
                            markup=False,
                        )
                        self._run(model, planned, place)
            found[planned.task] = _stored(place, planned, card)
        return ModelResults(name, card.digest, found)

    def _model(self, name: str, fields: Mapping[str, Any] | None) -> Any:
        from em_evals.lm_eval_plugin.model import EmLocal

        # Nested, because a plain `device` argument is lm-eval's own, whose default cuda:0 the card overrides.
        model = EmLocal(name, **nested(fields or {}))
        model.check(self._loaded)
        return model

    def _run(self, model: Any, planned: Planned, place: Path) -> None:
        """Run one task; its folder appears atomically."""
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker

        for left in place.parent.glob(f".{place.name}.*{UNFINISHED}"):
            shutil.rmtree(
                left, ignore_errors=True
            )  # of runs that were killed: whoever holds the lock is alone
        scratch = Path(tempfile.mkdtemp(UNFINISHED, f".{place.name}.", place.parent))
        try:
            tracker = EvaluationTracker(output_path=str(scratch / "results.json"))
            measured = simple_evaluate(
                model,
                tasks=[planned.task],
                task_manager=self._manager,
                limit=planned.limit,
                apply_chat_template=planned.chat,
                fewshot_as_multiturn=planned.chat,
                bootstrap_iters=0,
                evaluation_tracker=tracker,
                confirm_run_unsafe_code=self._unsafe,
            )
            samples = measured.pop("samples")
            tracker.save_results_aggregated(results=measured, samples=samples)
            tracker.save_results_samples(task_name=planned.task, samples=samples[planned.task])
            scores.read(scratch)  # lm-eval logs write failures without raising
            try:
                scratch.replace(place)
            except OSError:
                if (
                    not place.is_dir()
                ):  # else a process without our locks (another host) was faster: its result stays
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def given(path: str) -> ModelResults:
    """Read results that were measured elsewhere, by path.

    Raises:
        EmEvalsError: their card now has another digest.
    """
    found = scores.read(Path(path))
    try:
        now = resolve(found.name, found.card_fields).digest if found.digest else ""
    except EmEvalsError:
        return found  # the card is not on this machine
    if now != found.digest:
        raise EmEvalsError(
            f"these results are of {found.name} with the digest {found.digest}, but the card's is {now}: measure it "
            f"again with `em-evals retention {found.name}`.",
            path,
        )
    return found


def _stored(place: Path, planned: Planned, card: ResolvedCard) -> TaskScores:
    stored = scores.read(place)
    found = stored.tasks.get(planned.task)
    if found is None or (stored.digest, found.version) != (card.digest, planned.version):
        raise EmEvalsError(
            f"these results are not {planned.task} {planned.version} of {card.name} with the digest {card.digest}, as "
            "their folder's name states; delete it to measure again.",
            place,
        )
    return found


def _place(folder: Path, card: ResolvedCard, planned: Planned) -> Path:
    """Return the folder of a card's results on a task."""
    own = re.sub(r"[^A-Za-z0-9_.@-]+", "_", card.name).strip("_")
    limit = f"-first{planned.limit}" if planned.limit is not None else ""
    return folder / f"{own}-{card.digest}" / f"{planned.task}-v{planned.version}-{planned.items}{limit}"


def _metadata(task: Any) -> dict[str, Any]:
    return dict(task.config.metadata or {}) if getattr(task, "config", None) is not None else {}


def _version(task: Any) -> str:
    return str(_metadata(task).get("version", task.VERSION))


def _items(task: Any) -> str:
    """Return a short digest of a task's items: our pair files can change without a new lm-eval task version."""
    rows = json.dumps(list(task.eval_docs), sort_keys=True, default=lambda value: type(value).__name__)
    return files.digest(rows)[:8]


def _limits(groups: Mapping[str, Any]) -> dict[str, int]:
    """Return each task's limit, from the groups' metadata."""
    found: dict[str, int] = {}
    for group in groups.values():
        for child, limit in ((group.metadata or {}).get("limits") or {}).items():
            member = group.get(child)
            for task in member.get_all_tasks() if hasattr(member, "get_all_tasks") else [member]:
                if task is not None:
                    found[task.task_name] = limit
    return found
