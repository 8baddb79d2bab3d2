"""content.py: which file answers to a name, and what a reader is told when a file is broken."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from em_evals import files
from em_evals.content import documents
from em_evals.errors import EmEvalsError


def refused(action: Callable[[], object]) -> EmEvalsError:
    with pytest.raises(EmEvalsError) as caught:
        action()
    return caught.value


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_content_is_found_from_any_folder(workdir: Path) -> None:
    assert documents.find("tasks", "core") == documents.SHIPPED / "tasks/core.yaml"


def test_a_local_file_of_the_same_name_wins_over_the_shipped_one(workdir: Path) -> None:
    mine = written(workdir / "tasks/core.yaml", "name: mine\n")
    assert documents.find("tasks", "core") == mine
    assert documents.names("tasks")["core"] == mine
    assert "forced_choice" in documents.names("tasks"), "the rest of the shipped content stays visible"


def test_an_explicit_path_wins_over_both(workdir: Path) -> None:
    written(workdir / "tasks/core.yaml", "name: mine\n")
    explicit = written(workdir / "elsewhere/core.yaml", "name: other\n")
    assert documents.find("tasks", str(explicit)) == explicit
    assert "'nowhere/core.yaml'" in str(refused(lambda: documents.find("tasks", "nowhere/core.yaml")))


def test_an_unknown_name_is_answered_with_the_nearest(workdir: Path) -> None:
    assert "did you mean 'forced_choice'?" in str(refused(lambda: documents.find("tasks", "forced-choise")))
    assert "known: alignment, coherence, reasoning." in str(refused(lambda: documents.find("scorers", "zzz")))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: core\nversion: 1\nthemes: [power\nquestions: 3\n", 4, "not valid YAML"),
        ("name: core\n\tversion: 1\n", 2, "not valid YAML"),
        ("name: core\nversion: 1\nname: other\n", 3, "the key 'name' is repeated"),
        ("rows:\n  - {id: a}\n  - id: b\n    id: c\n", 4, "the key 'id' is repeated"),
        ("name: !!python/object/apply:os.getcwd []\n", 1, "not valid YAML"),
        ("name: core\nreleased: 2024-13-45\n", 2, "not valid YAML"),
        ("name: core\nitself: &again [*again]\n", 2, ""),
        ('name: core\ntitle: "bell \x07"\n', 2, "not valid YAML"),
    ],
    ids=[
        "unclosed",
        "tab",
        "twice",
        "twice below",
        "code",
        "no such date",
        "endless alias",
        "control character",
    ],
)
def test_broken_yaml_is_reported_with_its_line(workdir: Path, text: str, line: int, says: str) -> None:
    path = written(workdir / "broken.yaml", text)
    error = refused(lambda: documents.load(path))
    assert str(error).startswith(f"{path}:{line}: ")
    assert says in error.what
    assert "\n" not in str(error)


def test_values_know_their_lines_and_unknown_ones_their_parents(workdir: Path) -> None:
    document = documents.load(written(workdir / "a.yaml", "# a comment\na:\n  b:\n    - one\n    - two\n"))
    assert [document.line(key) for key in [("a",), ("a", "b"), ("a", "b", 1), ("a", "b", 1, "c"), ("z",)]] == [
        2, 3, 5, 5, 2,
    ]  # fmt: skip


def test_text_that_is_not_utf8_is_refused(workdir: Path) -> None:
    path = workdir / "latin.yaml"
    path.write_bytes("name: café\n".encode("latin-1"))
    error = refused(lambda: documents.load(path))
    assert str(error).startswith(f"{path}: ")
    assert "not UTF-8 text (byte 9)" in error.what
    table = path.rename(workdir / "texts.parquet")
    assert (
        "no parquet: save the rows as one JSON object a line" in refused(lambda: files.read_text(table)).what
    )


def test_a_folder_in_a_files_place_is_one_sentence(workdir: Path) -> None:
    assert "cannot read this file" in str(refused(lambda: files.read_text(workdir)))


@pytest.mark.parametrize(("bad", "says"), [('{"id": "b"', "not JSON"), ('["b"]', "one JSON object a line")])
def test_a_bad_jsonl_line_is_reported_with_its_number(workdir: Path, bad: str, says: str) -> None:
    path = written(workdir / "rows.jsonl", f'{{"id": "a"}}\n\n{bad}\n')
    error = refused(lambda: list(files.read_jsonl(path)))
    assert str(error).startswith(f"{path}:3: ")
    assert says in error.what


def test_a_row_may_hold_unicode_line_separators(workdir: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    path = written(workdir / "rows.jsonl", f'{{"text": "{text}"}}\n\n{{"text": "last"}}\n')
    assert list(files.read_jsonl(path)) == [(1, {"text": text}), (3, {"text": "last"})]


def test_atomic_writes_appear_whole(workdir: Path) -> None:
    target = workdir / "new/folder/file.txt"
    with files.atomic(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(workdir: Path) -> None:
    target = written(workdir / "out/file.txt", "old")
    with pytest.raises(KeyboardInterrupt), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, the disk that is always full")  # noqa: PTH110
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(workdir: Path) -> None:
    target = written(workdir / "out/file.txt", "old")

    def write() -> None:
        with files.atomic(target) as temporary:
            temporary.write_text("half")
            Path("/dev/full").write_text("the rest")

    error = refused(write)
    assert str(error).startswith(f"{target}: cannot write here ({os.strerror(errno.ENOSPC)})")
    assert "\n" not in str(error)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_cannot_be_made_is_one_sentence(workdir: Path) -> None:
    written(workdir / "file", "")

    def write() -> None:
        with files.atomic(workdir / "file/below/x"):
            pytest.fail("there is no place to write to")

    assert "cannot write here" in refused(write).what


def test_digests_change_with_content_and_boundaries() -> None:
    assert files.digest(b"ab", b"c") != files.digest(b"a", b"bc")


def test_the_cache_can_be_moved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_folder() == cache
    monkeypatch.delenv("EM_EVALS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert files.cache_folder() == Path("/some/where/em-evals")
