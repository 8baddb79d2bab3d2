"""`em-evals lm-eval` and `em-evals retention`: the capability cost of a fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.output import Json, echo, estimate_cell, print_table

if TYPE_CHECKING:
    from em_evals.results.records.studies import Retention
    from em_evals.retention.scores import ModelResults


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with our models and tasks.

    Name the model by --model em-local --model_args card=NAME.
    """
    from em_evals.lm_eval_plugin import command

    command.run(context.args)


def retention(
    cards: Annotated[list[str], typer.Argument(help="Cards, or lm-eval's result files or folders.")],
    baseline: Annotated[str | None, typer.Option(help="Model to compare with (default: the first).")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks or groups (comma-separated).")] = "em_mini",
    folder: Annotated[Path, typer.Option(help="Folder of results, which are reused.")] = Path(
        "logs/retention"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first items of each task.")] = None,
    fields: Annotated[
        list[str],
        typer.Option("-M", metavar="KEY=VALUE", help="Override a card field in every card (repeatable)."),
    ] = [],
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run model-written code.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the comparison (JSON).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare capability with a baseline, item by item.

    The table has accuracies, paired differences and intervals.
    """
    from em_evals.cli.options import card_fields
    from em_evals.content.cards import resolve
    from em_evals.results import records
    from em_evals.retention.scores import is_results

    names = list(dict.fromkeys([baseline or cards[0], *cards]))
    overrides = card_fields(fields)
    for name in names:
        if not is_results(name):
            resolve(name, overrides)  # before lm-eval is imported: a wrong card is refused at once
    from em_evals.retention.compare import compare
    from em_evals.retention.suite import Suite, given

    suite = None
    for name in names:
        if not is_results(name):
            suite = suite or Suite(tasks.split(","), limit, confirm_run_unsafe_code)
            suite.reserve(name, folder, overrides)
    found = [
        given(name) if suite is None or is_results(name) else suite.measure(name, folder, overrides)
        for name in names
    ]
    if left_out := dict.fromkeys(task for one in found for task in one.left_out):
        echo(
            f"note: {', '.join(left_out)} left out: the items have no score that is a number (perplexities), "
            "so none can be paired.",
            err=True,
        )
    record = compare(found[0], found[1:] or found)
    if output is not None:
        records.write(record, output)
    if as_json:
        echo(record.model_dump_json(indent=2))
        return
    if len(found) == 1:
        _print_scores(found[0])
    else:
        _print_differences(record)


def _print_scores(model: ModelResults) -> None:
    rows = [
        [
            scores.task,
            str(len(scores.scores)),
            scores.metric,
            estimate_cell(scores.mean, scores.interval, ".3f"),
            "" if scores.chance is None else f"{scores.chance:.2f}",
        ]
        for scores in model.tasks.values()
    ]
    print_table(model.name, ["task", "items", "metric", "mean [95% interval]", "chance"], rows)


def _print_differences(record: Retention) -> None:
    """Print one row per task: the baseline's score, and every model's difference to it."""
    cells: dict[str, list[str]] = {}
    for place, model in enumerate(record.models, start=2):
        for row in model.tasks:
            begun = cells.setdefault(row.task, [str(row.n), f"{row.baseline_accuracy:.3f}"])
            begun += [""] * (place - len(begun))
            begun.append(estimate_cell(row.difference, row.interval))
    rows = [[task, *row] for task, row in sorted(cells.items(), key=lambda cell: cell[0] == "overall")]
    columns = ["task", "items", record.baseline, *(model.name for model in record.models)]
    print_table(f"{record.baseline}, and the others' paired differences to it [95% interval]", columns, rows)
