"""A group of commands that imports the module of the called command only: a list of commands needs none of them.

Building all commands takes typer a quarter of a second, which every call and every shell completion would wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main


@dataclass(frozen=True)
class Command:
    """A command that is not imported yet: `module:function` under em_evals.cli, and what lists of commands show.

    `help` is the first paragraph of the function's docstring; `options` are those of `typer.Typer.command`.
    """

    where: str
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, name: str) -> Any:
        """Import the function and return its command."""
        module, _, function = self.where.partition(":")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(name, cls=_Checked, **self.options)(
            getattr(import_module(f"em_evals.cli.{module}"), function)
        )
        return typer.main.get_command(app)

    def outline(self, name: str) -> Any:
        """Return a command that is there to be listed."""
        return typer.core.TyperCommand(name, help=self.help)


class _Checked(typer.core.TyperCommand):
    """A command that overwrites nothing it reads."""

    def invoke(self, ctx: Any) -> Any:
        """Check the parameters, then run."""
        from em_evals.cli import overwriting

        overwriting.refuse(ctx.params)
        return super().invoke(ctx)


@dataclass(frozen=True)
class Group:
    """A group of commands; `default` is the command that is meant where the first word names none."""

    help: str
    members: Mapping[str, Command | Group]
    default: str | None = None

    def build(self, name: str) -> Any:
        """Return the group, none of whose commands is imported."""
        return LazyGroup(
            name=name,
            help=self.help,
            members=self.members,
            default=self.default,
            no_args_is_help=True,
            rich_markup_mode=None,
        )

    outline = build


class LazyGroup(typer.core.TyperGroup):
    """Commands by their names, each built where it is called; lists and completions show outlines."""

    members: Mapping[str, Command | Group] = {}

    def __init__(
        self,
        *,
        members: Mapping[str, Command | Group] | None = None,
        default: str | None = None,
        commands: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.members = self.members if members is None else members
        self.default = default
        self.commands: Any = _Built(self.members)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in that is meant."""
        if self.default and args and args[0] not in {*self.members, "-h", "--help"}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        self._outline().format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the commands and options whose names begin as typed."""
        listed = copy(ctx)
        listed.command = self._outline()
        return listed.command.shell_complete(listed, incomplete)

    def _outline(self) -> typer.core.TyperGroup:
        outlines = {name: member.outline(name) for name, member in self.members.items()}
        return typer.core.TyperGroup(name=self.name, commands=outlines, params=self.params)


class _Built(Mapping[str, Any]):
    """The commands of a group, built when they are taken."""

    def __init__(self, members: Mapping[str, Command | Group]) -> None:
        self._members, self._built = members, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._members[name].build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
