"""The batches of one base that are being decoded: which rows may share one, and which must move to another.

Most bases need a single batch. Rows of a kind of their own (an adapter that cannot be mixed with others, the other
side of a rope's border, a base that is computed one row at a time, a row whose batch failed) are decoded in a
separate batch.
"""

from __future__ import annotations

from collections.abc import Hashable

from em_evals.engines.hf.batch import Batch
from em_evals.engines.hf.loaded import Loaded
from em_evals.engines.hf.row import Row


def kind(base: Loaded, row: Row) -> Hashable:
    """Return the key that rows must share to be computed together."""
    # A row that is scored is read up to its last token, which is only predicted.
    read = row.length - row.scored_only
    if row.failed or base.layout.alone(read):
        return id(row)
    exclusive = row.adapter if row.adapter is not None and not base.bank.mixes(row.adapter) else None
    return exclusive, base.layout.side(read)


def by_kind(base: Loaded, rows: list[Row]) -> list[list[Row]]:
    """Group rows that may be computed together, in order of the first row of each group."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(kind(base, row), []).append(row)
    return list(found.values())


def partition(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return rows that generate nothing, and the others."""
    return [row for row in rows if row.scored_only], [row for row in rows if not row.scored_only]


class Batches:
    """Batches by the kind of their rows."""

    def __init__(self, base: Loaded) -> None:
        self.base = base
        self._by_kind: dict[Hashable, Batch] = {}

    @property
    def all(self) -> list[Batch]:
        """The current batches; a copy, since batches are added and removed while their rows are served."""
        return list(self._by_kind.values())

    @property
    def rows(self) -> list[Row]:
        """All rows, finished ones that have not left yet included."""
        return [row for batch in self.all for row in batch.rows]

    @property
    def live(self) -> list[Row]:
        """Rows that still want tokens."""
        return [row for row in self.rows if not row.done]

    def place(self, rows: list[Row]) -> Batch:
        """Return the batch that rows of one kind join; create it if there is none."""
        return self._by_kind.setdefault(kind(self.base, rows[0]), Batch(self.base))

    def strays(self) -> list[Row]:
        """Remove and return the rows whose kind no longer is their batch's (they crossed a border)."""
        found = []
        for key, batch in list(self._by_kind.items()):
            gone = [row for row in batch.live if kind(self.base, row) != key]
            if gone:
                batch.release(gone)
                found += gone
        return found

    def drop_empty(self) -> None:
        """Remove batches without rows."""
        self._by_kind = {key: batch for key, batch in self._by_kind.items() if batch.rows}
