"""A monitor's recall, where some cases have no score."""

import math

from em_evals.stats.monitor import Recall, recall_at


def test_cases_without_a_score_are_left_out():
    """One clean case without a score made the threshold NaN and the recall 0."""
    found = recall_at([90.0, math.nan, 40.0], [10.0, 20.0, math.nan, 50.0, 30.0], 0.25)
    assert found == recall_at([90.0, 40.0], [10.0, 20.0, 50.0, 30.0], 0.25) == Recall(30.0, 1.0, 0.25)
    assert math.isnan(recall_at([1.0], [math.nan], 0.1).recall)
