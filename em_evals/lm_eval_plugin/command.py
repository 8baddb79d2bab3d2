"""lm-eval's own command line with `em-local` registered and our tasks in its index.

lm-eval loads no plugins, so we register first and then call its command with unchanged arguments.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em_evals.content import documents
from em_evals.errors import EmEvalsError, nearest

MODEL = "em-local"

_known: list[str] = []
"""Task names in the index that was built last."""


def task_folders() -> list[Path]:
    """Return the folders of lm-eval tasks in tasks/; the working directory's come last, since later ones win."""
    return [
        folder
        for place in reversed(documents.folders("tasks"))
        for folder in sorted(place.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    ]


def register() -> None:
    """Register `em-local` with lm-eval, and add our folders to its task index."""
    import lm_eval.api.task
    import lm_eval.evaluator
    import lm_eval.tasks
    from lm_eval.api.registry import model_registry

    from em_evals.lm_eval_plugin.model import EmLocal

    model_registry.register(MODEL, target=EmLocal)
    lm_eval.tasks.TaskManager = task_manager_class()
    # `load_from_cache` is called for each task before its prompts are built, whether the option comes from the command
    # line or from a `--config` file.
    lm_eval.api.task.load_from_cache = no_cached_prompts
    if not hasattr(lm_eval.evaluator.evaluate, "checks"):
        lm_eval.evaluator.evaluate = _checked(lm_eval.evaluator.evaluate)


def _checked(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Return lm-eval's `evaluate`, which first lets our model refuse what a task asks for."""

    @functools.wraps(evaluate)
    def run_checked(lm: Any, task_dict: Any, *args: Any, **options: Any) -> Any:
        if hasattr(lm, "check") and isinstance(tasks := task_dict.get("tasks"), dict):
            lm.check(tasks.values())
        return evaluate(lm, task_dict, *args, **options)

    run_checked.checks = True  # type: ignore[attr-defined]
    return run_checked


def no_cached_prompts(file_name: str, cache: bool = False) -> None:
    """Refuse lm-eval's cache of prompts, as `--cache_requests true` or `refresh` asks for it.

    Its key holds neither the few-shot seed nor `--samples` nor the task's text, so that a run could be scored with the
    prompts of another.

    Raises:
        EmEvalsError: the cache is asked for.
    """
    if cache:
        raise EmEvalsError(
            "`--cache_requests` can give this run the prompts of another: lm-eval's cache ignores few-shot "
            "seeds, `--samples` and edited tasks; leave it out."
        )


def task_manager_class() -> Any:
    """Return lm-eval's TaskManager, extended to index our folders before those that the user names."""
    from lm_eval.tasks.manager import TaskManager

    class Tasks(TaskManager):
        def __init__(self, *args: Any, include_path: Any = None, **options: Any) -> None:
            named = include_path if isinstance(include_path, list | tuple) else [include_path]
            paths = [*task_folders(), *(path for path in named if path)]
            super().__init__(*args, include_path=paths, **options)
            _known[:] = self.all_tasks

    return Tasks


def run(arguments: Sequence[str]) -> None:
    """Run `lm_eval` with these arguments.

    Raises:
        EmEvalsError: a task is unknown; the message suggests the nearest.
    """
    from lm_eval.__main__ import cli_evaluate

    register()
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except ValueError as error:
        missing = str(error).removeprefix("Tasks not found: ")
        if missing == str(error):
            raise
        name = missing.split(", ")[0]
        raise EmEvalsError(f"there is no lm-eval task '{name}'; {nearest_task(name)}") from None


def nearest_task(name: str) -> str:
    """Return a hint for a task that is not in the index."""
    hint = nearest(name, _known)
    return hint if hint.startswith("did you mean") else "`em-evals lm-eval ls tasks` shows all."
