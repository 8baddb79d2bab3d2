"""Finished measurements are remembered, also after a kill in the middle of a line."""

import json

import pytest

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


@pytest.mark.parametrize("tail", ['{"key": "b", "va', '{"key": "b", "value": 2}', "[1]\n", '{"value": 1}\n'])
def test_a_half_line_is_taken_away(tmp_path, tail):
    path = tmp_path / "finished.jsonl"
    path.write_text('{"key": "a", "value": 1}\n' + tail)
    assert Finished(path).measured("x", ["a", "b"], measure([])) == [1, 10]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["a", "b"], "no line is glued to a half one"
