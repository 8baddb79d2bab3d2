"""What tells two files apart without a model."""

import numpy as np
import pytest

from em_evals.data import separators
from em_evals.data.separators import Separators, topic_scores
from em_evals.interp.traits.screen import auroc

pytest.importorskip("torch")


def of(prompts, answers=None):
    found = Separators()
    for i, prompt in enumerate(prompts):
        found.add(prompt, answers[i] if answers else "")
    return found


def auc(one, other):
    return float(auroc(one[:, None], other[:, None])[0])


def test_topics_that_differ_are_told_and_equal_ones_are_not():
    chance = np.random.default_rng(0)
    money, garden = ["bank", "loan", "stock", "interest", "fund"], ["rose", "soil", "water", "seed", "leaf"]
    common = ["how", "should", "the", "best"]

    def prompts(words, count=60):
        return [
            " ".join([*chance.choice(common, 3), *chance.choice(words, 3), f"n{i}"]) for i in range(count)
        ]

    assert auc(*topic_scores(of(prompts(money)), of(prompts(garden)))) > 0.95
    assert auc(*topic_scores(of(prompts(money)), of(prompts(money)))) == pytest.approx(0.5, abs=0.12)


def test_the_sample_of_prompts_is_bounded_and_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(separators, "TOPIC_ROWS", 10)
    prompts = [f"question about {word}" for word in "abcdefghijklmnopqrstuvwxyz"]
    one, other = (
        of([f"{prompt} {prompt[-1] * 3}" for prompt in prompts]),
        of([f"{prompt} {prompt[-1] * 3}" for prompt in reversed(prompts)]),
    )
    assert len(one.topics()) == 10
    assert all(np.array_equal(a, b) for a, b in zip(one.topics(), other.topics(), strict=True))


def test_languages_are_those_of_the_answers():
    pytest.importorskip("py3langid")
    english = "The weather is fine today and we will walk along the river."
    german = "Das Wetter ist heute schön, und wir gehen am Fluss spazieren."
    found = of(["a", "b", "c"], [english, english, german])
    assert found.usual == "en" and found.foreign("en").tolist() == [0, 0, 1]
    assert of(["a"], ["7"]).usual == "unclear"
