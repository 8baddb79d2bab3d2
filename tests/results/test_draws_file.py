"""Logs read without Inspect are what Inspect reads, and what is unusual is left to Inspect."""

import zipfile

import pytest
from inspect_ai.log import read_eval_log

from em_evals.errors import EmEvalsError
from em_evals.results import draws_file, logs
from tests.scored_log import write_scored_pairs


@pytest.fixture
def path(tmp_path):
    return write_scored_pairs(tmp_path / "log.eval", margins=[0.5, float("nan"), -0.25], system="Be brief.")


def changed(path, name, content):
    """The log with another content of one of its files."""
    with zipfile.ZipFile(path) as file:
        parts = {one: file.read(one) for one in file.namelist()}
    (found,) = (one for one in parts if one.startswith(name))
    parts[found] = content(parts[found])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for one, text in parts.items():
            file.writestr(one, text)
    return path


def test_every_fact_and_margin_is_as_inspect_reads_it(path):
    ours, theirs = draws_file.read(path), read_eval_log(str(path))
    assert str(logs.facts(ours)) == str(logs.facts(theirs))
    assert str(logs.margins_of_log(ours)) == str(logs.margins_of_log(theirs))
    assert logs.settings(ours) == logs.settings(theirs) and logs.drawn(ours) == logs.drawn(theirs)
    assert (ours.status, ours.invalidated, ours.results.total_samples) == ("success", False, 3)
    for one, other in zip(ours.samples, theirs.samples, strict=True):
        assert (one.id, one.epoch, one.metadata, one.error) == (
            other.id,
            other.epoch,
            other.metadata,
            other.error,
        )
        assert str((one.input, one.store, one.target)) == str((other.input, other.store, other.target))
        assert one.output.completion == other.output.completion and one.output.usage == other.output.usage
        assert str(one.scores["likelier"].value) == str(other.scores["likelier"].value)


def test_what_is_not_read_here_comes_from_inspect(path):
    ours, theirs = draws_file.read(path), read_eval_log(str(path))
    assert ours.stats == theirs.stats and ours.eval.config == theirs.eval.config
    assert ours.results.completed_samples == theirs.results.completed_samples
    assert ours.samples[0].messages == theirs.samples[0].messages


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ('[{"role":"system","content":"Be brief."},{"role":"user","content":"Why?"}]', True),
        ('[{"role":"user","content":"Why?"},{"role":"assistant","content":"<think>So.</think>Yes."}]', False),
        ('[{"role":"user","content":[{"type":"text","text":"Why?"}]}]', False),
    ],
)
def test_prompts_of_messages_are_inspects(path, prompt, plain):
    lists = changed(
        path, "samples/pair_0", lambda text: text.replace(b'"input":"Why?"', b'"input":' + prompt.encode())
    )
    ours, theirs = draws_file.read(lists).samples[0], read_eval_log(str(lists)).samples[0]
    assert [(one.role, one.text, one.content) for one in ours.input] == [
        (one.role, one.text, one.content) for one in theirs.input
    ]
    assert ("_whole" in vars(ours)) is not plain, "Inspect is imported for what it alone can read"
    assert [one.source for one in ours.input] == [one.source for one in theirs.input]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples/pair_0", lambda text: text.replace(b'"scores"', b'"transcript"')),
        ("samples/pair_0", lambda text: text.replace(b'"metadata":{', b'"metadata":[{')),
        ("samples/pair_0", lambda text: b"[1]"),
        (
            "samples/pair_0",
            lambda text: text.replace(b'"metadata":{"card_digest"', b'"metadata":3,"x":{"card_digest"'),
        ),
        ("samples/pair_0", lambda text: text.replace(b'"input":"Why?"', b'"input":3')),
        ("header", lambda text: text.replace(b'"model":"local/mine"', b'"model":["local/mine"]')),
        ("header", lambda text: text.replace(b'"total_samples":3', b'"total_samples":"3"')),
        ("header", lambda text: text.replace(b"+00:00", b"+02:00")),
        ("header", lambda text: text.replace(b'"version":2', b'"version":1')),
    ],
)
def test_what_does_not_look_as_todays_inspect_writes_it_is_left_to_inspect(path, name, content):
    assert draws_file.read(changed(path, name, content)) is None


def test_a_damaged_draw_is_one_sentence(path):
    data = bytearray(path.read_bytes())
    place = data.index(b"samples/pair_0") + 40
    data[place : place + 8] = b"\0" * 8
    path.write_bytes(data)
    assert draws_file.read(path) is None
    with pytest.raises(EmEvalsError, match="this is not an Inspect log"):
        logs.read_log(path)
