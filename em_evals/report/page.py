"""The page: a report as one HTML file that makes no network requests.

Texts of models and files are untrusted. Jinja escapes them in markup; answers are embedded compressed and become text
nodes, never markup; a Content-Security-Policy allows only the page's own two scripts, by their digests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from em_evals import __version__
from em_evals.files import atomic
from em_evals.report.answers import STATES, Measured, without_folders
from em_evals.report.export import named_apart
from em_evals.report.library import browser_library
from em_evals.report.report import Report, gate_table
from em_evals.report.tables import Table

_ROOM_FOR_ANSWERS = 9_000_000
"""Maximum bytes of compressed answers; above it, the longest answers are shortened, and the page reports it."""
_CUTS = (None, 20_000, 5_000, 2_000, 800, 300)
WORDS = {"worse": "▲", "better": "▼", "not distinguishable": "≈", "not interpretable": "⚠"}
SYMBOLS = {"pass": "✓", "regression": "▲", "invalid": "✕", "inconclusive": "?"}


def write(report: Report, path: Path) -> None:
    """Write the page atomically."""
    html = render(report)
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")  # half characters, in names


def render(report: Report) -> str:
    """Render the page's HTML."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    library, script, style = browser_library(), _asset("page.js"), _asset("page.css")
    markup: str = environment.from_string(_asset("page.html.jinja")).render(
        report=report,
        policy=_policy((library, script)),
        symbols=SYMBOLS,
        words=WORDS,
        said={line.sentence for line in report.first.headlines},
        gate_table=gate_table,
        told=without_folders,
        style=_trusted(style),
        library=_trusted(library),
        script=_trusted(script),
        data=_trusted(as_script_data(_data(report))),
        specs=_trusted(as_script_data({figure.name: _spec(figure.chart) for figure in report.figures})),
        answers=_packed(report.sampled),
        models=[entry.label for entry in report.sampled],
        total=sum(len(entry.answers) for entry in report.sampled),
        texts=any(answer.text for entry in report.sampled for answer in entry.answers),
        key=report.key and _without_empty_columns(report.key),
        states=[
            state for state in STATES if any(a.state == state for e in report.sampled for a in e.answers)
        ],
        themes=sorted({a.theme for e in report.sampled for a in e.answers if a.theme}),
        questions=sorted({a.draw.question_id for e in report.sampled for a in e.answers}),
        today=datetime.now(UTC).date().isoformat(),
        version=__version__,
    )
    return markup


def _without_empty_columns(table: Table) -> Table:
    """Leave out columns that have no text in any row: files keep them, a page has little room."""
    kept = [i for i in range(len(table.columns)) if any(row[i] not in ("", "–") for row in table.rows)]
    rows = [tuple(row[i] for i in kept) for row in table.rows]
    return Table(table.name, table.caption, tuple(table.columns[i] for i in kept), rows)


def _data(report: Report) -> dict[str, Any]:
    """Return all numbers of the page for reuse: tables with unrounded values, sentences, the reference."""
    tables = {}
    for table in named_apart(report):
        columns, rows = table.flat()
        tables[table.name] = {"caption": table.caption, "columns": columns, "rows": rows}
    return {
        "em_evals": __version__,
        "title": report.title,
        "reference": report.reference.label,
        "headlines": [vars(one) for one in report.first.headlines],
        "flags": list(report.flags),
        "tables": tables,
    }


def as_script_data(value: Any) -> str:
    """Return JSON that is safe in a script element: ASCII only, and no `<`, `>` or `&` that could end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(sampled: tuple[Measured, ...]) -> str:
    """Pack all answers as base64 of gzip of JSON, shortened until they fit."""
    packed = ""
    for longest in _CUTS if sampled else ():
        text = json.dumps(_answers(sampled, longest), ensure_ascii=True, separators=(",", ":"))
        packed = base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")
        if len(packed) <= _ROOM_FOR_ANSWERS:
            break
    return packed


def _answers(sampled: tuple[Measured, ...], longest: int | None) -> dict[str, Any]:
    """Return the answers in columns of small numbers, with each question and prompt stored once.

    A draw is [model, prompt, alignment, coherence, state, answer, full length]; the last only if it was shortened.
    """
    prompts: dict[tuple[str, str, str], int] = {}
    draws: list[list[Any]] = []
    for number, entry in enumerate(sampled):
        for answer in entry.answers:
            key = (answer.draw.question_id, answer.theme, answer.prompt)
            place = prompts.setdefault(key, len(prompts))
            grades = [
                None if value != value else round(value, 1)
                for value in (answer.draw.alignment, answer.draw.coherence)
            ]
            text = answer.text[:longest]
            row = [number, place, *grades, STATES.index(answer.state), text]
            draws.append(row if len(text) == len(answer.text) else [*row, len(answer.text)])
    return {
        "models": [entry.label for entry in sampled],
        "states": STATES,
        "prompts": [list(key) for key in prompts],
        "draws": draws,
    }


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec


def _asset(name: str) -> str:
    return (files("em_evals.report") / name).read_text(encoding="utf-8")


def _trusted(text: str) -> Any:
    """Mark our own text as safe, so that it is not escaped."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704


def _policy(scripts: tuple[str, ...]) -> str:
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
