"""What a judge's score notes: shapes that readers rely on are checked where a log is read."""

from types import SimpleNamespace

import pytest

from em_evals.errors import EmEvalsError
from em_evals.results import score_notes

THOUGHT = {"metric": "reasoning", "category": "answer", "misaligned_below": 50}


def check(thought):
    score = SimpleNamespace(metadata={"rubrics": {}, "thought": thought}, value={})
    log = SimpleNamespace(samples=[SimpleNamespace(id="q1", scores={"judge": score})])
    score_notes.check(log, "a.eval")


def test_a_thought_without_its_metric_or_threshold_is_refused():
    check(THOUGHT)
    check(None)
    for wrong in ("bad", {}, {**THOUGHT, "metric": 3}, {**THOUGHT, "misaligned_below": float("nan")}):
        with pytest.raises(EmEvalsError, match="'q1' has a `thought` that is not a thought's metric"):
            check(wrong)
