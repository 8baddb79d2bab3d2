"""README.md and docs/: commands parse, cards validate, links resolve, pages are found. No model is loaded.

`make docs-test` runs this file, README.md's commands (tests/test_readme.py), the blocks of Python
(tests/api/test_api_docs.py) and the site's build.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from em_evals.cli import app
from em_evals.cli.options import card_fields
from em_evals.content import cards, documents
from em_evals.errors import EmEvalsError
from em_evals.gate.policy import load_policy
from em_evals.inspect_plugin import registry

ROOT = Path(__file__).parent.parent
GENERATED = "architectures.md"
"""Written by `make test-all`: no commands in it."""
GUIDE = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != GENERATED]
PAGES = [ROOT / "README.md", *GUIDE]
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "logs/README.md", "examples/README.md")]
"""Pages beside the guide, with commands and links as well."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_INLINE_COMMAND = re.compile(r"`em-evals (\w[^`\n]*)`")
_OUR_FILE = re.compile(
    r"\b(?:tests|benchmarks|em_evals|examples|findings)/[\w./-]+\.(?:py|json|sh|ipynb|ya?ml|md)\b"
)
_FILE_NAME = re.compile(r"# (?:(tasks|scorers|adapters)/([\w./-]+)|gate|models|plan)\.yaml\n")


@dataclass(frozen=True)
class Line:
    """A command line of a page, its comment left out."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        words = shlex.split(self.text, comments=True)
        # What follows is the shell's.
        return list(takewhile(lambda word: word not in {">", "|", "&&"}, words))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def commands(page: Path) -> list[Line]:
    """The lines that a reader types: all of a `sh` block, those behind `$ ` of a `console` block."""
    typed = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    shown = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    typed += [line[2:] for line in shown if line.startswith("$ ")]
    found = [Line(page.name, text) for text in typed]
    return [line for line in found if line.words]


LINES = [line for page in [*PAGES, *OTHERS] for line in commands(page)]


def named(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words begin with, and the words behind its name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        if (
            words
            and words[0] not in command.commands
            and "compare" in command.commands
            and command.name == "judges"
        ):
            words = ["compare", *words]  # `judges A B` compares
        name, *words = words
        assert name in command.commands, f"em-evals has no command {name}"
        command = command.commands[name]
    return command, words


def parsed(words: list[str]) -> Any:
    """The context of an em-evals command: its name, options and values exist; nothing is run."""
    command, words = named(words)
    # `--help` would print and leave.
    return command.make_context(command.name, [word for word in words if word != "--help"])


LAUNCHERS = ("accelerate", "torchrun")


def own_commands() -> Iterator[list[str]]:
    """Every `em-evals …`, also behind `accelerate launch` and `torchrun`."""
    for line in LINES:
        words = line.words
        if words[0] == "em-evals":
            yield words[1:]
        elif words[0] in LAUNCHERS:
            yield launched(words)


def launched(words: list[str]) -> list[str]:
    """What a launcher starts: the words behind `-m em_evals`."""
    place = words.index("-m")
    assert words[place + 1] == "em_evals"
    return words[place + 2 :]


def test_there_is_something_to_check() -> None:
    assert {page.stem for page in GUIDE} >= {
        *("models", "adapters", "chat-templates", "interventions", "train", "verify", "vllm", "judges"),
    }
    assert len(list(own_commands())) > 20


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.page}: {line.text[:60]}")
def test_a_command_line_parses(line: Line) -> None:
    program, *words = line.words
    if program == "em-evals":
        check_fields(parsed(words))
    elif program in LAUNCHERS:
        check_fields(parsed(launched(line.words)))
    elif program == "inspect":
        check_inspect(words)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[0] in targets
    elif program == "pip":
        known = re.findall(
            r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
        )
        wanted = re.search(r"\[([\w,]+)\]", words[-1])
        assert not wanted or set(wanted[1].split(",")) <= set(known)
    else:
        assert program in {"export", "cd", "cp", "cat", "ls", "lm_eval", "env", "."}, (
            f"{program}: who checks it?"
        )


def check_fields(context: Any) -> None:
    """`-M KEY=VALUE` fits the card that is named, where that is one of ours."""
    fields, card = context.params.get("fields"), context.params.get("card")
    if fields and card in documents.names("adapters"):
        cards.read_card(card, card_fields(list(fields)))


def check_inspect(words: list[str]) -> None:
    """Tasks, their `-T` options and local models of an `inspect eval`; Inspect's own options are Inspect's."""
    if words[0] == "score":
        # Without these Inspect asks a question, and ends where there is no terminal.
        assert "--action" in words and {"--overwrite", "--output-file"} & set(words), words
    if words[0] != "eval":
        assert words[0] in {"score", "list", "view", "eval-set"}
        return
    task = getattr(registry, words[1].removeprefix("em_evals/"))
    known = inspect.signature(task).parameters
    for option, value in pairwise(words):
        if option == "-T":
            assert value.partition("=")[0] in known, f"{words[1]} takes no -T {value}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_exist(page: Path) -> None:
    """Commands and options; arguments may be left out there."""
    for text in _INLINE_COMMAND.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        first, *others = text.split(" / ")[0].split()
        command, words = named([first, *others])
        known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
        used = {re.split(r"[=…]", word)[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert used <= known | {"--help", "--version", "--install-completion"}, text


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_sentences_exist(page: Path) -> None:
    """Tests, benchmarks and modules. What a reader writes (NAME.yaml, tasks/mine.yaml) is not looked for."""
    named_files = set(_OUR_FILE.findall(page.read_text(encoding="utf-8")))
    assert not [
        name for name in named_files if not re.search(r"[A-Z]{4}", name) and not (ROOT / name).exists()
    ]


def test_a_wrong_command_is_found() -> None:
    for wrong in (
        ["verfy", "x"],
        ["verify"],
        ["verify", "x", "--tolerance", "1"],
        ["compile", "x", "--to", "y"],
    ):
        with pytest.raises(Exception, match=r"."):
            parsed(wrong)
    with pytest.raises(EmEvalsError, match="unknown key"):
        check_fields(parsed(["verify", "smollm2", "-M", "dtyp=float32"]))


def card_blocks(page: Path) -> list[tuple[str, str]]:
    """The cards of a page with the names of their files, which every YAML block says first."""
    found = []
    for text in blocks(page, "yaml"):
        name = _FILE_NAME.match(text)
        assert name, f"{page.name}: a YAML block begins with `# FOLDER/NAME.yaml`: {text[:60]!r}"
        if name[1] == "adapters":
            found.append((name[2], text))
    return found


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_a_card_validates(page: Path, workdir: Path) -> None:
    folder = workdir / "adapters"
    folder.mkdir()
    found = card_blocks(page)
    assert len({name for name, _ in found}) == len(found), "two cards of one name"
    for name, text in found:
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, text in found:
        card, path = cards.read_card(name)
        assert path == folder / f"{name}.yaml" and card.base
        assert yaml.safe_load(text), "an empty card proves nothing"


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}, and there is no such heading"


def test_the_first_page_and_the_site_lead_to_every_page() -> None:
    """Add a page to docs/index.md and to `nav` in mkdocs.yml."""
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in GUIDE} - {"index.md"}
    assert not [page for page in pages if f"({page})" not in home], "docs/index.md"
    assert not [page for page in pages if f": {page}\n" not in nav], "mkdocs.yml"


def test_the_readme_is_short_and_shows_the_product() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.encode()) <= 8_000
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert len(pictures) == 2 and all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)
    python = next(blocks(ROOT / "README.md", "python"))
    assert len(python.splitlines()) <= 12


def test_what_the_readme_shows_of_quick_is_what_it_prints() -> None:
    """Its words and columns; the numbers are those of docs/quickstart.md, which a real run printed."""
    shown = next(block for block in blocks(ROOT / "README.md", "console") if "em-evals quick" in block)
    page = "\n".join(blocks(ROOT / "docs" / "quickstart.md", ""))
    for line in shown.splitlines()[1:]:
        assert line == "…" or line.rstrip(" …") in " ".join(page.split("\n")) or line in page, line


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_a_policy_validates(page: Path, workdir: Path) -> None:
    for text in blocks(page, "yaml"):
        if text.startswith("# gate.yaml"):
            (workdir / "gate.yaml").write_text(text, encoding="utf-8")
            assert load_policy(workdir / "gate.yaml").metrics


def test_the_site_works_from_disk_and_asks_nothing_of_the_network() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert "offline" in site["plugins"] and site["theme"]["font"] is False
    for script in site["extra"]["polyfills"]:
        assert "iframe-worker" in script, "else the offline plugin names its own, of a content network"
        assert "Permission is hereby granted" in (ROOT / "docs" / script).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [page for page in GUIDE if page.stem != "glossary"], ids=lambda page: page.stem
)
def test_a_page_says_what_it_is_about_before_it_shows_commands(page: Path) -> None:
    title, _, rest = page.read_text(encoding="utf-8").partition("\n")
    assert title.startswith("# ") and not rest.strip().startswith(("```", "|"))


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_links_are_words_and_no_file_names(page: Path) -> None:
    assert not re.findall(r"\[(?:docs/)?[a-z-]+\.md\]\(", page.read_text(encoding="utf-8"))
