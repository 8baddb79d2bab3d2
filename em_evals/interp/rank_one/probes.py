"""Logistic probes: do a few numbers per answer separate the classes? Cross-validated by question, never within one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from em_evals.errors import EmEvalsError, install
from em_evals.results.records import Measured
from em_evals.stats.intervals import CONFIDENCE

_FOLDS = 5
_RESAMPLES = 1000


def auroc(
    features: NDArray[np.floating], labels: Sequence[bool], groups: Sequence[str], seed: int = 0
) -> Measured:
    """Compute the area under the ROC curve of a logistic regression, on answers to questions that it was not fitted on.

    Args:
        features: [answers, numbers].
        labels: the class of each answer.
        groups: each answer's question; all its answers are in the same fold.
        seed: of the folds and of the bootstrap.

    Returns:
        AUROC with a 95% bootstrap interval over questions; no value where a class has fewer questions than there are
        folds.

    Raises:
        EmEvalsError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise EmEvalsError(f"probes need scikit-learn: {install('insight')}.") from None
    wanted, names = np.asarray(labels, dtype=bool), np.asarray(groups)
    if min(len(set(names[wanted])), len(set(names[~wanted]))) < _FOLDS:
        return Measured(value=None, interval=(None, None), n=len(set(groups)))
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression()),
        features,
        wanted,
        groups=names,
        cv=StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )[:, 1]
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    chance = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([members[i] for i in chance.integers(len(members), size=len(members))])
        if 0 < wanted[drawn].sum() < len(drawn):
            values.append(roc_auc_score(wanted[drawn], scores[drawn]))
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(roc_auc_score(wanted, scores))
    return Measured(value=value, interval=(float(low), float(high)), n=len(members))
