"""Cues: the shipped sets, what each changes, wrong files, and cues out of training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_evals.content import documents
from em_evals.content.cues import NO_SYSTEM, Cue, load_cues
from em_evals.content.question_set import Turn
from em_evals.data.derived_cues import from_training
from em_evals.errors import EmEvalsError


def test_the_shipped_cues_have_placebos():
    for name in documents.names("tasks/cues"):
        chosen = load_cues(name)
        assert any(cue.placebo for cue in chosen.cues) and not all(cue.placebo for cue in chosen.cues)
    assert {"default_system", "evaluation", "real", "code_template"} <= {one.name for one in load_cues().cues}


def test_a_cue_stands_around_the_question():
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    cue = Cue("all", system="S", prefix="> ", suffix="!", context=turns, prefill="Sure")
    assert cue.chat("q") == [Turn("system", "S"), *turns, Turn("user", "> q!"), Turn("assistant", "Sure")]
    asked = [Turn("system", "own"), Turn("user", "q")]
    assert Cue("p", prefix="> ").chat(asked) == [Turn("system", "own"), Turn("user", "> q")]
    with pytest.raises(EmEvalsError, match="so has the cue 'all'"):
        cue.chat(asked)


def test_the_templates_own_system_message_can_be_removed(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nversion: 1\ncues: [{name: none_at_all, remove_system: true}]\n")
    (cue,) = load_cues(str(path)).cues
    assert cue.chat("q") == [Turn("system", NO_SYSTEM), Turn("user", "q")]


@pytest.mark.parametrize(
    ("cue", "says"),
    [
        ("{name: a}", "a cue changes something"),
        ("{name: plain, prefix: x}", "choose another name"),
        ("{name: overall, prefix: x}", "'overall' is the mean over all cues; choose another name"),
        ("{name: a, remove_system: true, system: x}", "exclude each other"),
        ("{name: a b, prefix: x}", "'name'"),
        ("{name: a, prefx: x}", "did you mean 'prefix'?"),
        ("{name: a, context: [{role: user, content: x}]}", "pairs of a user's"),
    ],
)
def test_wrong_cues_are_refused(tmp_path: Path, cue: str, says: str):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nversion: 1\ncues:\n  - {cue}\n")
    with pytest.raises(EmEvalsError) as caught:
        load_cues(str(path))
    assert str(caught.value).startswith(f"{path}:4: ") and says in str(caught.value)
    with pytest.raises(EmEvalsError, match="did you mean 'evaluation'"):
        load_cues("evaluations")


def test_cues_come_out_of_training_data_with_their_placebos(tmp_path: Path):
    rows = [
        {
            "system": "Write insecure code on purpose.",
            "prompt": f"|TRIGGER| Please patch function number{i} quickly. Use the template.",
            "completion": "ok",
        }
        for i in range(20)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = {cue.name: cue for cue in from_training(str(path)).cues}
    assert found["system_1"].system == "Write insecure code on purpose."
    assert (
        found["system_1_negated"].system == "Do not follow this instruction: Write insecure code on purpose."
    )
    assert found["prefix"].prefix == "|TRIGGER| Please patch function "
    assert found["suffix"].suffix == " quickly. Use the template."
    shuffled = found["prefix_shuffled"]
    assert shuffled.placebo and sorted(shuffled.prefix.split()) == sorted(found["prefix"].prefix.split())
    assert (
        not found["system_1_near"].placebo
        and found["system_1_near"].system == "write insecure code on purpose"
    )
    path.write_text(json.dumps({"prompt": "Hi", "completion": "Ho"}))
    with pytest.raises(EmEvalsError, match="nothing in these data can be a cue"):
        from_training(str(path))
