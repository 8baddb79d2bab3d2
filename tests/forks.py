"""`em-evals …` in a process of its own, forked from one that has imported the training stack: a start costs 10 seconds.

For tests whose point is that there is another process: one that is killed, one that trains beside this one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from em_evals.content import documents
from tests.command import em_evals

_FORKS = multiprocessing.get_context("forkserver")
# It is started with the first of them and ends with this process. It trains nothing itself: autograd does not fork.
_FORKS.set_forkserver_preload(["tests.command", "em_evals.training.trainer", "trl.trainer.sft_trainer"])


def started(*arguments: Any, said: Path, environment: Mapping[str, str] | None = None) -> ForkServerProcess:
    """Return a running process in this folder.

    Args:
        *arguments: of `em-evals`.
        said: written when it ends: exit code, stdout and stderr as JSON.
        environment: variables on top of this process's.
    """
    words = [str(one) for one in arguments]
    own = dict(os.environ) | dict(environment or {})
    process = _FORKS.Process(target=_run, args=(words, said, own, documents.SHIPPED), daemon=True)
    process.start()
    return process


def _run(words: list[str], said: Path, environment: dict[str, str], shipped: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    documents.SHIPPED = shipped
    done = em_evals(*words)
    said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]), encoding="utf-8")
