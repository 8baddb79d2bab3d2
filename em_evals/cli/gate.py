"""`em-evals gate`: may this fine-tuned model ship?"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_evals.cli.output import Json, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.gate.compare import Judgement
    from em_evals.gate.inputs import Side
    from em_evals.gate.policy import Policy

_INVALID = 2
_INTERRUPTED = 130
_PATHS = "Inspect log, lm-eval results, judged CSV, folder, or a baseline's name (repeatable)."


@contextmanager
def _no_false_verdict() -> Iterator[None]:
    """Exit with 2 on unexpected errors and 130 on an interrupt: 1, the usual code, says that the candidate is worse."""
    try:
        yield
    except (EmEvalsError, ModuleNotFoundError, typer.Exit):
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted.", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except OSError as error:  # the terminal or file behind stdout; the record's own errors are EmEvalsErrors
        _silence()
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"em-evals: cannot write the result ({error.strerror}).", err=True)
        raise typer.Exit(_INVALID) from None
    except SystemExit:  # rich, where a reader has gone
        raise typer.Exit(_INVALID) from None
    except Exception:
        traceback.print_exc()
        raise typer.Exit(_INVALID) from None


def _silence() -> None:
    """Point stdout to nowhere, so that Python's flush at the end does not replace the exit code by 120."""
    with suppress(OSError, ValueError, AttributeError):  # without a file behind it there is nothing to point
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@_no_false_verdict()
def gate(
    baseline: Annotated[list[str], typer.Option(metavar="PATH", help=_PATHS)] = [],  # noqa: B006
    candidate: Annotated[list[str], typer.Option(metavar="PATH", help=_PATHS)] = [],  # noqa: B006
    policy: Annotated[
        Path | None, typer.Option(help="Policy file (default: ./gate.yaml, else built-in).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the record (JSON), with Markdown (.md) and JUnit (.xml) next to it."
        ),
    ] = None,
    anchor: Annotated[
        list[str],
        typer.Option(
            metavar="PATH", help="First accepted model (default: NAME.anchor.json of the baseline)."
        ),
    ] = [],  # noqa: B006
    group: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=a,b,c", help="Models of one recipe that differ by their seed (repeatable)."
        ),
    ] = [],  # noqa: B006
    update_baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Save the candidate as logs/baselines/NAME.json if it passes."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print how many draws are needed.")] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="--plan: the baseline's rate (default: the given baseline's).", min=0, max=1),
    ] = None,
    change: Annotated[float, typer.Option(help="--plan: the rise to detect.")] = 0.05,
    power: Annotated[
        float, typer.Option(help="--plan: the probability of detecting it.", min=0.5, max=0.999)
    ] = 0.9,
    as_json: Json = False,
) -> None:
    """Compare a candidate with a baseline. Exit code 0 pass, 1 regression, 2 invalid input, 3 inconclusive."""
    from em_evals.gate import compare, groups, inputs, looks
    from em_evals.gate.policy import load_policy

    rules = load_policy(policy)
    if plan:
        _plan(rules, inputs.read(baseline) if baseline else None, rate, change, power, as_json)
        return
    if not candidate:
        raise EmEvalsError("name the log to judge: --candidate PATH.")
    seed_groups = groups.parse(group)
    after = inputs.read(candidate, seed_groups)
    if not baseline:
        if update_baseline is None:
            raise EmEvalsError("name what to compare with: --baseline PATH, or a baseline's name.")
        if after.problems:
            raise EmEvalsError(after.problems[0])
        path = _keep(update_baseline, after)
        if as_json:
            print_json({"baseline": str(path), "evidence": sorted(after.evidence)})
        return
    before, fixed = inputs.read(baseline, seed_groups), inputs.anchor(baseline, anchor, seed_groups)
    earlier = looks.read(output) if output is not None else ()
    judgement = compare.judge(before, after, rules, earlier, fixed)
    if output is not None:
        from em_evals.gate import outputs

        outputs.write(judgement, output)
    try:
        _show(judgement, as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # `gate … | head`, where rich exits: the verdict stands
        _silence()
    if update_baseline is not None:
        if judgement.verdict == "pass":
            _keep(update_baseline, after, before if fixed is None else fixed)
        else:
            typer.echo(
                f"the baseline '{update_baseline}' was not changed: the verdict is not pass.", err=True
            )
    raise typer.Exit(judgement.exit_code)


def _keep(name: str, side: Side, anchor: Side | None = None) -> Path:
    from em_evals.gate import baseline

    fixed = None if anchor is None else list(anchor.evidence.values())
    path = baseline.write(name, list(side.evidence.values()), fixed)
    typer.echo(f"saved {', '.join(sorted(side.evidence))} in {path}", err=True)
    return path


def _show(judgement: Judgement, as_json: bool) -> None:
    from em_evals.gate import outputs

    if as_json:
        typer.echo(outputs.record(judgement).model_dump_json(indent=2))
        return
    if judgement.rows:
        title = f"{judgement.models[1]} against {judgement.models[0]}"
        print_table(title, outputs.columns(judgement.rows), [outputs.cells(row) for row in judgement.rows])
    for sentence in [*judgement.problems, *(row.sentence for row in judgement.rows)]:
        typer.echo(f"- {sentence}")
    for note in judgement.notes:
        typer.echo(f"note: {note}")
    typer.echo(judgement.sentence)


def _plan(
    rules: Policy, side: Side | None, rate: float | None, change: float, power: float, as_json: bool
) -> None:
    from em_evals.gate import plan

    rule = rules.rule("em_rate")
    if rule is None:
        raise EmEvalsError("the policy has no rule for em_rate, which --plan needs; add one.")
    if rate is None:
        rate = _em_rate(side)
    # Holm's worst case: this p-value is the smallest of all metrics of a freeform log that have rules.
    named = [rules.rule(name) for name in ("em_rate", "em_rate_coherent", "coherent_share")]
    family = [found.rule for found in named if found is not None]
    least = max(one.minimum_draws or rules.minimum_draws for one in family)
    alpha, margin = rules.level_of(rule.rule), rule.rule.margin
    beyond = rules.regression == "margin"
    needs = [
        plan.draws_to_find(rate, change, alpha / len(family), power, margin, beyond, least),
        plan.draws_to_pass(rate, margin, alpha, power, least),
    ]
    if as_json:
        told = {"rate": rate, "power": power, "minimum_draws": least}
        print_json(told | {"needs": [vars(need) for need in needs]})
        return
    rows: list[Any] = [
        [
            need.aim,
            f"{need.draws}" if need.draws else f"more than {plan.MOST}",
            f"{need.power:.1%}",
            f"{need.alpha:.4f}",
        ]
        for need in needs
    ]
    print_table("", ["to", "draws per model", "power", "one-sided level"], rows)
    if any(need.draws == least for need in needs):
        typer.echo(f"fewer would do, but the policy asks for {least} (minimum_draws).")


def _em_rate(side: Side | None) -> float:
    from em_evals.gate.evidence import Counts

    if side is not None and side.problems:
        raise EmEvalsError(side.problems[0])
    for evidence in side.evidence.values() if side else []:
        measure = evidence.measures.get("em_rate")
        if isinstance(measure, Counts) and measure.draws:
            return sum(events for events, _ in measure.clusters.values()) / measure.draws
    raise EmEvalsError("give the rate to plan from: --rate 0.005, or --baseline with a graded log.")
