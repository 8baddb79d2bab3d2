"""Rows of training data read on a Ray cluster: Ray Data spreads chunks of a file over actors that hold the model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.sweep.ray import Request, joined

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.interp.traits.screen import Elsewhere, Floats
    from em_evals.interp.traits.screened_parts import Part

_BLOCKS = 200
"""Of Ray's: chunks of a large file are grouped, so that its scheduler has few things to follow."""


def screener(
    card: ResolvedCard, layer: int, address: str | None, request: Request, count: int | None
) -> Elsewhere:
    """Return a reader of files for `traits.screen.screen`.

    Args:
        card: the model that reads; every node must see its files, and the file that is read, under the same paths.
        layer: the block.
        address: `ray://HOST:PORT`, or None for the cluster that this machine belongs to.
        request: what each actor needs.
        count: actors; None: as many as the cluster holds.

    Raises:
        EmEvalsError: no cluster answers, or no node can hold an actor.
    """
    number = joined(address, request, count)

    def read(along: Floats, path: Path, chunk: int) -> Iterator[Part]:
        import ray.data
        from ray.exceptions import RayError

        from em_evals.interp.traits import row_files
        from em_evals.interp.traits.screened_parts import Part

        if not path.is_file():
            raise EmEvalsError("a cluster reads files that every node sees; write the rows to one.", path)
        places = row_files.places(path, chunk)
        if not places:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        asked = [{"offset": offset, "before": before} for offset, before in places]
        rows = ray.data.from_items(asked, override_num_blocks=max(1, min(len(asked), _BLOCKS))).map_batches(
            _Screener,
            fn_constructor_args=(card, along, layer, str(path.absolute()), chunk, str(Path.cwd())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=number),
            num_cpus=request.cpus,
            num_gpus=request.gpus,
        )
        shape = (-1, 3, len(along))
        try:
            for row in rows.iter_rows():
                if row["problem"]:
                    what, line = json.loads(row["problem"])
                    raise EmEvalsError(what, path, line)
                yield Part(
                    np.frombuffer(row["lines"], dtype=np.int64),
                    np.frombuffer(row["tokens"], dtype=np.int64),
                    np.frombuffer(row["values"], dtype=np.float32).reshape(shape),
                )
        except RayError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise EmEvalsError(f"Ray could not read the rows: {reason}") from None

    return read


class _Screener:
    """The actor's code: a chunk's place in the file in, its numbers out."""

    def __init__(
        self, card: ResolvedCard, along: Floats, layer: int, path: str, chunk: int, home: str
    ) -> None:
        from em_evals.interp.traits.screen import RowReader

        # A card may name its base by a path from where the command was started.
        os.chdir(home)
        self._reader, self._path, self._chunk = RowReader(card, along, layer), Path(path), chunk

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"lines": [], "tokens": [], "values": [], "problem": []}
        for offset, before in zip(batch["offset"], batch["before"], strict=True):
            for name, value in self._read(int(offset), int(before)).items():
                found[name].append(value)
        return found

    def _read(self, offset: int, before: int) -> dict[str, bytes | str]:
        from em_evals.interp.traits.screen import rows_at

        try:
            part = self._reader.read(rows_at(self._path, offset, before, self._chunk))
        except EmEvalsError as error:  # told as data: Ray would wrap it, and print how it came about
            return {
                "lines": b"",
                "tokens": b"",
                "values": b"",
                "problem": json.dumps([error.what, error.line]),
            }
        return {name: getattr(part, name).tobytes() for name in ("lines", "tokens", "values")} | {
            "problem": ""
        }
