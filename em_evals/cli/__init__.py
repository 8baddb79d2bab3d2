"""The command line `em-evals`. Thin: every command parses options, calls one function and prints its result.

Heavy imports stay inside the commands, so that help is fast and machines without torch can use the rest.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, NoReturn

import typer

from em_evals import shown
from em_evals.cli.commands import COMMANDS
from em_evals.cli.lazy import LazyGroup
from em_evals.cli.output import echo
from em_evals.errors import EmEvalsError, missing_package

__all__ = ["app", "main"]


class _Root(LazyGroup):
    """All commands."""

    members = COMMANDS


app = typer.Typer(
    name="em-evals",
    cls=_Root,
    help="Evaluate, localize, steer and gate emergent misalignment in fine-tuned LLMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help screen costs a third of a second
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from em_evals import __version__

        echo(f"em-evals {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


INVALID = 2
"""Exit code for bad input, and for what could not be computed."""


def main() -> None:
    """Run the command line; errors and an interrupt print one sentence on stderr."""
    try:
        app()
    except EmEvalsError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (sentence := missing_package(error)) is None:
            raise
        _fail(str(sentence))
    except SystemExit as end:
        # typer turns an interrupt into an exit without a word; what was kept stands in the interrupt.
        if end.code == 130 and (interrupt := _interrupt_behind(end)) is not None:
            print(str(interrupt) or "interrupted.", file=sys.stderr)  # noqa: T201
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader (`| head`) has exited; suppress Python's complaint when it closes stdout
        sys.exit(0)
    except Exception as error:
        # Compare class names, because importing torch or Inspect only for this is slow.
        if type(error).__name__ == "OutOfMemoryError":
            reason = str(error).partition(". ")[0]
            _fail(f"{reason}: free the GPU, or choose a smaller batch, dtype or base.")
        if type(error).__name__ == "PrerequisiteError":
            from em_evals.inspect_errors import said

            _fail(said(error))  # type: ignore[arg-type]
        # Python's own code, 1, would be a verdict: a regression, an alarm, a wrong number.
        traceback.print_exc()
        sys.exit(INVALID)


def _interrupt_behind(end: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that an exit comes from."""
    behind: BaseException | None = end
    while behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__cause__ or behind.__context__
    return behind


def _fail(sentence: str) -> NoReturn:
    print(f"em-evals: {shown.text(sentence)}", file=sys.stderr)  # noqa: T201
    sys.exit(INVALID)
