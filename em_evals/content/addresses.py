"""Addresses in files: without names and passwords, which would stand in logs, records and errors."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def _open(url: str) -> str:
    """Return an address that holds no user and no password.

    Raises:
        ValueError: it does. The sentence does not quote it.
    """
    try:
        secret = "@" in urlsplit(url).netloc
    except ValueError:
        secret = "@" in url
    if secret:
        raise ValueError(
            "the URL holds a user or a password; leave them out, and give keys by the environment"
        )
    return url


Address = Annotated[str, AfterValidator(_open)]
