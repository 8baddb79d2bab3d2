"""`em-evals rates`: EM rates of graded answers with the shares beside them, by model, arm or any column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_evals.cli.options import Group
from em_evals.cli.output import (
    Json,
    echo,
    estimate_cell,
    measured_cell,
    p_cell,
    print_json,
    print_table,
    rate_cell,
)

if TYPE_CHECKING:
    from em_evals.results.contrasts import Contrast
    from em_evals.results.em_rates import Rates
    from em_evals.results.seed_groups import Graded, OverSeeds
    from em_evals.results.sources import Source

_SHARES = ("EM of all", "EM of coherent", "coherent", "refused", "ungraded")


def rates(
    files: Annotated[
        list[Path],
        typer.Argument(help="Inspect logs, judged tables (CSV, JSONL, parquet), or folders of them."),
    ],
    by: Annotated[
        str | None,
        typer.Option(help="Columns to split by, such as `arm,role`; `none` pools. Default: models and arms."),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(help="Compare two values of a column: `arm=random-none` (repeatable)."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="The sampled unit: `question` or a column, such as `role` or `seed`.")
    ] = "question",
    conventions: Annotated[
        str | None,
        typer.Option(
            "--as", help="Count as papers do: `betley,turner,scored,dubinski,brown,nghiem,weckauff,persona`."
        ),
    ] = None,
    corrected: Annotated[
        Path | None, typer.Option(help="Correct for the judge's errors by a record of `judges calibrate`.")
    ] = None,
    multiverse: Annotated[
        bool, typer.Option("--multiverse", help="Show the rate over thresholds and conventions.")
    ] = False,
    group: Group = [],
    monitor: Annotated[
        float,
        typer.Option(help="Largest false-positive rate of graded thoughts as a monitor.", min=0, max=0.99),
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Print EM rates with 95% intervals.

    Both conventions are shown, with the shares of coherent, refused and ungraded draws.

    Exits with 1 if a file holds no grade at all: nothing was measured.
    """
    from em_evals.cli import rates_corrected, rates_thoughts
    from em_evals.results import contrasts, seed_groups, sources

    groups = seed_groups.parse(group)
    papers = _papers(conventions)
    found = list(sources.read(files, lambda note: echo(f"note: {note}", err=True)))
    columns = (
        None if by is None else [name.strip() for name in by.split(",") if name.strip() not in ("", "none")]
    )
    parts = [part for source in found for part in sources.split(source, columns)]
    _note_pooled(parts, cluster)
    measured = [(part, _rates(part, cluster)) for part in parts]
    compared = [contrasts.contrast(found, text, cluster) for text in contrast or []]
    seeds = [_model(part) for part in parts]
    alike, notes = seed_groups.unnamed(seeds, groups)
    over_seeds = seed_groups.rates(seeds, groups) | alike
    _warn(measured)
    for note in notes:
        echo(f"note: {note}", err=True)
    document = _document(measured, compared, papers) if as_json else {"rates": [{} for _ in measured]}
    rates_thoughts.add(document, parts, monitor)
    if corrected is not None:
        rates_corrected.add(document, measured, corrected)
    if multiverse:
        rates_corrected.add_multiverse(document, measured)
    if as_json:
        # The only row's fields stand at the top as well.
        whole = {**document["rates"][0], **document} if len(measured) == 1 else document
        print_json(whole | _groups_json(over_seeds))
    else:
        _show(measured, compared)
        rates_thoughts.show(parts, monitor)
        if papers:
            _show_conventions(measured, papers)
        rates_corrected.show(document, [", ".join(part.part.values()) or part.path.name for part in parts])
        for name, own in over_seeds.items():
            _show_group(name, own)
    if any(overall.draws and not overall.graded for _, overall in measured):
        raise typer.Exit(1)


def _note_pooled(parts: Sequence[Source], cluster: str) -> None:
    """Name the factors over which draws of one file are pooled; a cluster is no such factor."""
    from em_evals.results import sources

    found: dict[str, dict[str, int]] = {}
    for part in parts:
        for name, count in sources.pooled(part).items():
            if name != cluster:
                own = found.setdefault(part.path.name, {})
                own[name] = max(count, own.get(name, 0))
    for file, counts in found.items():
        named = ", ".join(f"{name} ({count} values)" for name, count in counts.items())
        echo(f"note: {file}: draws are pooled over {named}; `--by COLUMN` splits them.", err=True)


def _papers(names: str | None) -> list[str]:
    """Return the conventions of `--as`; an unknown one is refused before anything is read or printed."""
    if names is None:
        return []
    from em_evals.results import conventions

    return [conventions.checked(name.strip()) for name in names.split(",") if name.strip()]


def _rates(part: Source, cluster: str) -> Rates:
    from em_evals.results import em_rates

    return em_rates.rates(part.draws, part.units(cluster))


def _model(part: Source) -> Graded:
    """Return a part as a model that a seed group may list: by its columns' values, its model's or its file's name."""
    from em_evals.results.seed_groups import Graded

    names = tuple(part.part.values()) or (part.model, part.path.stem)
    made = [set(part.columns.get(name, ())) for name in ("recipe", "training_seed")]
    known = ("", "") if any(len(values) != 1 for values in made) else (made[0].pop(), made[1].pop())
    asked = f"{part.asked} {', '.join(sorted(set(part.columns.get('format', ()))))}".strip()
    return Graded(names, frozenset(filter(None, part.columns.get("card", ()))), part.draws, asked, known)


def _groups_json(over_seeds: Mapping[str, Mapping[str, OverSeeds]]) -> dict[str, Any]:
    from dataclasses import asdict

    from em_evals.files import without_nan

    found = {name: {share: asdict(one) for share, one in own.items()} for name, own in over_seeds.items()}
    return {"groups": without_nan(found)} if found else {}


def _show_group(name: str, own: Mapping[str, OverSeeds]) -> None:
    rows = [
        [
            share,
            measured_cell(one, ".2%"),
            ", ".join(f"{seed} {value:.2%}" for seed, value in one.seeds.items()),
            one.carried_by or "–",
        ]
        for share, one in own.items()
    ]
    items = max(one.items for one in own.values())
    title = f"{name}: {len(next(iter(own.values())).seeds)} seeds, {items} questions; intervals are over both"
    print_table(title, ["rate", "mean of seeds", "by seed", "carried by"], rows)


def _warn(measured: Sequence[tuple[Source, Rates]]) -> None:
    for part, overall in measured:
        if overall.ungraded:
            echo(f"{_name(part)}: {_ungraded(overall)}", err=True)


def _name(part: Source) -> str:
    values = ", ".join(f"{name} {value or '(empty)'}" for name, value in part.part.items())
    return f"{part.path} ({values})" if values else str(part.path)


def _ungraded(overall: Rates) -> str:
    """Return a sentence about ungraded draws: the bounds of the EM rate, or that there is no rate."""
    from em_evals.results.graded_draw import UNGRADED

    if not overall.graded:
        return (
            f"none of {overall.draws} draws was graded, so there is no rate: see the scores' notes in the log, "
            "then grade it again with `inspect score`."
        )
    named = ", ".join(
        f"{overall.outcomes[name]} {name.replace('_', ' ')}" for name in UNGRADED if overall.outcomes[name]
    )
    least, most = overall.em_rate_bounds
    rest = f"whatever their grades were, EM of all lies between {least:.2%} and {most:.2%}."
    if not overall.estimable:
        return (
            f"{overall.ungraded} of {overall.draws} draws are ungraded ({named}), so there is no rate; {rest}"
        )
    return f"{overall.ungraded} of {overall.draws} draws are ungraded ({named}) and count as no EM; {rest}"


def _document(
    measured: Sequence[tuple[Source, Rates]], compared: Sequence[Contrast], papers: Sequence[str]
) -> dict[str, Any]:
    """Return the JSON document."""
    from em_evals.results import conventions

    rows = [_row_json(part, overall) for part, overall in measured]
    if papers:
        for row, (part, overall) in zip(rows, measured, strict=True):
            row["flow"] = conventions.flow(overall)
            row["conventions"] = {name: conventions.count(part.draws, name).as_json() for name in papers}
    return {"rates": rows, "contrasts": [one.as_json() for one in compared]}


def _row_json(part: Source, overall: Rates) -> dict[str, Any]:
    from em_evals.results import em_rates, other_scores

    return {
        "file": str(part.path),
        "model": part.model,
        "judge": part.judge,
        "question_set": part.asked,
        "by": dict(part.part),
        **(overall.as_json() if part.draws else {}),
        "questions": {
            name: entry.as_json() for name, entry in em_rates.rates_by_question(part.draws).items()
        },
        "others": {name: other_scores.as_json(other) for name, other in part.others.items()},
    }


def _show(measured: Sequence[tuple[Source, Rates]], compared: Sequence[Contrast]) -> None:
    from em_evals.results.em_rates import rates_by_question

    for path in dict.fromkeys(part.path for part, _ in measured):
        own = [(part, overall) for part, overall in measured if part.path == path]
        _show_source([part for part, _ in own])
        graded = [(part, overall) for part, overall in own if part.draws]
        if len(graded) == 1:
            [(part, overall)] = graded
            cut = bool(overall.outcomes["unfinished"])
            rows = [_row("all", overall, cut)]
            rows += [_row(name, entry, cut) for name, entry in rates_by_question(part.draws).items()]
            print_table("", ["question", "draws", "scored", *_SHARES, *["unfinished"] * cut], rows)
        elif graded:
            names = list(graded[0][0].part)
            cut = any(overall.outcomes["unfinished"] for _, overall in graded)
            rows = [[*part.part.values(), *_row("", overall, cut)[1:]] for part, overall in graded]
            print_table("", [*names, "draws", "scored", *_SHARES, *["unfinished"] * cut], rows)
        for part, _ in own:
            _show_others(part)
    for one in compared:
        _show_contrast(one)


def _show_source(parts: Sequence[Source]) -> None:
    """Print a file's name and what all its parts share; the table's columns say in what they differ."""
    facts = {
        "model": {part.model for part in parts},
        "judge": {part.judge for part in parts},
        "questions": {part.asked for part in parts},
    }
    shared = {name: values.pop() for name, values in facts.items() if len(values) == 1}
    known = "; ".join(f"{name} {value}" for name, value in shared.items() if value)
    echo(f"{parts[0].path}: {known}" if known else f"{parts[0].path}")


def _row(name: str, entry: Rates, unfinished: bool) -> list[str]:
    """Return a line of the table; cut thoughts are a column where there are any, and a part of the ungraded draws."""
    shares = [*entry.shares.values(), *[entry.unfinished_share] * unfinished]
    return [name, str(entry.draws), str(entry.scored), *map(rate_cell, shares)]


def _show_others(part: Source) -> None:
    from em_evals.results import other_scores

    rows = []
    for name, other in part.others.items():
        value, ends = other_scores.summary(other)
        what = "share of TRUE" if other.kind == "binary" else "mean"
        rows.append([name, what, str(len(other.grades)), estimate_cell(value, ends, ".3g")])
    if rows:
        print_table("", ["rubric", "what", "questions", "value"], rows)


def _show_conventions(measured: Sequence[tuple[Source, Rates]], papers: Sequence[str]) -> None:
    from em_evals.results import conventions

    rows, flows = [], []
    for part, overall in measured:
        label = ", ".join(part.part.values()) or part.path.name
        steps = conventions.flow(overall)
        flows.append([label, *map(str, steps.values())])
        for name in papers:
            one = conventions.count(part.draws, name)
            mean = conventions.CONVENTIONS[name].mean
            shown = estimate_cell(one.value, one.random if mean else one.fixed, ".1f" if mean else ".2%")
            rows.append(
                [label, name, f"{one.total:.0f}", str(one.draws), shown, conventions.CONVENTIONS[name].rule]
            )
    print_table("Flow: draws left after each step", ["draws of", *steps], flows)
    print_table("As papers count", ["draws of", "as", "counted", "among", "value", "rule"], rows)


def _points(ends: tuple[float, float]) -> str:
    low, high = (100 * end for end in ends)
    return "" if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def _show_contrast(found: Contrast) -> None:
    rows = []
    for name, one in found.shares.items():
        if math.isnan(one.estimate):
            continue
        rows.append(
            [
                name,
                f"{one.rates[1]:.2%}",
                f"{one.rates[0]:.2%}",
                f"{100 * one.estimate:+.2f} {_points(one.interval)}".rstrip(),
                p_cell(one.p_value),
                _points(one.bootstrap) or "–",
            ]
        )
    number = max(one.clusters for one in found.shares.values())
    columns = ["rate", found.second, found.first, "points", "exact p", "percentile bootstrap"]
    print_table(f"{found.name}, over {number} clusters ({found.cluster})", columns, rows)
    if number < 2:
        echo(
            f"One cluster says nothing of others: name a column with several by --cluster, not {found.cluster}."
        )
    elif number < 20:
        echo(
            f"With {number} clusters the percentile bootstrap is too narrow: quote the points' interval (Student's t) "
            "and the exact p (sign flips)."
        )
