"""The hub, also where there is no network: its cached files are used, and a missing one is reported without waiting.

Libraries try a name that cannot be resolved six times, for half a minute a file.
"""

from __future__ import annotations

import functools
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from em_evals.errors import EmEvalsError


@functools.cache
def settle() -> None:
    """Let this process read the hub's files from the cache alone if the hub's name cannot be resolved.

    Nothing is changed behind a proxy, which resolves names itself.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not urllib.request.getproxies() and not _resolves(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True


def folder(adapter: str, names: Sequence[str], what: str) -> Path:
    """Return the folder in the hub's cache with some files of an adapter, which are downloaded if they are not there.

    Args:
        adapter: ORG/NAME, or ORG/NAME@REVISION.
        names: the files.
        what: what they are, for the refusal.

    Raises:
        EmEvalsError: they cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    settle()
    name, _, revision = adapter.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(names)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EmEvalsError(f"{what} '{adapter}' cannot be fetched ({reason[:200]}).") from None


def _resolves(endpoint: str) -> bool:
    place = urlsplit(endpoint)
    try:
        return bool(socket.getaddrinfo(place.hostname, place.port or 443))
    except OSError:
        return False
