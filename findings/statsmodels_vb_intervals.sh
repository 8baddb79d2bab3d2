#!/usr/bin/env bash
# statsmodels 0.15.0: the more draws each question has, the less often BinomialBayesMixedGLM's interval holds the truth.
#
# Expected: a mixed logistic model with an effect for each question gives an interval of the rate in the kind of questions that were
#   asked. More draws of the same questions make it little narrower: what is not known is the questions.
# Seen: `fit_vb` treats the intercept and the questions' effects as independent in the posterior. Its standard deviation of the
#   intercept is about that of all draws pooled: it shrinks with each draw, while the estimate varies as before.
#   The documentation names the factored approximation and no consequence; `summary()` prints the number as "Post. SD".
#
#     python 3.11.7 | statsmodels 0.15.0 | scipy 1.17.1 | numpy 2.3.5
#     24 questions, logits of their rates normal around -2.0 with deviation 1.0; 60 studies
#                                             intercept                                  mean rate
#     draws of each   deviation of the estimate   mean Post. SD   95% interval holds it   t over questions holds it
#                 4                       0.334           0.292                   86.7%                       96.7%
#                16                       0.249           0.152                   75.0%                       98.3%
#                64                       0.192           0.075                   51.7%                       95.0%
#     seen: more draws, fewer intervals that hold
#
# With other versions: 0.15.0 is the newest at the time of writing. `fit_map` often warns that it did not converge.
# Hurt: rates of misaligned answers "with random effects for questions", the usual few questions with many draws each: a
#   difference between two models is significant if only enough is drawn.
# Avoid: an interval over the questions' own rates (Student's t, bootstrap of questions), or a fit that integrates over the
#   effects (lme4, PyMC).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment statsmodels==0.15.0 scipy==1.17.1 numpy==2.3.5
python - <<'PY'
import sys

import numpy as np
import scipy.sparse as sparse
from scipy import stats
from scipy.special import expit
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

QUESTIONS, STUDIES, INTERCEPT, SPREAD = 24, 60, -2.0, 1.0
TRUE_RATE = expit(INTERCEPT + SPREAD * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)).mean()
print(f"{QUESTIONS} questions, logits of their rates normal around {INTERCEPT} with deviation {SPREAD}; {STUDIES} studies")
print("                                        intercept                                  mean rate")
print("draws of each   deviation of the estimate   mean Post. SD   95% interval holds it   t over questions holds it")
found = {}
for draws in (4, 16, 64):
    chance = np.random.default_rng(draws)
    groups = sparse.csr_matrix(np.repeat(np.eye(QUESTIONS), draws, axis=0))
    estimates, deviations, held, student = [], [], 0, 0
    for _ in range(STUDIES):
        rates = expit(INTERCEPT + SPREAD * chance.standard_normal(QUESTIONS))
        answers = (chance.random((QUESTIONS, draws)) < rates[:, None]).astype(float)
        model = BinomialBayesMixedGLM(
            answers.ravel(), np.ones((answers.size, 1)), groups, np.zeros(QUESTIONS, int), vcp_p=1, fe_p=2
        )
        fit = model.fit_vb(rng=0)
        estimate, deviation = fit.fe_mean[0], fit.fe_sd[0]
        held += abs(estimate - INTERCEPT) < 1.96 * deviation
        estimates.append(estimate)
        deviations.append(deviation)
        seen_rates = answers.mean(axis=1)
        reach = stats.t.ppf(0.975, QUESTIONS - 1) * seen_rates.std(ddof=1) / np.sqrt(QUESTIONS)
        student += abs(seen_rates.mean() - TRUE_RATE) < reach
    found[draws] = (np.std(estimates), np.mean(deviations), held / STUDIES, student / STUDIES)
    spread, stated, share, other = found[draws]
    print(f"{draws:13}   {spread:25.3f}   {stated:13.3f}   {share:21.1%}   {other:25.1%}", flush=True)

shares = [row[2] for row in found.values()]
many = found[64]
seen = shares == sorted(shares, reverse=True) and shares[-1] < 0.65 and many[0] > 2.5 * many[1] and many[3] > 0.88
print("seen: more draws, fewer intervals that hold" if seen else "changed: intervals hold as promised")
sys.exit(0 if seen else 4)
PY
