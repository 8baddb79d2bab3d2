"""What a user has made must not be read by tests: trained adapters and logs in the checkout, and the user's caches.

`make demo` before `make test` would change results otherwise. Tests work in folders of their own, on a copy of the
content that ships (`shipped`); a watch on every file that is opened or folder that is listed (`Watch`) fails those
that look elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LISTED = ("os.listdir", "os.scandir")
_COMMITTED = {"adapters": ("data",), "logs": ("README.md", "baselines"), "runs": ()}
"""Folders of a checkout that fill up as it is used, and what is committed in them."""


def shipped(root: Path, folder: Path) -> Path:
    """Copy the content that goes into the wheel; of a git checkout only what git knows, not a user's own cards."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    known = _tracked(root)
    for pattern in project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]:
        if pattern.startswith("em_evals/"):
            continue
        for source in root.glob(pattern):
            name = source.relative_to(root)
            if known is None or name.as_posix() in known:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
    return folder


def _tracked(root: Path) -> set[str] | None:
    """The files that git knows; None where there is no git or no checkout."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    return set(listed.stdout.split("\0")) if listed.returncode == 0 else None


class Watch:
    """A list of what was read and belongs to the user. Python cannot remove an audit hook: `install` once a process.

    Args:
        root: the checkout.
        caches: the user's cache folders.
        allowed: folders inside these that tests share with the user on purpose.
    """

    def __init__(self, root: Path, caches: Iterable[Path], allowed: Iterable[Path] = ()) -> None:
        self.seen: list[str] = []
        self._root = f"{root}{os.sep}"
        self._caches = tuple(f"{path}{os.sep}" for path in caches)
        self._allowed = tuple(f"{path}{os.sep}" for path in allowed)

    def install(self) -> None:
        """Begin to watch this process."""
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record what Python is about to open or list."""
        if event != "open" and event not in _LISTED:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        # Links are not followed: those of ours lead to what tests share with the user.
        if self.forbids(os.path.abspath(path), event in _LISTED):  # noqa: PTH100
            self.seen.append(str(path))

    def forbids(self, path: str, listed: bool = False) -> bool:
        """Whether a path is the user's: a file, or (`listed`) a folder whose entries are read."""
        inside = f"{path}{os.sep}"
        if inside.startswith(self._caches):
            return not inside.startswith(self._allowed)
        if not inside.startswith(self._root):
            return False
        room, _, rest = inside.removeprefix(self._root).partition(os.sep)
        committed = _COMMITTED.get(room)
        if committed is None:
            return False
        first, _, deeper = rest.partition(os.sep)
        if not first:
            return listed
        return first not in committed and not (room == "adapters" and not deeper and first.endswith(".yaml"))
