"""MkDocs hook: reference pages from the code, and links to files of the repository that are not pages.

Nothing of it is fetched. Pages are made in memory for each build: `make docs`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from mkdocs.structure.files import File

import em_evals
from em_evals.cli import app
from em_evals.results.records import kinds
from em_evals.workflows.schemas import schema

ROOT = Path(__file__).parent.parent
OUTSIDE = {"../CHANGELOG.md": "changelog.md", "../findings/README.md": "findings.md"}
"""Files of the repository that become pages."""
_LONGEST_DEFAULT = 40
_LINK = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)\s]*)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    pages = {
        "reference/cli.md": command_line(),
        "reference/python.md": python(),
        "reference/card.md": schemas("Cards and recipes", {"card": "adapters/NAME.yaml"}),
        "reference/content.md": schemas(
            "Questions, pairs, rubrics",
            {
                "questions": "tasks/NAME.yaml",
                "pairs": "tasks/NAME.yaml",
                "rubric": "scorers/NAME.yaml",
                "trait": "tasks/traits/NAME.yaml",
            },
        ),
        "reference/gate.md": schemas("gate.yaml", {"gate": "gate.yaml"}),
        "reference/sweep.md": schemas("Plans of sweeps", {"sweep": "plan.yaml"}),
        "reference/records.md": all_records(),
        **{page: (ROOT / "docs" / path).resolve().read_text("utf-8") for path, page in OUTSIDE.items()},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links that leave docs/ to the pages made of them, or show the file's path as code."""
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = target.partition("#")[0]
        up = path.split("/").count("..")
        if up <= depth:
            return match[0]
        outside = "../" + path.split("../")[-1]
        if outside in OUTSIDE:
            return f"[{text}]({'../' * depth}{OUTSIDE[outside]})"
        return text if text.startswith("`") else f"`{outside.removeprefix('../')}`"

    own = page.file.src_uri in OUTSIDE.values()
    if own:  # written for the repository's root or a folder: their own links are paths there
        return re.sub(r"\[([^\]\n]+)\]\((?![a-z]+:|#)[^)\s]*\)", r"\1", markdown)
    return _LINK.sub(inside, markdown)


# ---- the command line ----


def command_line() -> str:
    """Return every command with its arguments and options."""
    lines = [
        "# Command line",
        "",
        "Every command has `--json`; exit code 2 is bad input, with one sentence.",
        "",
    ]
    for name, command in _commands(typer.main.get_command(app), "em-evals"):
        lines += [
            f"## {name}",
            "",
            (command.help or "").strip(),
            "",
            "| parameter | default | meaning |",
            "| --- | --- | --- |",
        ]
        lines += [_parameter(one) for one in command.params if getattr(one, "hidden", False) is False]
        lines.append("")
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in sorted(command.commands.items()):
        yield from _commands(below, f"{name} {word}")


def _parameter(one: Any) -> str:
    option = one.param_type_name == "option"
    name = (
        ", ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts])
        if option
        else f"`{one.name.upper()}`"
    )
    if option and not one.is_flag:
        name += f" {one.metavar or one.name.upper()}"
    default = "" if one.default in (None, False, [], ()) or callable(one.default) else f"`{one.default}`"
    needed = "required" if one.required else default
    return f"| {name} | {_cell(needed)} | {_cell(getattr(one, 'help', '') or '')} |"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


# ---- files ----


def schemas(title: str, kinds: dict[str, str]) -> str:
    """Return tables of the fields of files, and their JSON Schemas."""
    lines = [f"# {title}", ""]
    for kind, file in kinds.items():
        found = schema(kind)
        lines += [
            f"## {kind}: {file}",
            "",
            f"`em-evals schema {kind} > {kind}.schema.json` writes the JSON Schema; with "
            f"`# yaml-language-server: $schema={kind}.schema.json` as a file's first line, an editor checks and "
            "completes it.",
            "",
        ]
        lines += _fields(found, found.get("title", kind))
        for name, part in sorted(found.get("$defs", {}).items()):
            shown = next((one for one in part.get("anyOf", []) if "properties" in one), part)
            if "properties" in shown:
                lines += [f"### {name}", "", *_fields(shown, name)]
        for key, part in found["properties"].items():
            if "properties" in part.get("items", {}):
                lines += [f"### each of `{key}`", "", *_fields(part["items"], key)]
    return "\n".join(lines)


def _fields(found: dict[str, Any], name: str) -> list[str]:
    lines = [" ".join(found.get("description", "").split("\n\n")[0].split()), ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = set(found.get("required", ()))
    for field, part in found["properties"].items():
        default = "required" if field in required else _default(part)
        meaning = part.get("description", "")
        lines.append(f"| `{field}` | {_cell(_type(part))} | {_cell(default)} | {_cell(meaning)} |")
    return [*lines, ""]


def _default(part: dict[str, Any]) -> str:
    if "default" not in part:
        return ""
    text = json.dumps(part["default"])
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see its fields"


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return part["$ref"].rpartition("/")[2]
    if "enum" in part:
        return ", ".join(f"`{one}`" for one in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in part:
            named = [_type(one) for one in part[key] if one.get("type") != "null" and "not" not in one]
            return " or ".join(dict.fromkeys(filter(None, named)))
    kind = str(part.get("type", "any"))
    if kind == "array":
        return f"list of {_type(part.get('items', {}))}"
    return kind


def all_records() -> str:
    """Return the fields of every record that commands write with `-o`."""
    lines = [
        "# Records",
        "",
        "JSON files that commands write with `-o`; reports and `em.results` read them.",
        "",
    ]
    for record in sorted(get_args(kinds.Study), key=lambda kind: str(kind.__name__)):
        found = record.model_json_schema()
        lines += [f"## {record.__name__}", "", *_fields(found, record.__name__)]
        for part, content in sorted(found.get("$defs", {}).items()):
            lines += (
                [f"### {record.__name__}: {part}", "", *_fields(content, part)]
                if "properties" in content
                else []
            )
    return "\n".join(lines)


# ---- Python ----


def python() -> str:
    """Return a page of every public name."""
    lines = ["# Python API, every name", "", "[Guide](../api.md).", ""]
    for name in sorted(set(em_evals.__all__) - {"__version__"}, key=str.lower):
        lines += [f"::: {getattr(em_evals, name).__module__}.{name}", ""]
    return "\n".join(lines)
