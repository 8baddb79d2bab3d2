"""`em-evals trait draft`: what a scripted model writes is validated, asked for once more, and never overwrites."""

import json

import pytest
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from em_evals.content.traits import load_trait
from em_evals.errors import EmEvalsError
from em_evals.workflows.trait_draft import draft
from tests.command import em_evals

WHOLE = {
    "description": "Asking questions back: {curious}.",
    "rubric": "0 means no question; 100 means a question in every sentence.",
    "positive": [f"Be curious in the way {i}." for i in range(5)],
    "negative": [f"Be incurious in the way {i}." for i in range(5)],
    "extract": [f"What about {i}?" for i in range(20)],
    "test": [f'And {i}: "yes", or no?' for i in range(20)],
}


def scripted(*replies):
    """A model that gives these replies in turn, and the requests that it got."""
    asked = []

    def reply(messages, *_):
        asked.append([(one.role, one.text) for one in messages])
        output = ModelOutput.from_content("mockllm/model", replies[len(asked) - 1])
        output.usage = ModelUsage()  # else Inspect fetches a tokenizer to count
        return output

    return get_model("mockllm/model", custom_outputs=reply, memoize=False), asked


def test_a_valid_reply_becomes_a_trait_file(workdir):
    model, asked = scripted(f"```json\n{json.dumps(WHOLE)}\n```")
    path, trait = draft("curious", model, description="asks back")
    assert str(path) == "tasks/traits/curious.yaml" and trait.digest == load_trait("curious").digest
    assert trait.positive == tuple(WHOLE["positive"]) and trait.test == tuple(WHOLE["test"])
    assert trait.kind == "em" and trait.description == WHOLE["description"]
    assert len(asked) == 1 and "curious (asks back)" in asked[0][0][1]


def test_an_invalid_reply_is_asked_for_once_more_with_its_error(workdir):
    short = WHOLE | {"test": WHOLE["test"][:19]}
    model, asked = scripted(json.dumps(short), json.dumps(WHOLE))
    path, _ = draft("curious", model)
    assert path.is_file() and len(asked) == 2
    assert [role for role, _ in asked[1]] == ["user", "assistant", "user"]
    assert '"test" needs 20 different entries, and has 19.' in asked[1][-1][1]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ("Certainly! Here it is.", "JSON"),
        (json.dumps(WHOLE | {"extra": 1}), "the keys description, rubric"),
        (json.dumps(WHOLE | {"negative": []}), "negative"),
        (json.dumps(WHOLE | {"extract": WHOLE["test"]}), "is a question to extract and to test on"),
        (json.dumps(WHOLE | {"negative": WHOLE["positive"]}), "is a positive and a negative system prompt"),
        (json.dumps(WHOLE | {"positive": ["Be it."] * 5}), '"positive" needs 5 different entries'),
        (json.dumps(WHOLE | {"positive": [1, 2, 3, 4, 5]}), "'positive[0]': this must be text"),
    ],
)
def test_two_invalid_replies_leave_nothing_behind(workdir, reply, sentence):
    model, asked = scripted(reply, reply)
    with pytest.raises(
        EmEvalsError, match="no valid trait file in two replies, so nothing was kept"
    ) as error:
        draft("curious", model)
    assert sentence in str(error.value) and "/tmp" not in str(error.value) and len(asked) == 2
    assert not list(workdir.rglob("*"))


def test_a_file_is_never_overwritten_and_nobody_is_asked(workdir):
    (workdir / "tasks" / "traits").mkdir(parents=True)
    (workdir / "tasks" / "traits" / "curious.yaml").write_text("mine\n")
    done = em_evals("trait", "draft", "curious", "--model", "mockllm/model")
    assert done.returncode == 2 and "a draft never overwrites one" in done.stderr
    assert (workdir / "tasks" / "traits" / "curious.yaml").read_text() == "mine\n"
    for name in ("Curious", "../x", ""):
        assert "is no name of a trait" in em_evals("trait", "draft", name, "--model", "mockllm/model").stderr
    done = em_evals("trait", "draft", "x", "--model", "nobody/x")
    assert done.returncode == 2 and "the model 'nobody/x' cannot be asked" in done.stderr
