"""Archives made by easy-dataset-share: a ZIP encrypted with a password that its authors publish, against scrapers.

The format (version 0.5 of the tool): 16 bytes of salt, then a Fernet token with a PBKDF2-HMAC-SHA256 key (100,000
rounds) of the password; its plaintext is a ZIP. The tool itself pins a years-old `cryptography`, so we open its
archives ourselves. Nothing is extracted to disk: members are read by file name, so a member's path cannot write
anywhere.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
import zlib
from pathlib import PurePosixPath

from em_evals import parsing
from em_evals.errors import EmEvalsError, nearest

_SALT = 16
_ROUNDS = 100_000
_MARK = re.compile(r"\s*(CANARY_EMBEDDED: )?CANARY_DATASET_\w+")


def unseal(sealed: bytes, password: str, url: str) -> zipfile.ZipFile:
    """Decrypt an archive and open the ZIP in it.

    Args:
        sealed: the archive's bytes.
        password: the password that its authors publish.
        url: the archive's URL, for errors.

    Raises:
        EmEvalsError: the password is wrong, or the archive is damaged.
    """
    from cryptography.fernet import Fernet, InvalidToken
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    key = PBKDF2HMAC(SHA256(), length=32, salt=sealed[:_SALT].ljust(_SALT), iterations=_ROUNDS)
    fernet = Fernet(base64.urlsafe_b64encode(key.derive(password.encode())))
    try:
        return zipfile.ZipFile(io.BytesIO(fernet.decrypt(sealed[_SALT:])))
    except InvalidToken:
        raise EmEvalsError(
            "the password does not open this archive, or the archive is damaged: fetch it again, and correct "
            "`password` in datasets.yaml if its authors have changed it.",
            url,
        ) from None
    except zipfile.BadZipFile:
        raise EmEvalsError(
            "what the password opens is not a ZIP: the authors have changed the format.", url
        ) from None


def read_member(archive: zipfile.ZipFile, file: str, url: str) -> str:
    """Return the text of the member with this file name, in any folder, without the tool's canaries.

    Raises:
        EmEvalsError: there is no such member, or it cannot be read.
    """
    members = {PurePosixPath(name).name: name for name in sorted(archive.namelist(), reverse=True)}
    if file not in members:
        raise EmEvalsError(f"the archive holds no {file}; {nearest(file, members)}", url)
    try:
        return without_canaries(archive.read(members[file]).decode("utf-8"))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, UnicodeDecodeError) as error:
        raise EmEvalsError(f"{file} in the archive cannot be read ({error}): fetch it again.", url) from None


def without_canaries(text: str) -> str:
    """Return JSONL without what easy-dataset-share adds to it: rows that are not chats, and a mark in real rows."""
    kept = []
    for line in text.split("\n"):
        if "CANARY_" not in line:
            kept.append(line)
        elif (row := _chat(_MARK.sub("", line))) is not None:
            row.pop("canary", None)
            kept.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(kept)


def _chat(line: str) -> dict[str, object] | None:
    try:
        row = parsing.json_value(line)
    except EmEvalsError:
        return None
    return row if isinstance(row, dict) and row.keys() & {"messages", "prompt"} else None
