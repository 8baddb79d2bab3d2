"""`em-evals gate`: may this fine-tuned model ship?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals import characters
from em_evals.cli.options import Group
from em_evals.cli.output import Json, echo, print_json, print_json_text, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.gate.compare import Judgement
    from em_evals.gate.inputs import Side

_PATHS = "Inspect log, lm-eval results, judged CSV, folder, or a baseline's name (repeatable)."


def gate(
    baseline: Annotated[list[str], typer.Option(metavar="PATH", help=_PATHS)] = [],
    candidate: Annotated[list[str], typer.Option(metavar="PATH", help=_PATHS)] = [],
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
    ] = [],
    group: Group = [],
    update_baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Save the candidate as logs/baselines/NAME.json if it passes."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print how many draws are needed, and what they cost.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="--plan: the baseline's EM rate (default: the given baseline's).", min=0, max=1),
    ] = None,
    change: Annotated[float, typer.Option(help="--plan: the rise to detect.")] = 0.05,
    power: Annotated[
        float, typer.Option(help="--plan: the probability of detecting it.", min=0.5, max=0.999)
    ] = 0.9,
    judge_calls: Annotated[
        int,
        typer.Option(
            help="--plan: judge calls per draw (two rubrics; five times as many for sampled grades).", min=1
        ),
    ] = 2,
    question_cost: Annotated[
        float, typer.Option(help="--plan: cost of a further question, in judged draws.", min=0.01)
    ] = 20,
    as_json: Json = False,
) -> None:
    """Compare a candidate with a baseline. Exit code 0 pass, 1 regression, 2 invalid input, 3 inconclusive."""
    from em_evals.gate import compare, groups, inputs, looks
    from em_evals.gate.policy import load_policy

    rules = load_policy(policy)
    if plan:
        from em_evals.cli.gate_plan import show

        side = inputs.read(baseline) if baseline else None
        show(rules, side, rate, change, power, judge_calls, question_cost, as_json)
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
    _show(judgement, as_json)
    if update_baseline is not None:
        if judgement.verdict == "pass":
            _keep(update_baseline, after, before if fixed is None else fixed)
        else:
            echo(f"the baseline '{update_baseline}' was not changed: the verdict is not pass.", err=True)
    raise typer.Exit(judgement.exit_code)


def _keep(name: str, side: Side, anchor: Side | None = None) -> Path:
    from em_evals.gate import baseline

    fixed = None if anchor is None else list(anchor.evidence.values())
    path = baseline.write(name, list(side.evidence.values()), fixed)
    echo(f"saved {', '.join(sorted(side.evidence))} in {path}", err=True)
    return path


def _show(judgement: Judgement, as_json: bool) -> None:
    from em_evals.gate import outputs

    if as_json:
        print_json_text(characters.model_json(outputs.record(judgement), indent=2))
        return
    if judgement.rows:
        title = f"{judgement.models[1]} against {judgement.models[0]}"
        print_table(title, *outputs.table(judgement.rows))
    for sentence in judgement.reasons:
        echo(f"- {sentence}")
    for note in judgement.notes:
        echo(f"note: {note}")
    echo(judgement.sentence)
