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

__all__ = ["special"]


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
