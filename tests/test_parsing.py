"""The limits of JSON and YAML of others: one sentence with the line, at once, in little memory."""

import os
import resource
import time
from pathlib import Path

import pytest
import yaml

from em_evals import files, parsing
from em_evals.content import cards
from em_evals.errors import EmEvalsError

BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BILLION, MERGED])
def test_aliases_that_expand_to_a_billion_values_cost_nothing(text):
    """300 bytes of them took 10 s and 1.2 GB."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(EmEvalsError, match="expands to more than 250,000 values"):
        parsing.yaml_value(text)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: !!bool x", r":2: this is not valid YAML \('x' is no bool\)"),
        ("a: 1\nb: !!int x", ":2: this is not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", ":1: this is not valid YAML"),
        ("a: 2024-13-45", r":1: this is not valid YAML \(month must be in 1..12\)"),
        (f"a: 1\nb: {'9' * 5000}", ":2: this whole number has 5000 digits"),
        ("2024-01-01: x", ":1: YAML reads the key '2024-01-01' as timestamp; put it in quotes"),
        ("a: {no: x}", ":1: YAML reads the key 'no' as bool; put it in quotes"),
        ("? [1]\n: x", ":1: a key must be text"),
        ("a: 1\nb: 2\na: 3", ":3: the key 'a' is repeated"),
        ("[" * 100_000, ":1: this YAML is nested too deeply"),
        ("- " * 100_000, ":1: this YAML is nested too deeply"),
        ("a: &x [*x]", ":1: this value contains itself"),
    ],
)
def test_odd_yaml_is_one_sentence_with_its_line(text, sentence):
    with pytest.raises(EmEvalsError, match=f"^a.yaml{sentence}"):
        parsing.yaml_value(text, "a.yaml")


def test_yaml_within_the_limits_is_what_pyyaml_reads():
    text = "a: &a {k: [1, 0x1f, 1.5, .inf, ~, yes, 2024-01-02, '2024-01-02', \"é\\n\"]}\nb: {<<: *a, 3: |-\n  x\n  y\n}\n"
    text = text.replace("|-\n  x\n  y\n}", '"x"}')
    assert parsing.yaml_value(text) == yaml.safe_load(text)
    assert parsing.yaml_value("") is None and parsing.yaml_value("- 1\n- b") == [1, "b"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
        ("{", r"this file is not JSON \(Expecting"),
        (b"\xff\xff", "is not UTF-8 text"),
    ],
)
def test_odd_json_is_one_sentence(text, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        parsing.json_value(text, "a.json")
    assert parsing.json_value('{"a": [[1, -2.5, null]], "b": "[[["}') == {"a": [[1, -2.5, None]], "b": "[[["}


def test_a_repeated_key_is_refused_with_its_line(tmp_path):
    """JSON readers take the last of two, and which grade or answer counted was chance."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": {"a": 2}}\n{"b": {"a": 1, "c": 1, "a": 2}}\n')
    with pytest.raises(EmEvalsError, match=r"a.jsonl:2: this line has the key 'a' twice in one object"):
        list(files.read_jsonl(path))
    path.write_text('[{"a": 1},\n {"a": 1, "a": 2}]')
    with pytest.raises(EmEvalsError, match=r"a.jsonl:2: this row has the key 'a' twice"):
        list(files.read_rows(path))
    with pytest.raises(EmEvalsError, match=r"a.jsonl: this file has the key 'a' twice"):
        files.read_json(path)
    # A client's or a model's own call is what the library that it calls would take.
    assert parsing.json_value('{"a": 1, "a": 2}') == {"a": 2}


def test_a_long_line_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n')
    rows = files.read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(EmEvalsError, match=":2: this line is longer than 1,000 bytes"):
        next(rows)
    with pytest.raises(EmEvalsError, match="larger than 100 bytes"):
        files.read_text(path, 100)


def test_a_pipe_is_no_file_to_read(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(EmEvalsError, match="not a regular file"):
        files.read_text(tmp_path / "a.yaml")


def test_names_that_no_file_system_holds_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 300, f"{'x' * 300}.yaml", "a\0b"):
        with pytest.raises(EmEvalsError):
            cards.resolve(name)
    Path("adapters").mkdir()
    Path("adapters/long.yaml").write_text(f"base: {'b/' * 200}{'x' * 300}\nadapter: {'x' * 300}\n")
    with pytest.raises(EmEvalsError):
        cards.resolve("long")
    assert not isinstance(cards.list_cards()["long"], EmEvalsError)


@pytest.mark.full
def test_two_thousand_cards_are_listed_in_seconds(tmp_path, monkeypatch):
    """It took 32 s: each card listed the folder anew. The bound is for a slow machine; 0.2 to 0.4 s are usual."""
    monkeypatch.chdir(tmp_path)
    Path("adapters").mkdir()
    Path("adapters/c0.yaml").write_text("base: org/base\nadapter: a\n")
    for number in range(1, 2000):
        Path(f"adapters/c{number}.yaml").write_text(f"extends: c0\ndescription: number {number}\n")
    began = time.process_time()
    found = cards.list_cards()
    assert time.process_time() - began < 3
    assert sum(name.startswith("c") and name[1:].isdecimal() for name in found) == 2000
    assert found["c1999"].card.base == "org/base"
