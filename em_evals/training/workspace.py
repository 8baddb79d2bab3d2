"""A training's folder while it runs, so that an interrupted run resumes and an adapter is published atomically.

Next to the adapter's folder is `.NAME.training` with the run's identity, its journal, the kept checkpoints and the
trainer's last states. The same command finds it and resumes from the last complete state; another recipe restarts.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from em_evals import files
from em_evals.errors import EmEvalsError

_OPTIMIZER = "optimizer.pt"
_SHARDED_OPTIMIZER = ("optimizer.bin", "optimizer_0/.metadata")
_SHARDED_MODEL = ("pytorch_model_fsdp.bin", "pytorch_model_fsdp_0/.metadata")
"""Files that accelerate writes under FSDP, with a full or a sharded state dict; torch writes `.metadata` last."""


class Workspace:
    """The working folder of one training.

    Args:
        home: the result's folder.
        identity: digest of everything that determines the result.
    """

    def __init__(self, home: Path, identity: str) -> None:
        self.home = home
        self.folder = home.parent / f".{home.name}.training"
        self.journal = self.folder / "training.jsonl"
        self.states = self.folder / "states"
        self.kept = self.folder / "checkpoints"
        self._run = self.folder / "run.json"
        self._identity = identity
        self._lock = FileLock(self.folder.with_suffix(".lock"))

    def open(self) -> None:
        """Prepare the folder; keep what a killed run with the same identity left. One process calls this.

        Raises:
            EmEvalsError: another process is training the same adapter, or the folder is not writable.
        """
        try:
            self.home.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            if _known(self._run) != self._identity:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir()
                with files.atomic(self._run) as temporary:
                    temporary.write_text(json.dumps(self._identity), encoding="utf-8")
        except Timeout:
            raise EmEvalsError(f"another process is training {self.home.name} now; wait for it.") from None
        except OSError as error:
            raise EmEvalsError(
                f"cannot write here ({error.strerror}); free or choose another place.", self.folder
            ) from None

    def last_state(self) -> Path | None:
        """Return the trainer's latest complete state, to resume from; incomplete ones are skipped."""
        found = {
            int(path.name.removeprefix("checkpoint-")): path
            for path in self.states.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdecimal() and _complete(path)
        }
        return found[max(found)] if found else None

    def publish(self, result: Path) -> None:
        """Move a finished result into place and delete the working folder.

        Until the result is in place the folder stays whole, so that the same command can resume. Then its identity is
        deleted first: leftovers of a kill after that point are never resumed.
        """
        shutil.copy2(self.journal, result / "training.jsonl")
        if self.kept.is_dir():
            shutil.copytree(self.kept, result / "checkpoints", copy_function=_linked)
        old = self.home.parent / f".{self.home.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.home.exists():
            self.home.rename(old)
        result.rename(self.home)
        self._run.unlink()
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def check_place(home: Path, overwrite: bool) -> None:
    """Check that a result may be written there: it may replace only a training's own result, and only if allowed.

    Raises:
        EmEvalsError: something else is there, or an adapter without `overwrite`.
    """
    there = sorted(path.name for path in home.iterdir()) if home.is_dir() else [home.name] * home.exists()
    if there and not {"training.json", "adapter_config.json"} & set(there):
        named = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise EmEvalsError(
            f"{home} is not an adapter's folder, and its contents ({named}) would be lost; choose another."
        )
    if there and not overwrite:
        raise EmEvalsError(f"{home} already holds an adapter; pass --overwrite to train it again.")


def identity(*parts: Any) -> str:
    """Return a digest of JSON values."""
    return files.digest(*[json.dumps(part, sort_keys=True) for part in parts])


def _linked(source: str, target: str) -> None:
    """Hard-link a file; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _known(run: Path) -> Any:
    """Return the identity in a run's file; None where there is no file, or an incomplete one."""
    try:
        return files.read_json(run)
    except EmEvalsError:
        return None


def sharded(state: Path) -> bool:
    """Check whether a state was written under FSDP; a run with FSDP cannot load a state without it, and vice versa."""
    return any((state / name).is_file() for name in _SHARDED_OPTIMIZER)


def _complete(state: Path) -> bool:
    """Check whether a state is complete: trainer_state.json is written last, and may itself be truncated by a kill."""
    try:
        files.read_json(state / "trainer_state.json")
    except EmEvalsError:
        return False
    model = any((state / name).is_file() for name in _SHARDED_MODEL)
    optimizer = (sharded(state) and model) or (state / _OPTIMIZER).is_file()
    return optimizer and (state / "scheduler.pt").is_file()
