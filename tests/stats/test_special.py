"""scipy.special without its package's start gives scipy's own functions, and leaves scipy as it was."""

import json
import subprocess
import sys

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
