"""Finished measurements are remembered, also after a kill in the middle of a line."""

import json
import threading

import pytest

from em_evals.errors import EmEvalsError
from em_evals.interp.resume import Finished


def measure(log):
    def run(indices):
        for i in indices:
            log.append(i)
            yield i * 10

    return run


def test_nothing_is_measured_twice(tmp_path):
    path, log = tmp_path / "parts" / "finished.jsonl", []
    assert Finished(path).measured("x", ["a", "b"], measure(log)) == [0, 10]
    assert Finished(path).measured("x", ["b", "c", "a"], measure(log)) == [10, 10, 0] and log == [0, 1, 1]


def test_what_was_done_before_an_interruption_is_kept(tmp_path):
    path = tmp_path / "finished.jsonl"

    def stopped(indices):
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Finished(path).measured("x", ["a", "b"], stopped)
    log = []
    assert Finished(path).measured("x", ["a", "b"], measure(log)) == [1, 10] and log == [1]


def good(*keys):
    return "".join(json.dumps({"key": key, "value": 1}) + "\n" for key in keys)


@pytest.mark.parametrize("tail", ['{"key": "b", "va', '{"key": "b", "value": 2}', ""])
def test_a_half_line_is_dropped_and_a_whole_one_without_an_end_is_kept(tmp_path, tail):
    path, log = tmp_path / "finished.jsonl", []
    path.write_text(good("a") + tail)
    whole = tail.endswith("}")
    assert Finished(path).measured("x", ["a", "b"], measure(log)) == [1, 2 if whole else 10]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["a", "b"] and log == ([] if whole else [1])
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.parametrize(
    "bad", ["[1]\n", '{"value": 1}\n', "\0\0\0\n", '{"key": "b", "va\n', "[" * 9999 + "\n"]
)
def test_a_bad_line_costs_itself_alone_and_is_kept_and_reported(tmp_path, bad, capsys):
    """97 of 100 results were lost to the fourth line."""
    path, keys, log = tmp_path / "finished.jsonl", [f"k{i}" for i in range(100)], []
    lines = good(*keys).splitlines(keepends=True)
    before = "".join([*lines[:3], bad, *lines[4:]])
    path.write_text(before)
    assert Finished(path).measured("x", keys, measure(log)) == [1] * 3 + [30] + [1] * 96 and log == [3]
    (kept,) = tmp_path.glob("finished.jsonl.damaged-*")
    assert kept.read_text() == before
    assert f"{path}:4: this line is not a result; 99 results are used" in capsys.readouterr().err
    assert Finished(path).measured("x", keys, measure(log))[3] == 30 and log == [3]


@pytest.mark.parametrize("foreign", ["a,b\n1,2\n", '{"a": 1}\n', "secrets\n" * 100])
def test_another_programs_file_is_refused_and_not_emptied(tmp_path, foreign):
    path = tmp_path / "finished.jsonl"
    path.write_text(foreign)
    with pytest.raises(EmEvalsError, match="holds no results of earlier runs"):
        Finished(path).measured("x", ["a"], measure([]))
    assert path.read_text() == foreign


def test_two_at_once_measure_everything_once(tmp_path):
    """The second waits for the first, and finds its results."""
    path, log, keys = tmp_path / "finished.jsonl", [], [f"k{i}" for i in range(5)]
    first_is_in, go_on = threading.Event(), threading.Event()

    def slow(indices):
        first_is_in.set()
        go_on.wait(10)
        yield from measure(log)(indices)

    found = {}
    one = threading.Thread(target=lambda: found.update(one=Finished(path).measured("x", keys, slow)))
    two = threading.Thread(target=lambda: found.update(two=Finished(path).measured("x", keys, measure(log))))
    one.start()
    first_is_in.wait(10)
    two.start()
    go_on.set()
    one.join(30), two.join(30)
    assert found["one"] == found["two"] == [0, 10, 20, 30, 40] and log == [0, 1, 2, 3, 4]
