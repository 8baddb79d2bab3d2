"""What the benchmarks share: a process for each measurement, and a record of the numbers with what made them."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


def in_own_process(script: str, *arguments: str, checkout: Path | None = None) -> dict:
    """Run a script and return the JSON of its last line; end here with its errors if it fails.

    `checkout` is the folder whose em_evals the script imports; None: the installed one.

    `stolen` beside it is the share of the processors' time that the host kept for others meanwhile: a virtual machine
    looks idle then, and times that were taken with much of it say little.
    """
    before, started = stolen(), time.monotonic()
    environment = os.environ if checkout is None else os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    share = (stolen() - before) / (time.monotonic() - started) / (os.cpu_count() or 1)
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"stolen": round(share, 3)}


def least_disturbed(script: str, *arguments: str, most: float = 0.05, attempts: int = 3) -> dict:
    """`in_own_process`, again where the host kept more than `most` of the processors; `attempts` says how often.

    The least disturbed run counts, whatever it measured.
    """
    tried: list[dict] = []
    while not tried or (tried[-1]["stolen"] > most and len(tried) < attempts):
        tried.append(in_own_process(script, *arguments))
    return min(tried, key=lambda run: run["stolen"]) | {"attempts": len(tried)}


def stolen() -> float:
    """Seconds, over all processors, that the host has kept since the start; 0 where the kernel does not tell."""
    file = Path("/proc/stat")
    if not file.is_file():
        return 0.0
    ticks = file.read_text().splitlines()[0].split()
    return int(ticks[8]) / os.sysconf("SC_CLK_TCK")


def save(path: Path, packages: tuple[str, ...], **numbers: object) -> None:
    """Write numbers with the date, the machine and the packages' versions."""
    import torch

    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {name: version(name) for name in (*packages, "torch", "transformers", "em-evals")},
        **numbers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
