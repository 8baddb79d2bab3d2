"""Baselines: the stored evidence of an accepted model, kept in the repository (`logs/baselines/NAME.json`).

Counts, margins and digests; no answers and no weights. The file includes a digest of its own content, which detects
edits by hand.

Beside it stands the anchor, `NAME.anchor.json`: the first model that was saved under this name. Renewing a baseline
never moves its anchor. Without one, a rise of one point per release passes at every release, because each is compared
with the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from em_evals import files
from em_evals.content import validation_errors
from em_evals.errors import EmEvalsError, nearest
from em_evals.gate.evidence import Evidence, Items

FOLDER = Path("logs/baselines")
_FORMAT = "em-evals baseline"
_ANCHOR = ".anchor.json"
_DIGITS = 9
"""Significant digits of stored numbers: finer than any margin, at half a float's length in the file."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["em-evals baseline"]
    version: Literal[1]
    digest: str
    evidence: list[Evidence]


def is_baseline(data: Any) -> bool:
    """Return whether parsed JSON has the layout of a baseline."""
    return isinstance(data, dict) and data.get("format") == _FORMAT


def find(name: str) -> Path:
    """Return the file of a baseline name (logs/baselines/NAME.json), or the path itself."""
    path = Path(name).expanduser()
    named = FOLDER / f"{name}.json"
    return named if not path.exists() and named.is_file() else path


def missing(name: str) -> str:
    """Return the refusal of what is neither a path nor a baseline; empty where the text cannot be a baseline's name."""
    if not re.fullmatch(r"[\w-]+", name) or find(name).exists():
        return ""
    known = [path.stem for path in FOLDER.glob("*.json") if not path.name.endswith(_ANCHOR)]
    return (
        f"there is no file, folder or baseline '{name}' (`--candidate LOG --update-baseline {name}` saves one); "
        f"{nearest(name, known)}"
    )


def anchor_of(name: str) -> Path | None:
    """Return the anchor beside a baseline given by name or path; None if there is none."""
    path = find(name)
    anchor = path.with_suffix(_ANCHOR)
    return anchor if path.suffix == ".json" and path.is_file() and anchor.is_file() else None


def write(name: str, evidence: Sequence[Evidence], anchor: Sequence[Evidence] | None = None) -> Path:
    """Write evidence as a named baseline, atomically; if the name has no anchor yet, write that too.

    Args:
        name: the baseline's name.
        evidence: the accepted model's.
        anchor: the anchor of a new name. None: the baseline that the name had before, else the evidence itself.

    Raises:
        EmEvalsError: the name is not a plain file name, or a file cannot be written.
    """
    path = FOLDER / f"{name}.json"
    if Path(name).name != name or name.startswith(".") or path.with_suffix("").suffix == ".anchor":
        raise EmEvalsError(f"'{name}' cannot be a baseline's name: use letters, digits, '-' and '_'.")
    if not (fixed := path.with_suffix(_ANCHOR)).exists():
        if anchor is None and path.is_file():
            anchor = read(path, files.read_json(path))
        _save(fixed, evidence if anchor is None else anchor)
    _save(path, evidence)
    return path


def _save(path: Path, evidence: Sequence[Evidence]) -> None:
    ordered = sorted(evidence, key=lambda entry: (entry.kind, entry.name, entry.key))
    rows = [rounded(entry).model_dump(mode="json", exclude_none=True) for entry in ordered]
    with files.atomic(path) as temporary:
        data = {"format": _FORMAT, "version": 1, "digest": _digest(rows), "evidence": rows}
        # One line for each piece of evidence, so that a diff shows which one changed.
        text = json.dumps(data | {"evidence": []}, indent=1).replace("[]", "[\n%s\n]")
        temporary.write_text(text % ",\n".join(_compact(row) for row in rows) + "\n", encoding="utf-8")


def read(path: Path, data: dict[str, Any]) -> list[Evidence]:
    """Return the evidence of a parsed baseline file.

    Raises:
        EmEvalsError: it has another version, is damaged, or was edited.
    """
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        key, sentence = validation_errors.explain(error, _File)
        where = ".".join(str(part) for part in key)
        raise EmEvalsError(
            f"this baseline is damaged at '{where}' ({sentence.rstrip('.')}); write it again with --update-baseline.",
            path,
        ) from None
    if file.digest != _digest(data["evidence"]):
        raise EmEvalsError(
            "this baseline was edited by hand (its digest differs); write it again with --update-baseline.",
            path,
        )
    return file.evidence


def rounded(evidence: Evidence) -> Evidence:
    """Return evidence with the digits that a baseline stores, so that a model does not differ from its own baseline."""
    measures = {
        name: measure.model_copy(
            update={"values": {item: float(f"{v:.{_DIGITS}g}") for item, v in measure.values.items()}}
        )
        if isinstance(measure, Items)
        else measure
        for name, measure in evidence.measures.items()
    }
    return evidence.model_copy(update={"measures": measures})


def _digest(rows: Sequence[Any]) -> str:
    return files.digest(*(_compact(row) for row in rows))


def _compact(row: Any) -> str:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Half a character (\ud800 in JSON) is not UTF-8; its escape is the same JSON.
    return text.encode("utf-8", "backslashreplace").decode()
