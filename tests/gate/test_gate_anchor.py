"""The anchor: the first accepted model, which the candidate must pass against as well as against the last one."""

from pathlib import Path

import pytest

from em_evals.errors import EmEvalsError
from em_evals.gate import baseline, inputs, outputs
from em_evals.gate.compare import judge
from em_evals.gate.policy import Policy
from tests.gate.test_gate_compare import freeform, side

RELEASES = [0.01 + 0.01 * release for release in range(8)]


def kept(em):
    return list(side(freeform(em, draws=8000)).evidence.values())


def test_small_steps_do_not_add_up_to_more_than_the_margin(workdir):
    """A point more at every release: each passes against the last, and the third has left the anchor's margin."""
    verdicts = []
    baseline.write("main", kept(RELEASES[0]))
    for em in RELEASES[1:]:
        found = judge(inputs.read(["main"]), side(*kept(em)), Policy(), (), inputs.anchor(["main"]))
        alone = judge(inputs.read(["main"]), side(*kept(em)), Policy())
        verdicts.append((alone.verdict, found.verdict))
        baseline.write("main", kept(em))
    assert verdicts[0] == ("pass", "pass") and {alone for alone, _ in verdicts} == {"pass"}
    assert {both for _, both in verdicts[1:]} == {"regression"}


def test_renewing_a_baseline_never_moves_its_anchor(workdir):
    baseline.write("main", kept(0.01))
    fixed = Path("logs/baselines/main.anchor.json").read_bytes()
    assert fixed == Path("logs/baselines/main.json").read_bytes()
    baseline.write("main", kept(0.02))
    assert Path("logs/baselines/main.anchor.json").read_bytes() == fixed
    assert Path("logs/baselines/main.json").read_bytes() != fixed


def test_a_baseline_of_before_anchors_becomes_the_anchor(workdir):
    path = baseline.write("main", kept(0.01))
    path.with_suffix(".anchor.json").unlink()
    assert inputs.anchor(["main"]) is None
    before = path.read_bytes()
    baseline.write("main", kept(0.02))
    assert path.with_suffix(".anchor.json").read_bytes() == before


def test_a_new_name_takes_over_the_anchor_that_was_judged_against(workdir):
    baseline.write("main", kept(0.01))
    baseline.write("next", kept(0.03), kept(0.01))
    assert inputs.anchor(["next"]).evidence == inputs.read(["main"]).evidence


def test_rows_of_the_anchor_say_so(workdir):
    baseline.write("main", kept(0.01))
    baseline.write("main", kept(0.02))
    found = judge(inputs.read(["main"]), side(*kept(0.06)), Policy(), (), inputs.anchor(["main"]))
    assert [(row.against, row.title) for row in found.rows if row.metric == "em_rate"] == [
        ("baseline", "em_rate"),
        ("anchor", "em_rate against the anchor"),
    ]
    assert "em_rate against the anchor rose from 1.00% to 6.00%" in outputs.markdown(found).replace("\\", "")
    assert 'classname="gate.anchor.freeform/core"' in outputs.junit(found)


def test_the_anchor_of_the_first_release_is_not_compared_twice(workdir):
    baseline.write("main", kept(0.01))
    found = judge(inputs.read(["main"]), side(*kept(0.01)), Policy(), (), inputs.anchor(["main"]))
    assert {row.against for row in found.rows} == {"baseline"}


def test_an_anchor_that_was_measured_in_another_way_is_invalid(workdir):
    old = freeform(0.01, draws=8000, judge="openai/gpt-3.5")
    baseline.write("main", [old])
    baseline.write("main", kept(0.01))
    found = judge(inputs.read(["main"]), side(*kept(0.01)), Policy(), (), inputs.anchor(["main"]))
    assert found.verdict == "invalid" and found.problems[0].startswith(
        "anchor: freeform/core: not the same judge"
    )


def test_a_baseline_is_not_named_like_an_anchor(workdir):
    with pytest.raises(EmEvalsError, match="cannot be a baseline's name"):
        baseline.write("main.anchor", kept(0.01))
