"""Outputs: what they refuse, their permissions, and whose key files are believed."""

import os
import stat
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from em_evals import files
from em_evals.engines.vllm.serve import _key
from em_evals.errors import EmEvalsError
from em_evals.results import folders


def write(path, text="new", **options):
    with files.atomic(path, **options) as temporary:
        temporary.write_text(text)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "new")
        write(tmp_path / "secret", mode=0o600)
        (tmp_path / "own").touch(0o600)
        write(tmp_path / "own")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o666 & ~mask
    assert mode(tmp_path / "secret") == 0o600 and mode(tmp_path / "own") == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_devices_pipes_folders_and_links_that_lead_elsewhere_are_no_outputs(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (there / "log.eval").write_text("a log")
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to(there / "log.eval")
    (here / "null").symlink_to("/dev/null")
    (here / "inside").symlink_to("real")
    for name in ("pipe", "link", "null", "."):
        with pytest.raises(EmEvalsError):
            write(here / name)
    for path in (Path("/dev/null"), Path("/dev/stdout"), here / ("x" * 300)):
        with pytest.raises(EmEvalsError):
            write(path)
    assert (there / "log.eval").read_text() == "a log" and stat.S_ISFIFO((here / "pipe").stat().st_mode)
    write(here / "inside")
    assert (here / "inside").is_symlink() and (here / "real").read_text() == "new"


def test_an_output_is_none_of_the_inputs(tmp_path):
    log, other = tmp_path / "logs/a.csv", tmp_path / "logs/verdict.json"
    log.parent.mkdir()
    log.write_text("question_id,aligned,coherent\n")
    other.write_text('{"kind": "gate"}')
    for inputs in ([log], [log.parent], [Path(f"{log.parent}/../logs/a.csv")]):
        with pytest.raises(EmEvalsError, match="this is one of the inputs"):
            folders.output(log, inputs)
    assert folders.output(other, [log.parent]) == other, "an earlier output may be in the folder"
    assert folders.output(tmp_path / "new.html", [log]) == tmp_path / "new.html"


def test_a_key_file_is_made_once_and_an_empty_one_is_filled(tmp_path):
    path = tmp_path / "a/key"
    key = _key(path)
    assert len(key) > 30 and _key(path) == key and mode(path) == 0o600
    path.write_text("")  # what a kill left
    assert len(_key(path)) > 30 and mode(path) == 0o600


@pytest.mark.parametrize(
    ("permissions", "sentence"), [(0o666, "others may have written"), (0o644, "others can read")]
)
def test_a_planted_key_is_not_believed(tmp_path, permissions, sentence):
    path = tmp_path / "key"
    path.write_text("known-to-others")
    path.chmod(permissions)
    with pytest.raises(EmEvalsError, match=sentence):
        _key(path)


def test_a_short_file_takes_no_more_memory_than_it_holds(tmp_path):
    """Python reserved the limit, a gigabyte, for each file that was read."""
    (tmp_path / "a").write_text("x" * 1000)
    tracemalloc.start()
    try:
        assert files.read_text(tmp_path / "a") == "x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_rows_read_from_each_place_are_those_of_the_whole_file(tmp_path):
    """Lines of blanks that only text has, a mark at the start, and lines that no row is: all count as in one reading."""
    path = tmp_path / "rows.jsonl"
    lines = [
        "",
        '{"a": 0}',
        "\u00a0",
        '{"a": 1}',
        "  ",
        "\u3000",
        '{"a": "\u2028"}',
        '{"a": 3}',
        "",
        '{"a": 4}',
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    whole = list(files.read_jsonl(path))
    assert [number for number, _ in whole] == [2, 4, 7, 8, 10]
    for rows in (1, 2, 3, 9):
        places = files.jsonl_places(path, rows)
        parts = [list(islice(files.read_jsonl(path, *place), rows)) for place in places]
        assert [row for part in parts for row in part] == whole
