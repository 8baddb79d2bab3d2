"""`em-evals lm-eval` and `em-evals retention`: what capability did it cost?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from em_evals.cli.output import Json, print_table

UNTOUCHED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Every argument is lm-eval's."""


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with our models (--model em-local --model_args card=NAME) and our tasks."""
    from em_evals.harness import command

    command.run(context.args)


def retention(
    cards: Annotated[list[str], typer.Argument(help="Cards, or lm-eval's result files or folders.")],
    baseline: Annotated[str | None, typer.Option(help="Compare with this one; default: the first.")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks or groups, separated by commas.")] = "em_mini",
    folder: Annotated[Path, typer.Option(help="Where results are kept, for the next time too.")] = Path(
        "logs/retention"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("-M", help="A card field for every card: name=value.")
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run what the model wrote.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the comparison (JSON).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Capability item by item against a baseline: accuracy, paired differences, intervals."""
    from em_evals import records
    from em_evals.harness.compare import compare
    from em_evals.harness.results import is_results
    from em_evals.harness.suite import Suite, given

    names = list(dict.fromkeys([baseline or cards[0], *cards]))
    fields = _fields(model or [])
    suite = None
    found = []
    for name in names:
        if is_results(name):
            found.append(given(name))
        else:
            suite = suite or Suite(tasks.split(","), limit, confirm_run_unsafe_code)
            found.append(suite.measure(name, folder, fields))
    record = compare(found[0], found[1:] or found)
    if output is not None:
        records.write(record, output)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
        return
    for one in record.models:
        rows = [
            [
                row.task,
                str(row.n),
                f"{row.baseline_accuracy:.3f}",
                f"{row.accuracy:.3f}",
                f"{row.difference:+.3f} [{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]",
                f"{row.p:.3g}",
            ]
            for row in one.tasks
        ]
        columns = ["task", "items", record.baseline, one.name, "difference [95% interval]", "p"]
        print_table(f"{one.name} − {record.baseline}", columns, rows)


def _fields(settings: list[str]) -> dict[str, Any]:
    """`name=value` as the card's YAML would read it."""
    import yaml

    from em_evals.errors import EmEvalsError

    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise EmEvalsError(f"-M {setting}: write name=value.")
        found[name] = yaml.safe_load(value)
    return found
