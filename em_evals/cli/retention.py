"""`em-evals lm-eval` and `em-evals retention`: capability."""

from __future__ import annotations

import typer


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with our models (--model em-local --model_args card=NAME) and our tasks."""
    from em_evals.harness import command

    command.run(context.args)
