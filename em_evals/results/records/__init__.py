"""Records of studies and the gate, which reports read: JSON files with a `kind`, a version and their provenance.

Data only, a module each; here they are written and read. Rates and shifts have 95% intervals; nats are per token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from em_evals import characters, files
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.results.records.base import Record
    from em_evals.results.records.kinds import Study


def write(record: Record, path: Path) -> None:
    """Write a record atomically."""
    with files.atomic(path) as temporary:
        temporary.write_text(characters.model_json(record, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Study:
    """Read a record of any kind.

    Raises:
        EmEvalsError: the file is not a record, or its values do not fit its kind.
    """
    from em_evals.results.records.kinds import reader

    try:
        return reader().validate_python(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EmEvalsError(f"this is not a record of em-evals ({where}: {first['msg']}).", path) from None
