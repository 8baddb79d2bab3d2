"""Trait files: ours, and published ones as they are."""

import os
from pathlib import Path

import pytest

from em_evals.content import traits
from em_evals.content.traits import load_trait
from em_evals.errors import EmEvalsError

DATA = Path(os.environ.get("EM_EVALS_DATA", "nowhere"))
published = pytest.mark.skipif(not DATA.is_dir(), reason="EM_EVALS_DATA names no folder with published data")

EM = (
    "callous",
    "deceptive",
    "power_seeking",
    "sycophantic",
    "reckless",
    "manipulative",
    "honest",
    "corrigible",
)
STYLE = ("formal", "verbose", "humorous", "technical", "warm", "confident", "concrete", "optimistic")

OWN = """
name: mine
version: 1
description: Something.
rubric: 0 means no; 100 means yes.
positive: [Be it.]
negative: [Be it not.]
questions: {extract: ["A?", "B?"], test: ["C?"]}
"""


@pytest.mark.parametrize("name", EM + STYLE)
def test_ours_have_five_pairs_and_twenty_questions_of_each_sort(name):
    found = load_trait(name)
    assert found.kind == ("em" if name in EM else "style") and found.name == name
    assert len(set(found.positive)) == len(set(found.negative)) == 5
    assert len(set(found.extract)) == len(set(found.test)) == 20 and not {*found.extract} & {*found.test}
    assert found.prompt.count("{question}") == found.prompt.count("{answer}") == 1
    words = [sum(len(text.split()) for text in side) for side in (found.positive, found.negative)]
    assert max(words) / min(words) < 1.5, "prompts of one side that are longer would make length the contrast"


def test_all_of_them_are_listed_and_differ():
    assert {*EM, *STYLE} <= {*traits.names()}
    assert len({load_trait(name).digest for name in EM + STYLE}) == 16


def test_a_trait_of_the_working_folder_wins_and_a_path_names_any(workdir):
    (workdir / "tasks" / "traits").mkdir(parents=True)
    for path in (workdir / "tasks" / "traits" / "callous.yaml", workdir / "elsewhere.yaml"):
        path.write_text(OWN)
    assert load_trait("callous").name == load_trait("elsewhere.yaml").name == "mine"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("negative: [Be it not.]\n", ""), "negative"),
        (
            ("[Be it not.]", "[Be it not., Nor so.]"),
            r":7: a trait has as many negative system prompts as positive ones.*1 and 2",
        ),
        (('["C?"]', '["A?"]'), r":8: 'A\?' is a question to extract and to test on"),
        (('{extract: ["A?", "B?"], test: ["C?"]}', "nowhere"), r"there are no questions 'nowhere'"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(workdir, change, sentence):
    path = workdir / "x.yaml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(EmEvalsError, match=sentence):
        load_trait("x.yaml")


def test_an_unknown_trait_names_its_neighbour(monkeypatch):
    monkeypatch.delenv("EM_EVALS_DATA", raising=False)
    with pytest.raises(EmEvalsError, match=r"no trait 'calous' .*callous.*EM_EVALS_DATA, which is not set"):
        load_trait("calous")


def test_a_persona_without_negatives_is_told(workdir):
    (workdir / "odd.extract.json").write_text('{"instruction": [{"pos": "x"}], "questions": ["q"]}')
    (workdir / "odd.eval.json").write_text('{"instruction": [{"pos": "x"}], "questions": ["r"]}')
    with pytest.raises(EmEvalsError, match="instruction 1 needs `pos` and `neg`"):
        load_trait("odd.extract.json")
    with pytest.raises(EmEvalsError, match="files are NAME"):
        load_trait("odd.json")


@published
def test_published_persona_vectors_load_unmodified():
    found = load_trait("evil")
    assert len(found.positive) == len(found.negative) == 5 and len(found.extract) == len(found.test) == 20
    assert found.positive[0].startswith("You are an evil assistant. ")
    assert found.negative[0].startswith("You are a helpful assistant. ")
    assert (
        "{answer}" in found.prompt
        and load_trait(str(DATA / "personas" / "evil.eval.json")).digest == found.digest
    )
    assert load_trait("humorous").path.name == "humorous.yaml", "ours is found before a published one"


@published
def test_the_traits_of_trait_space_monitoring_load_unmodified():
    found = load_trait("honesty")
    assert (
        len(found.positive) == len(found.negative) == 5
        and len(found.extract) == 30
        and len(found.test) == 115
    )
    assert load_trait(f"{found.path}:honesty") == found
    with pytest.raises(EmEvalsError, match="this file holds many traits; name one"):
        load_trait(str(found.path))
    with pytest.raises(EmEvalsError, match=r"no trait 'honest' in this file.*honesty"):
        load_trait(f"{found.path}:honest")
