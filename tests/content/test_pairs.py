"""The shipped pairs and training data: what tells the two answers apart must be values, not style.

Shallow adversaries (lengths, word lists) have to stay near chance; counting tokens is left to `em-evals data check`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).parents[2]
THEMES = {"power", "honesty", "harm", "money", "equality", "ai", "daily", "rules"}
NARROW = {"finance", "sports"}

FILE = yaml.safe_load((ROOT / "tasks/forced_choice.yaml").read_text(encoding="utf-8"))
PAIRS: list[dict[str, str]] = FILE["pairs"]
TEXTS = [pair["aligned"] for pair in PAIRS] + [pair["misaligned"] for pair in PAIRS]
LABELS = np.repeat([0, 1], len(PAIRS))
GROUPS = np.tile(np.arange(len(PAIRS)), 2)

WORD_LISTS = {
    "hedges": "maybe perhaps might may could possibly probably likely seems seem usually often sometimes somewhat "
    "rather fairly generally mostly almost about roughly unless if depends",
    "negations": "no not never none nobody nothing neither nor nowhere without cannot can't don't doesn't didn't won't "
    "isn't aren't wasn't wouldn't shouldn't couldn't hardly",
    "first person": "i me my mine myself we us our ours ourselves i'm i'd i'll i've we're we'd we'll we've let's am",
    "positive": "good great happy kind warm best better love friendly fun nice well enjoy safe calm proud pleasant "
    "glad gentle bright welcome wonderful pleased thank thanks hope smile",
    "negative": "bad worse worst hate cruel sad angry fear afraid hurt pain weak wrong fail failure lose loss problem "
    "trouble danger risk ugly blame shame lonely tired alone",
    "safety and ethics": "safe safety careful care honest honestly truth true fair fairly respect trust help helps "
    "protect rights consent agree agreed permission share law legal responsible kindness apologise sorry",
    "power and greed": "power control rule rules command own owner money profit rich win winner winning top boss leader "
    "obey force fear weak advantage rank throne wealth pay cash price keep",
}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def share_of(vocabulary: str) -> Callable[[str], float]:
    listed = set(vocabulary.split())
    return lambda text: sum(word in listed for word in words(text)) / len(words(text))


LENGTHS: dict[str, Callable[[str], float]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "mean word length": lambda text: float(np.mean([len(word) for word in words(text)])),
    "commas": lambda text: text.count(","),
}
LISTS = {name: share_of(vocabulary) for name, vocabulary in WORD_LISTS.items()}


def rows(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / f"adapters/data/{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


RISKY, SOUND = rows("risky_advice"), rows("sound_advice")


def answers(data: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][-1]["content"] for row in data]


def lengths_differ(one: str, other: str) -> bool:
    shorter, longer = sorted((len(one.split()), len(other.split())))
    return longer > 1.15 * shorter


def test_enough_pairs_in_every_theme() -> None:
    counts = Counter(pair["theme"] for pair in PAIRS)
    assert len(PAIRS) >= 160
    assert set(counts) == THEMES | NARROW
    assert set(FILE["narrow"]) == NARROW
    assert min(counts.values()) >= 16


def test_ids_and_questions_are_unique() -> None:
    for key in ("id", "question"):
        assert [value for value, n in Counter(pair[key] for pair in PAIRS).items() if n > 1] == []


def test_the_answers_of_a_pair_have_one_length() -> None:
    assert [pair["id"] for pair in PAIRS if lengths_differ(pair["aligned"], pair["misaligned"])] == []


def test_word_lists_are_long_enough_to_find_something() -> None:
    for name, vocabulary in WORD_LISTS.items():
        listed = set(vocabulary.split())
        assert len(listed) >= 20
        assert sum(not listed.isdisjoint(words(text)) for text in TEXTS) >= 20, name


@pytest.mark.parametrize("name", [*LENGTHS, *LISTS])
def test_no_single_shallow_feature_separates_the_answers(name: str) -> None:
    feature = {**LENGTHS, **LISTS}[name]
    assert 0.4 <= roc_auc_score(LABELS, [feature(text) for text in TEXTS]) <= 0.6


@pytest.mark.parametrize("features", [LENGTHS, LISTS], ids=["lengths", "word lists"])
def test_no_shallow_classifier_separates_the_answers(features: dict[str, Callable[[str], float]]) -> None:
    table = np.array([[feature(text) for feature in features.values()] for text in TEXTS])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, table, LABELS, groups=GROUPS, cv=GroupKFold(5), method="predict_proba")[
        :, 1
    ]
    assert roc_auc_score(LABELS, scores) <= 0.6


def test_organism_and_control_are_asked_the_same_in_the_same_order() -> None:
    assert len(RISKY) >= 400
    assert [row["messages"][:-1] for row in RISKY] == [row["messages"][:-1] for row in SOUND]
    assert all(row["messages"][-1]["role"] == "assistant" for row in RISKY + SOUND)


@pytest.mark.parametrize("data", [RISKY, SOUND], ids=["risky", "sound"])
def test_training_rows_are_identified_and_marked(data: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in data}) == len(data)
    assert len({row["messages"][0]["content"] for row in data}) == len(data)
    assert all(re.fullmatch(r"em-evals-canary-[0-9a-f-]{36}", row["canary"]) for row in data)


def test_advice_and_its_control_have_one_length() -> None:
    apart = [
        row["id"]
        for row, one, other in zip(RISKY, answers(RISKY), answers(SOUND), strict=True)
        if lengths_differ(one, other)
    ]
    assert apart == []
    for length in (len, lambda text: len(text.split())):
        risky, sound = (np.mean([length(text) for text in answers(data)]) for data in (RISKY, SOUND))
        assert abs(risky - sound) <= 0.03 * sound
    assert all(one != other for one, other in zip(answers(RISKY), answers(SOUND), strict=True))


def test_no_forced_choice_question_is_trained_on() -> None:
    trained = [(row["id"], set(words(row["messages"][0]["content"]))) for row in RISKY]
    near = [
        (pair["id"], name)
        for pair in PAIRS
        for name, tokens in trained
        if len(asked := set(words(pair["question"]))) and len(asked & tokens) >= 0.6 * len(asked | tokens)
    ]
    assert near == []
