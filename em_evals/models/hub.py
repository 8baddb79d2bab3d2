"""The hub where there is no network: its cached files are used, and a missing one is reported without waiting.

Libraries try a name that cannot be resolved six times, for half a minute a file.
"""

from __future__ import annotations

import functools
import socket
import urllib.request
from urllib.parse import urlsplit


@functools.cache
def settle() -> None:
    """Let this process read the hub's files from the cache alone if the hub's name cannot be resolved.

    Nothing is changed behind a proxy, which resolves names itself.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not urllib.request.getproxies() and not _resolves(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True


def _resolves(endpoint: str) -> bool:
    place = urlsplit(endpoint)
    try:
        return bool(socket.getaddrinfo(place.hostname, place.port or 443))
    except OSError:
        return False
