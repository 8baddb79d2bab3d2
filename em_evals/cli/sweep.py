"""`em-evals sweep`: a matrix of trainings and measurements as one plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_evals.cli.cluster import Cpus, Gpus, is_ray, requested
from em_evals.cli.output import Json, echo, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from em_evals.sweep.graph import Graph
    from em_evals.sweep.run import Outcome
    from em_evals.sweep.store import Store
    from em_evals.sweep.workers import Worker

_PLAN = "plan.yaml"


def sweep(
    plan: Annotated[Path, typer.Argument(help="The plan (YAML), or the folder of a sweep that goes on.")],
    folder: Annotated[Path | None, typer.Option(help="Folder of results (default: runs/NAME).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print steps, GPU hours of training, and judge calls.")
    ] = False,
    on: Annotated[
        str,
        typer.Option(
            help="Where steps run: local (processes), here (this process), ray, ray://HOST:PORT, slurm."
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Steps at once (default: what the machine or cluster holds).")
    ] = None,
    cpus: Cpus = 2,
    gpus: Gpus = 0,
    slurm: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE",
            help="Slurm: submitit's parameters, e.g. timeout_min=240; light.KEY=VALUE: of steps that need no GPU.",
        ),
    ] = [],
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where steps' files go, and come from, if nodes share no folder: s3://…, gs://…, file://….",
        ),
    ] = None,
    only: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN", help="Only these measures or steps, and what they need (repeatable)."
        ),
    ] = [],
    max_failures: Annotated[
        int | None, typer.Option(min=1, help="Start no further step after this many failed.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an earlier run; an error if there is none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train and measure a matrix of models. Repeat the same command to go on; finished steps are not repeated.

    Exit code 0: all steps are done. 1: steps failed. 2: the plan is wrong.
    """
    from em_evals.content import sweep_plans
    from em_evals.sweep import graph

    if plan.is_dir():
        folder, plan = folder or plan, plan / _PLAN
    read = sweep_plans.load(plan)
    place = folder or Path("runs") / read.name
    stored = _store(store) if store is not None else None
    if resume and not (place / _PLAN).is_file() and not (stored and stored.done()):
        raise EmEvalsError("there is no sweep to go on with; leave --resume out to begin it.", place)
    whole = graph.build(read)
    chosen = whole.only(only) if only else whole
    if dry_run:
        _show_plan(chosen, place, stored, as_json)
        return
    light = sum(step.light for step in chosen.steps)
    given = _workers(on, place, workers, cpus, gpus, slurm, light, shared=stored is None)
    outcome = _run(chosen, plan, place, given, max_failures, stored)
    _show(chosen, place, outcome, stored, as_json)
    if outcome.failed or outcome.left:
        raise typer.Exit(1)


def _store(url: str) -> Store:
    from em_evals.sweep.store import Store

    return Store(url)


def _run(
    chosen: Graph,
    plan: Path,
    place: Path,
    workers: Sequence[Worker],
    max_failures: int | None,
    store: Store | None,
) -> Outcome:
    from em_evals import files
    from em_evals.sweep.run import run

    with files.atomic(place / _PLAN) as temporary:
        temporary.write_text(files.read_text(plan), encoding="utf-8")
    if store is not None:
        store.put(place / _PLAN)
    return run(chosen, place, workers, max_failures, lambda line: echo(line, err=True), store)


def _workers(
    on: str,
    place: Path,
    count: int | None,
    cpus: float,
    gpus: float,
    slurm: list[str],
    light: int,
    *,
    shared: bool,
) -> Sequence[Worker]:
    if on == "local":
        from em_evals.sweep.workers import local

        return local(count, light)
    if on == "here":
        from em_evals.sweep.workers import Here

        return [Here()]
    if on == "slurm" or on.startswith("slurm:"):
        from em_evals.cli.options import card_fields
        from em_evals.sweep import slurm as queue

        return queue.connect(place, count, card_fields(slurm), on.partition(":")[2] or "slurm", light)
    if is_ray(on):
        from em_evals.sweep import ray

        return ray.connect(*requested(on, cpus, gpus), count, place if shared else None, light)
    raise EmEvalsError(f"--on {on}: choose local, here, ray, ray://HOST:PORT or slurm.")


def _show_plan(chosen: Graph, place: Path, store: Store | None, as_json: bool) -> None:
    from em_evals.sweep import costs, steps

    told = costs.of(chosen)
    there = store.done() if store is not None else set()
    done = chosen.settled(
        {
            step.name
            for step in chosen.steps
            if (step.name, step.digest) in there or steps.is_done(step, place)
        }
    )
    if as_json:
        print_json(
            {
                "folder": str(place),
                "steps": [
                    {
                        "name": step.name,
                        "done": step.name in done,
                        "needs": step.needs,
                        "command": step.line(place),
                    }
                    for step in chosen.steps
                ],
                "costs": [vars(one) for one in told],
            }
        )
        return
    for step in chosen.steps:
        echo(f"{'done' if step.name in done else '    '} {step.name}")
        echo(f"       {step.line(place)}")
    rows = [[one.measure, str(one.steps), one.gpu_hours_cell, one.judge_calls_cell] for one in told]
    print_table(
        f"{len(chosen.steps)} steps in {place}, {len(done)} done",
        ["measure", "steps", "GPU hours", "judge calls"],
        rows,
    )
    for note in dict.fromkeys(one.note for one in told if one.note):
        echo(note)


def _show(chosen: Graph, place: Path, outcome: Outcome, store: Store | None, as_json: bool) -> None:
    from em_evals.sweep import table

    done = set(outcome.done)
    frame = table.table([step for step in chosen.steps if step.name in done], place)
    written = table.write(frame, place)
    if store is not None:
        for path in written:
            store.put(path)
    facts: dict[str, Any] = {
        "folder": str(place),
        "steps": len(chosen.steps),
        "done": len(done),
        "found": len(outcome.found),
        "failed": {one.name: one.problem for one in outcome.failed},
        "skipped": outcome.skipped,
        "left": outcome.left,
        "results": [str(path) for path in written],
        "rows": len(frame),
    }
    if as_json:
        print_json(facts)
        return
    echo(f"{len(done)} of {len(chosen.steps)} steps are done, {len(outcome.found)} of them before.")
    for name, problem in facts["failed"].items():
        echo(f"failed: {name}: {problem}")
    for name, cause in outcome.skipped.items():
        echo(f"not started: {name}, which needs {cause}")
    if outcome.left:
        echo(
            f"not started after {len(outcome.failed)} failures: {len(outcome.left)} steps; the same command goes on."
        )
    echo(f"{len(frame)} values: {', '.join(map(str, written))}")
