"""The server's own process: vLLM's OpenAI-compatible server, which ends when its starter is gone.

`python -m em_evals.engines.vllm.main PIPE [vLLM's arguments]`. PIPE is an inherited file descriptor whose other end the
starter holds: when that closes, even by a kill, this process and its children end. (`vllm serve` cannot be used with
the CPU build: it looks for a package named vllm.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

_GRACE = 10
"""Seconds from SIGTERM to SIGKILL."""
FETCHED = "em-evals: vLLM starts"
"""A line of the log: the base is downloaded, so a start that takes long from now on hangs."""
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]


def _end_with_starter(pipe: int) -> None:
    os.read(pipe, 1)  # returns when the other end is closed
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(0, signal.SIGKILL)


def _fetch(arguments: list[str]) -> None:
    """Download a base from the hub before vLLM does (it may take hours); vLLM reports what cannot be downloaded."""
    from huggingface_hub import snapshot_download

    model, revision = (
        arguments[arguments.index(name) + 1] if name in arguments else None
        for name in ("--model", "--revision")
    )
    if model is not None and not Path(model).is_dir():
        with contextlib.suppress(Exception):
            snapshot_download(model, revision=revision, allow_patterns=_FILES, ignore_patterns="original/*")


def _look_at_models_here() -> None:
    """On a CPU, let vLLM look at a model's class in this process.

    It starts a process of its own for that, to keep CUDA out of this one: the first start with a kind of model takes
    ten seconds more.
    """
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        registry._run_in_subprocess = lambda look: look()


def main() -> None:
    """Run the server until it is stopped."""
    pipe = int(sys.argv.pop(1))
    threading.Thread(target=_end_with_starter, args=(pipe,), daemon=True).start()
    _fetch(sys.argv[1:])
    sys.stdout.write(f"{FETCHED}\n")
    sys.stdout.flush()
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    _look_at_models_here()
    serve()


if __name__ == "__main__":
    main()
