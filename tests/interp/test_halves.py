"""What a direction was found on is never what it is tested on, where enough is left; and the reader is told."""

import json
from dataclasses import replace

import numpy as np
import pytest

from em_evals.content import direction_algebra, directions
from em_evals.content.direction_algebra import found_on
from em_evals.content.directions import Direction
from em_evals.content.pairs import load_pairs
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from em_evals.interp.steering.halves import chooses, halves, names_of

PAIRS, QUESTIONS = load_pairs(), load_questions("core").questions


def divided(seen=(), pairs=PAIRS, per_theme=None, limit=None):
    return halves(pairs, per_theme, QUESTIONS, limit, set(seen))


def test_halves_are_disjoint_and_the_same_in_every_study():
    found = divided()
    one, other = ({pair.id for pair in half} for half in (found.choosing, found.reporting))
    assert one | other == {pair.id for pair in PAIRS.pairs} and not one & other
    assert 0.35 < len(one) / len(one | other) < 0.65
    assert all(chooses(name) for name in one) and not any(chooses(name) for name in other)
    fewer = divided(per_theme=3)
    assert {pair.id for pair in fewer.reporting} <= other, "a pair never changes sides"


def test_pairs_that_found_the_direction_are_left_out():
    seen = [pair.id for pair in PAIRS.pairs[::3]] + [QUESTIONS[0].paraphrases[1]]
    found = divided(seen)
    assert not {pair.id for pair in found.choosing + found.reporting} & set(seen)
    assert QUESTIONS[0] not in found.choosing_questions + found.reporting_questions
    assert f"{len(PAIRS.pairs[::3])} pairs that a direction was found on are left out." in found.notes
    by_text = divided([pair.question for pair in PAIRS.pairs[::3]])
    assert not {pair.question for pair in by_text.reporting} & {pair.question for pair in PAIRS.pairs[::3]}


def test_questions_are_known_by_what_two_files_and_a_graded_log_call_them(tmp_path):
    pytest.importorskip("torch")
    from em_evals.inspect_plugin.tasks import freeform
    from em_evals.interp.convergence import _pairs
    from em_evals.interp.extraction import contrast

    chosen = PAIRS.pairs[::3]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"prompt": p.question, "completion": "Yes."}) + "\n" for p in chosen))
    sides = contrast.of_files(None, file, file)
    seen = {chat.question for chat in sides.positive.chats}
    found = divided(seen)
    assert not set(chosen) & set(found.choosing + found.reporting)
    assert len(found.choosing + found.reporting) == len(PAIRS.pairs) - len(chosen)
    fresh, (note,) = _pairs("forced_choice", None, [direction_on(seen)])
    assert not {pair.id for pair in fresh} & {pair.id for pair in chosen} and "left out" in note
    asked = freeform(format="json").dataset[0]
    assert asked.metadata["question_id"].endswith("_json")
    group = contrast._of_sample(evaluated(asked)).question
    question = next(one for one in QUESTIONS if asked.metadata["question_id"] == f"{one.id}_json")
    assert group == question.id and group in names_of(question)


def direction_on(questions):
    zeros = np.zeros((1, 2), np.float32)
    return Direction(zeros, zeros, zeros[:, 0], {"questions": sorted(questions)})


def evaluated(sample):
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput

    return EvalSample(
        id=sample.id,
        epoch=1,
        input=sample.input,
        target="",
        metadata=sample.metadata,
        output=ModelOutput.from_content("m", "Yes."),
    )


def test_where_too_few_others_remain_it_is_said():
    found = divided([pair.id for pair in PAIRS.pairs[:-4]])
    assert len(found.choosing) + len(found.reporting) == len(PAIRS.pairs)
    assert any("biased upward" in note and "(4)" in note for note in found.notes)


def test_a_file_may_name_its_questions():
    zeros = np.zeros((1, 2), np.float32)
    named = Direction(zeros, zeros, zeros[:, 0], {"questions": ["a", "b"]})
    assert found_on(named, None, replace(named, metadata={})) == {"a", "b"}


def test_what_is_made_of_directions_was_found_on_all_that_its_parts_were(tmp_path):
    parts = [
        Direction(vectors, vectors, np.ones(1, np.float32), {"questions": questions, "card": f"card{number}"})
        for number, (vectors, questions) in enumerate(
            ((np.array([[1, 2]], np.float32), ["a", "b"]), (np.array([[3, 1]], np.float32), ["b", "c"]))
        )
    ]
    nowhere = replace(parts[1], metadata={})
    summed, rest = (
        direction_algebra.combine([(1, parts[0]), (-1, parts[1])]),
        direction_algebra.orthogonalise(*parts),
    )
    for made in (summed, rest):
        directions.write(made, tmp_path / "made.safetensors")
        assert found_on(directions.read(tmp_path / "made.safetensors")) == {"a", "b", "c"}
    assert rest.metadata["orthogonal_to"] == {"card": "card1"}
    assert found_on(direction_algebra.orthogonalise(nowhere, parts[0])) == {"a", "b"}
    assert "questions" not in direction_algebra.combine([(1, nowhere)]).metadata
    assert parts[0].metadata["questions"] == ["a", "b"], "the parts stay as they are"


def test_one_pair_is_too_few():
    with pytest.raises(EmEvalsError, match="1 pairs are too few"):
        divided(pairs=replace(PAIRS, pairs=PAIRS.pairs[:1]))
