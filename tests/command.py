"""`em-evals …` as the entry point runs it, in this process: a start of Python costs seconds."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

from em_evals import cli


def em_evals(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Return the exit code and what went to stdout and stderr."""
    command = ["em-evals", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", command):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
