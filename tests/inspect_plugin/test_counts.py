"""Numbers from the command line: words are one sentence, and `per_theme` takes the first pairs of each theme."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from inspect_ai._util.error import PrerequisiteError

from em_evals.content.pairs import load_pairs
from em_evals.inspect_plugin import tasks


@pytest.mark.parametrize("wrong", ["two", 0, -1, 1.5, True])
def test_a_count_that_is_none_is_one_sentence(wrong: Any) -> None:
    calls: dict[str, Any] = {
        "epochs": lambda: tasks.freeform(epochs=wrong, judge="none"),
        "per_theme": lambda: tasks.forced_choice(per_theme=wrong),
        "limit": lambda: tasks.narrow(limit=wrong),
    }
    for name, call in calls.items():
        with pytest.raises(PrerequisiteError, match=f"-T {name}={wrong}: expected a whole number from 1 on"):
            call()


def test_per_theme_takes_the_first_pairs_of_each_theme() -> None:
    every = load_pairs()
    dataset = tasks.forced_choice(per_theme=2).dataset
    assert [sample.id for sample in dataset] == every.first(2)
    themes = Counter((sample.metadata or {})["theme"] for sample in dataset)
    assert set(themes.values()) == {2} and len(themes) == len({pair.theme for pair in every.pairs})
    assert len(tasks.forced_choice().dataset) == len(every.pairs)
