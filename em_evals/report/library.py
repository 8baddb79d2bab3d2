"""Vega, Vega-Lite and vega-embed as one script for the page, as vl-convert ships them.

vl-convert starts a JavaScript runtime and bundles them anew at each call, for seconds. The script is kept in the user's
cache by vl-convert's version; a file that others may have written is not used, because the page runs it.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.files import atomic, cache_folder

_OTHERS = 0o022
"""Permission bits that let others write."""


@cache
def browser_library() -> str:
    """Return the script; nothing in it ends a script element."""
    path = cache_folder() / "report" / f"vega-{version('vl-convert-python')}.js"
    return _kept(path) or _bundled(path)


def _kept(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            facts = os.fstat(file.fileno())
            own = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
            return file.read() if own and not facts.st_mode & _OTHERS else None
    except (OSError, UnicodeDecodeError):
        return None


def _bundled(path: Path) -> str:
    """Bundle the script and keep it where the cache can be written to."""
    import vl_convert

    library: Any = vl_convert  # its type stub requires an argument that the function does not
    bundle: str = library.javascript_bundle()
    text = bundle.replace("</script", "<\\/script")
    try:
        path.unlink(missing_ok=True)  # with the permissions that it was refused for
        with atomic(path, mode=0o644) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (EmEvalsError, OSError):
        pass
    return text
