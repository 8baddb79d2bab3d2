"""The server's own process: vLLM's OpenAI-compatible server, ended when whoever started it is gone.

`python -m em_evals.models.vllm_main PIPE [vLLM's arguments]`. PIPE is an inherited file descriptor whose other end the
starter holds: when that closes, even by a kill, this process and its children end. (`vllm serve` cannot be used on the
CPU build: it looks for a package named vllm.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_GRACE = 10
"""Seconds to end by oneself."""


def _end_with_starter(pipe: int) -> None:
    os.read(pipe, 1)  # returns when the other end is closed
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Serve until told to stop."""
    pipe = int(sys.argv.pop(1))
    threading.Thread(target=_end_with_starter, args=(pipe,), daemon=True).start()
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    serve()


if __name__ == "__main__":
    main()
