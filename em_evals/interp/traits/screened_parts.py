"""What is read of the chunks of a screened file, kept so that an interrupted screening resumes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from em_evals import files
from em_evals.interp import kept_tensors


@dataclass(frozen=True, eq=False)
class Part:
    """What is read of some rows: of those that fit the model's context.

    Attributes:
        lines: int64 [rows].
        tokens: int64 [rows], of each answer.
        values: float32 [rows, 3, directions]: h·u at the last prompt token, its mean over the row's answer, and over
            the model's own (NaN without one).
    """

    lines: NDArray[np.int64]
    tokens: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def is_whole(self) -> bool:
        """Whether there are values for each line."""
        return self.values.ndim == 3 and self.lines.shape == self.tokens.shape == self.values.shape[:1]


class Parts:
    """The chunks that were read so far, a file each.

    Args:
        folder: where they are kept; None keeps nothing.
        identity: what decides a chunk's numbers, beside its rows: model, directions, block.
    """

    def __init__(self, folder: Path | None, *identity: bytes) -> None:
        self._folder, self._identity = folder, identity

    def part(self, rows: object, read: Callable[[], Part]) -> Part:
        """Return what is read of rows: from the folder where it is there, else now.

        Args:
            rows: the rows, whose repr identifies them.
            read: reads them.

        Raises:
            EmEvalsError: the folder cannot be written; and what `read` raises.
        """
        if self._folder is None:
            return read()
        from safetensors.numpy import save_file

        path = self._folder / f"{files.digest(*self._identity, repr(rows))}.safetensors"
        kept = kept_tensors.load(path, Part.__dataclass_fields__)
        if kept is not None and (part := Part(**kept)).is_whole:
            return part
        found = read()
        with files.atomic(path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in vars(found).items()}, temporary)
        return found


def forget(folder: Path) -> None:
    """Delete the parts in a folder, and the folder where nothing else is in it."""
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
