"""Rows of data read on a Ray cluster: Ray Data spreads chunks over actors that hold the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_evals.errors import EmEvalsError
from em_evals.sweep.ray import Request, joined

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.interp.extraction.activations import GroupSums
    from em_evals.interp.extraction.chunks import Elsewhere, Wanted
    from em_evals.interp.extraction.prefix_tree import Position, Text
    from em_evals.interp.traits import screen
    from em_evals.interp.traits.screen import Floats
    from em_evals.interp.traits.screened_parts import Part

_BLOCKS = 200
"""Of Ray's: chunks of a large file are grouped, so that its scheduler has few things to follow."""
_SUMS = ("counts", "vectors", "norms")


def screener(
    card: ResolvedCard, layer: int, address: str | None, request: Request, count: int | None
) -> screen.Elsewhere:
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
        from em_evals.data import row_files
        from em_evals.interp.traits.screened_parts import Part

        if not path.is_file():
            raise EmEvalsError("a cluster reads files that every node sees; write the rows to one.", path)
        asked = [{"offset": offset, "before": before} for offset, before in row_files.places(path, chunk)]
        made = (card, along, layer, str(path.absolute()), chunk, str(Path.cwd()))
        shape = (-1, 3, len(along))
        for row in _mapped(_Screener, made, asked, number, request):
            if row["problem"]:
                what, line = json.loads(row["problem"])
                raise EmEvalsError(what, path, line)
            yield Part(
                np.frombuffer(row["lines"], dtype=np.int64),
                np.frombuffer(row["tokens"], dtype=np.int64),
                np.frombuffer(row["values"], dtype=np.float32).reshape(shape),
            )

    return read


def extractor(
    card: ResolvedCard, position: Position, address: str | None, request: Request, count: int | None
) -> Elsewhere:
    """Return a reader of texts for `extraction.extract.extract`.

    Args:
        card: names the base; every node must see its files, and those of all cards that read, under the same paths.
        position: which tokens of a text are averaged.
        address: `ray://HOST:PORT`, or None for the cluster that this machine belongs to.
        request: what each actor needs.
        count: actors; None: as many as the cluster holds.

    Raises:
        EmEvalsError: no cluster answers, or no node can hold an actor.
    """
    number = joined(address, request, count)

    def read(wanted: Wanted, advance: Callable[[int], None]) -> list[GroupSums]:
        from em_evals.interp.extraction.chunks import Merging, chunks

        # Texts that several cards read are sent once.
        readers: dict[tuple[Text, ...], list[int]] = {}
        for place, (_, texts) in enumerate(wanted):
            readers.setdefault(tuple(texts), []).append(place)
        sides = [(chunks(texts), places) for texts, places in readers.items()]
        asked = [
            {"texts": json.dumps([astuple(text) for text in chunk]), "readers": json.dumps(places)}
            for pieces, places in sides
            for chunk in pieces
        ]
        made = (card, [reader for reader, _ in wanted], position, str(Path.cwd()))
        rows = _mapped(_Extractor, made, asked, number, request)
        found = [Merging(texts) for _, texts in wanted]
        for pieces, places in sides:
            for chunk in pieces:
                for place in places:  # a row for each reader
                    found[place].add(_sums(next(rows)))
                    advance(len(chunk))
        return [one.sums for one in found]

    return read


def _sums(row: dict[str, Any]) -> GroupSums:
    """Return the sums that an actor read.

    Raises:
        EmEvalsError: what the actor refused.
    """
    from em_evals.interp.extraction.activations import GroupSums

    if row["problem"]:
        raise EmEvalsError(row["problem"])
    groups = tuple(json.loads(row["groups"]))
    norms = np.frombuffer(row["norms"], dtype=np.float32).reshape(len(groups), -1)
    vectors = np.frombuffer(row["vectors"], dtype=np.float32).reshape(*norms.shape, -1)
    return GroupSums(groups, np.frombuffer(row["counts"], dtype=np.float64), vectors, norms)


def _mapped(
    actor: type, made: tuple[Any, ...], asked: list[dict[str, Any]], number: int, request: Request
) -> Iterator[dict[str, Any]]:
    """Yield the rows that actors make of what they are asked, in order.

    Args:
        actor: its class; called with a batch.
        made: its arguments.
        asked: a row for each call.
        number: of actors.
        request: what each needs.

    Raises:
        EmEvalsError: Ray failed.
    """
    import ray.data
    from ray.exceptions import RayError

    if not asked:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = ray.data.from_items(asked, override_num_blocks=max(1, min(len(asked), _BLOCKS))).map_batches(
        actor,
        fn_constructor_args=made,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=number),
        num_cpus=request.cpus,
        num_gpus=request.gpus,
    )
    try:
        yield from rows.iter_rows()
    except RayError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise EmEvalsError(f"Ray could not read the rows: {reason}") from None


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


class _Extractor:
    """The actor's code: texts in, the sums that each of some cards reads of them out."""

    def __init__(
        self, card: ResolvedCard, readers: list[ResolvedCard | None], position: Position, home: str
    ) -> None:
        from em_evals.interp.extraction.reading import Reading

        os.chdir(home)
        self._reading, self._readers, self._position = Reading(card), readers, position

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for texts, places in zip(batch["texts"], batch["readers"], strict=True):
            for place in json.loads(places):
                # One at a time: a column of a table holds 2 GiB, and sums of a large base may be half of that.
                row = self._read(json.loads(texts), self._readers[place])
                yield {name: [value] for name, value in row.items()}

    def _read(self, texts: list[Any], reader: ResolvedCard | None) -> dict[str, bytes | str]:
        from em_evals.interp.extraction.activations import group_sums
        from em_evals.interp.extraction.prefix_tree import Text

        rows = [Text(tuple(prompt), tuple(answer), group) for prompt, answer, group in texts]
        try:
            with self._reading.read_as(reader) as model:
                sums = group_sums(model, rows, self._position)
        except EmEvalsError as error:  # as data, like a screener's
            return {"groups": "", "problem": str(error)} | dict.fromkeys(_SUMS, b"")
        return {"groups": json.dumps(sums.groups), "problem": ""} | {
            name: getattr(sums, name).tobytes() for name in _SUMS
        }
