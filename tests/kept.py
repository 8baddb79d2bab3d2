"""What is the same at each call in one process of the tests, and is kept there: a user's program does it once anyway."""

from __future__ import annotations

import functools
import importlib.metadata
import ssl

import typer.main
import typer.testing


def keep() -> None:
    """Begin to keep; before Inspect and the tests are imported."""
    # The tree of all commands, from their signatures: a fifth of a second at each call of the app.
    typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)
    # What is installed: Inspect looks through it for each task of an editable package, half a second.
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    # The authorities that clients of HTTPS trust, read for each client of a judge.
    ssl.create_default_context = functools.cache(ssl.create_default_context)
