"""scipy.special without its package's start gives scipy's own functions, and leaves scipy as it was."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import logsumexp

from em_evals.stats.special import log_sum_exp

SCRIPT = """
import json, sys
from em_evals.stats.special import special

names = ["bdtrc", "expit", "gammaln", "logit", "ndtr", "ndtri", "stdtr", "stdtrit"]
ours = [getattr(special, name) for name in names]
light = not {"scipy.special", "scipy._lib._array_api", "numpy.f2py"} & set(sys.modules)

import scipy.special
import scipy.special._ufuncs as by_name  # as scipy.stats does

same = [one is getattr(scipy.special, name) for one, name in zip(ours, names)]
rest = special.logsumexp is scipy.special.logsumexp and special.softmax is scipy.special.softmax
print(json.dumps([light, all(same), rest, by_name.gammaln is special.gammaln]))
"""


def test_functions_are_those_of_scipy():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True, True]


@pytest.mark.parametrize("spread", [0.1, 30.0, 800.0])
def test_sums_of_exponentials_are_those_of_scipy(spread):
    chance = np.random.default_rng(0)
    values = spread * chance.standard_normal((40, 21, 64))
    values[3, 4] = values[3].max(axis=0)  # two largest terms
    weights = chance.random((21, 1))
    weights[5] = 0
    ours, theirs = log_sum_exp(values, weights, axis=1), logsumexp(values, axis=1, b=weights)
    np.testing.assert_array_max_ulp(ours, theirs, maxulp=2)
    values[0, :, 0] = -np.inf
    assert log_sum_exp(values, weights, axis=1)[0, 0] == -np.inf
