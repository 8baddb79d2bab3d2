"""scipy.special, imported in a fifth of the time.

The package wraps each of its functions for array libraries that nothing here uses, with a docstring that is parsed and
written anew: half of the time of `em-evals rates` on 2,400 draws. Its compiled functions are the same objects.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["log_sum_exp", "p_value", "special"]


def _compiled() -> Any:
    """Return the module of compiled functions, without running its package's `__init__`.

    The package is absent again afterwards: whoever imports scipy.special gets all of it. Another thread that imports it
    meanwhile would not, so this is for a process of one thread.
    """
    if "scipy.special" in sys.modules or threading.active_count() > 1:
        return import_module("scipy.special")
    import scipy

    package = ModuleType("scipy.special")
    package.__path__ = [f"{folder}/special" for folder in scipy.__path__]
    sys.modules["scipy.special"] = package
    try:
        return import_module("scipy.special._ufuncs")
    except ImportError:  # a version of scipy with other modules
        return None
    finally:
        del sys.modules["scipy.special"]


class _Functions:
    """scipy.special's functions: compiled ones from their module, others from the package."""

    def __init__(self) -> None:
        self._compiled = _compiled()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._compiled, name, None) or getattr(import_module("scipy.special"), name)
        setattr(self, name, found)
        return found


special: Any = _Functions()


def p_value(chance: float) -> float:
    """Return a chance as a p-value, which is never 0: below the smallest normal float it comes out as 0 or denormal.

    Example:
        >>> p_value(0.0) > 0, p_value(0.25)
        (True, 0.25)
    """
    return max(float(chance), sys.float_info.min)


def log_sum_exp(values: NDArray[np.float64], weights: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return log Σ w exp(x) along an axis, as scipy.special.logsumexp computes it, for weights that are not negative.

    The largest terms stand apart from the sum of the others, which keeps the digits of a sum near one term.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        values, weights = np.broadcast_arrays(values, weights)
        values = np.where(weights == 0, -np.inf, values)
        largest = values.max(axis=axis, keepdims=True)
        at = values == largest
        times = (weights * at).sum(axis=axis, keepdims=True)
        rest = (weights * np.exp(np.where(at, -np.inf, values) - largest)).sum(axis=axis, keepdims=True)
        found: NDArray[np.float64] = np.log1p(rest / times) + np.log(times) + largest
    if not np.isfinite(found).all():
        exact: NDArray[np.float64] = special.logsumexp(values, axis=axis, b=weights)
        return exact
    return found.squeeze(axis)
