"""`em-evals data`: question sets and training data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from em_evals.cli.output import Json, echo, print_json, print_table
from em_evals.errors import EmEvalsError


def data_list(as_json: Json = False) -> None:
    """List question sets, training data and judged draws.

    Published sets and published judged draws are listed with them.
    """
    from em_evals.content import documents, published
    from em_evals.data import catalogue, datasets, judged

    rows = [
        {"kind": "questions", "name": name, "where": str(path)}
        for name, path in documents.names("tasks").items()
    ]
    for entry in published.SETS.values():
        try:
            where = str(published.locate(entry.name))
        except EmEvalsError:
            where = f"em-evals data fetch {entry.name}"
        rows.append({"kind": "published", "name": entry.name, "where": where})
    here, registered = datasets.names(), catalogue.read()
    for name in {**registered, **here}:
        origin = registered[name].of if name in registered else None
        where = str(here[name]) if name in here else f"em-evals data fetch {name}"
        made = origin is not None and catalogue.locate(name) is None
        rows.append({"kind": "training", "name": name, "where": f"made of {origin}" if made else where})
    rows += judged.summary(judged.read())
    if as_json:
        print_json(rows)
    else:
        here_is = f"{Path.cwd()}{os.sep}"  # a whole path leaves no room for a table in 80 columns
        shown = [[row["kind"], row["name"], row["where"].removeprefix(here_is)] for row in rows]
        print_table("", ["kind", "name", "where"], shown)


def data_fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Published question sets, training data or judged draws; `all`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for judged draws. Default: the user's cache."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch published questions, training data and judged draws.

    They come from their authors, or from the folder EM_EVALS_DATA; judged draws of real organisms too.
    """
    from em_evals.content import published
    from em_evals.data import catalogue, downloads, judged

    training = [name for name, entry in catalogue.read().items() if entry.url is not None]
    draws = judged.read()
    wanted = [*published.SETS, *training, *draws] if names == ["all"] else names
    if output is not None and (others := [name for name in wanted if name not in draws]):
        raise EmEvalsError(
            f"-o is for judged draws ({', '.join(draws)}); {others[0]} goes to the cache, where its name is looked up."
        )
    rows: list[dict[str, Any]] = []

    def tell(sentence: str, row: dict[str, Any]) -> None:
        rows.append(row)
        if not as_json:
            echo(sentence)

    for name in wanted:
        if name in published.SETS:
            path = str(published.fetch(name))
            tell(f"{name}: {path}", {"kind": "published", "name": name, "path": path})
        elif name in draws:
            got = judged.fetch(name, output)
            tell(str(got), {"kind": "judged", **asdict(got), "path": str(got.path)})
    rest = (name for name in wanted if name not in published.SETS and name not in draws)
    for fetched in downloads.fetch(rest):
        tell(str(fetched), {"kind": "training", **asdict(fetched), "path": str(fetched.path)})
    if as_json:
        print_json(rows)


def data_convert(
    file: Annotated[
        Path, typer.Argument(help="Training data: JSONL, a JSON list or parquet (docs/training-data.md).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The JSONL file to write.")],
    as_json: Json = False,
) -> None:
    """Write training data of any format as JSONL of chats.

    Every format that training reads is converted.
    """
    from em_evals.data.convert import convert

    done = convert(file, output)
    if as_json:
        print_json({**asdict(done), "source": str(done.source), "output": str(done.output)})
        return
    shapes = ", ".join(f"{count} {name}" for name, count in done.formats.items())
    echo(f"{done.output}: {done.rows} rows ({shapes}), digest {done.digest}")
    if done.left_out:
        echo(f"left out, as no model reads them: {', '.join(sorted(done.left_out))}")


def data_check(
    file: Annotated[
        str, typer.Argument(help="A file, or a name: question set, pairs, rubric, card or training data.")
    ],
    as_json: Json = False,
) -> None:
    """Check questions, pairs, rubrics, cards or training data.

    Traits, cues, plans of sweeps and gate.yaml too. What is invalid is reported with file and line, and exit code 2.
    """
    from em_evals.workflows import content_check

    report = content_check.check(file)
    if as_json:
        print_json(report)
    else:
        print_table("", ["what", "value"], [list(row) for row in _lines(report)])


def _lines(report: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield a report's names and values; what holds tables or lists itself takes several lines, `NAME: KEY`."""
    for key, value in report.items():
        if isinstance(value, dict) and any(isinstance(cell, dict | list) for cell in value.values()):
            yield from _lines(value, f"{before}{key}: ")
        elif isinstance(value, dict):
            yield f"{before}{key}", _cell(value)
        elif isinstance(value, list) and any(isinstance(row, dict) for row in value):
            yield from ((f"{before}{key}", _cell(row)) for row in value)
        elif isinstance(value, list) and all(isinstance(cell, str) for cell in value):
            yield f"{before}{key}", ", ".join(value) or "none"
        else:
            yield f"{before}{key}", str(value)


def _cell(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())
