"""A sweep's steps in a store that fsspec opens (`s3://`, `gs://`, a folder), so that nodes need no shared folder.

A step's files lie under `NAME/DIGEST/`, the digest being the step's: nothing in the store is ever of another plan. Its
record is written last and names each file's SHA-256, so that a record means that everything is there, and what is
fetched is what was written. fsspec's backends find credentials in the environment; they are in no URL and no record.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from em_evals import files, locks, parsing
from em_evals.content import identity
from em_evals.errors import EmEvalsError
from em_evals.sweep import steps
from em_evals.sweep.steps import OUTPUT, RECORD, Record, Step

_FAILED = ".failed.json"
"""The record of a step that failed: shown to people, and read by nobody."""
_STORED = TypeAdapter(dict[str, str])
_RECORDS = TypeAdapter(Record)


class Store:
    """A place for steps.

    Args:
        url: any that fsspec opens.

    Raises:
        EmEvalsError: it holds credentials, or its backend is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        _refuse_credentials(url)
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        with self._telling("cannot open"):
            self._system, self._root = fsspec.url_to_fs(self.url)
        self._local = isinstance(self._system, LocalFileSystem)
        if self._local:
            self._system.auto_mkdir = True

    def done(self) -> set[tuple[str, str]]:
        """Return the steps that are whole in the store: (name, digest).

        Raises:
            EmEvalsError: it cannot be listed.
        """
        with self._telling("cannot list"):
            self._system.invalidate_cache()
            try:
                paths = self._system.find(self._root)
            except FileNotFoundError:
                return set()
        found = set()
        for path in paths:
            if path.endswith(f"/{RECORD}"):
                place = PurePosixPath(path.removeprefix(self._root).lstrip("/")).parent
                found.add((str(place.parent), place.name))
        return found

    def send(self, step: Step, folder: Path, record: Record) -> None:
        """Copy what a step wrote into the store, its record last. Of a failed one only its output is copied.

        Raises:
            EmEvalsError: the store cannot be written to; the local files stay.
        """
        done = record.state == "done"
        own = steps.home(step, folder)
        wanted = {name: own / name for name in (record.outputs if done else ())}
        output = steps.place(folder, step.name) / OUTPUT
        if output.is_file():
            wanted[OUTPUT] = output
        digests = {name: identity.file_digest(path) for name, path in wanted.items()}
        with self._telling(f"could not store {step.name} (its files are kept in {folder}) in"):
            for name, path in wanted.items():
                self._system.put_file(str(path), self._path(step, name))
            text = json.dumps({"record": asdict(record), "files": digests}, indent=1) + "\n"
            self._write(self._path(step, RECORD if done else _FAILED), text.encode())

    def fetch(self, step: Step, folder: Path, only: Sequence[str] | None = None) -> bool:
        """Copy a step's files into the sweep's folder, if the store has them; what lies there already is not copied.

        What another plan or an unfinished try left in its place is moved to `replaced/`.

        Args:
            step: its name, measure, model and digest count.
            folder: the sweep's.
            only: only these files, and no record; None: all.

        Raises:
            EmEvalsError: the store cannot be read, a file in it is not what its record says, or the folder cannot be
                written to.
        """
        if steps.is_done(step, folder):
            return True
        # Two workers of one node may need the same step: the second one must not move what the first one reads.
        with locks.alone(steps.place(folder, step.name)):
            return steps.is_done(step, folder) or self._fetch(step, folder, only)

    def _fetch(self, step: Step, folder: Path, only: Sequence[str] | None) -> bool:
        if (found := self._record(step)) is None:
            return False
        record, digests = found
        own, place = steps.home(step, folder), steps.place(folder, step.name)
        if only is not None:
            wanted = {name: digests[name] for name in only if name in digests}
            begun = steps.read_record(folder, step.name) is not None
            if begun or not all(_is(own / name, digest) for name, digest in wanted.items()):
                # A try that this machine began must not look as if it had come to this end.
                for left in (one for one in (own, place) if one.exists()):
                    steps.put_aside(folder, str(left.relative_to(folder)))
                for name, digest in wanted.items():
                    with files.atomic(own / name) as temporary:
                        self._get(step, name, digest, temporary)
            return True
        beside = {OUTPUT: digests[OUTPUT]} if OUTPUT in digests else {}
        outputs = {name: digest for name, digest in digests.items() if name != OUTPUT}
        if own != place:
            self._fill(step, own, outputs, folder, None)
            outputs = {}
        self._fill(step, place, outputs | beside, folder, record)
        return True

    def put(self, path: Path) -> None:
        """Copy one file of the sweep's folder, a plan or a table, into the store.

        Raises:
            EmEvalsError: the store cannot be written to.
        """
        with self._telling(f"could not store {path.name} in"):
            self._write(f"{self._root}/{path.name}", files.read_bytes(path))

    def _fill(
        self, step: Step, place: Path, digests: dict[str, str], folder: Path, record: Record | None
    ) -> None:
        """Make a folder of these files at once, so that nobody meets a part of it."""
        with files.atomic_folder(place) as new:
            for name, digest in digests.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                if _is(place / name, digest):
                    shutil.copyfile(place / name, new / name)
                else:
                    self._get(step, name, digest, new / name)
            if record is not None:
                steps.write_record_at(new / RECORD, record)
            if place.exists():
                steps.put_aside(folder, str(place.relative_to(folder)))

    def _get(self, step: Step, name: str, digest: str, path: Path) -> None:
        with self._telling(f"cannot fetch {step.name}/{name} from"):
            self._system.get_file(self._path(step, name), str(path))
        if identity.file_digest(path) != digest:
            raise EmEvalsError(
                f"{self.url}: {step.name}/{name} is not the file that its record names; delete "
                f"{step.name}/{step.digest}/{RECORD} there, and the step is done again."
            )

    def _record(self, step: Step) -> tuple[Record, dict[str, str]] | None:
        with self._telling(f"cannot fetch {step.name} from"):
            try:
                text = self._system.cat_file(self._path(step, RECORD))
            except FileNotFoundError:
                return None
        try:
            told = parsing.json_value(text.decode(), Path(step.name) / RECORD)
            record, digests = _RECORDS.validate_python(told["record"]), _STORED.validate_python(told["files"])
        except (EmEvalsError, ValidationError, ValueError, KeyError, TypeError):
            return None  # damaged by something else than us: the step is done again
        inside = all(
            not PurePosixPath(name).is_absolute() and ".." not in name.split("/") for name in digests
        )
        whole = set(record.outputs) <= digests.keys()
        if not inside or not whole or (record.digest, record.state) != (step.digest, "done"):
            return None
        return record, digests

    def _path(self, step: Step, name: str) -> str:
        return f"{self._root}/{step.name}/{step.digest}/{name}"

    def _write(self, path: str, data: bytes) -> None:
        """Write an object at once; object stores show it only when it is whole, and a file system's file is renamed."""
        if self._local:
            with files.atomic(Path(path)) as temporary:
                temporary.write_bytes(data)
        else:
            self._system.pipe_file(path, data)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Raise what a backend raises as one sentence; each has errors of its own."""
        try:
            yield
        except (EmEvalsError, KeyboardInterrupt):
            raise
        except ImportError as error:
            raise EmEvalsError(f"{what} {self.url}: {_line(error)}") from None
        except Exception as error:
            raise EmEvalsError(f"{what} {self.url}: {type(error).__name__}: {_line(error)}") from None


def _refuse_credentials(url: str) -> None:
    """Refuse a URL that names a user, a password or parameters: it would stand in process lists and in records."""
    for part in url.split("::"):
        try:
            split = urlsplit(part)
            local = split.scheme in ("", "file", "local")  # a folder's name may hold # and ?
            secret = "@" in split.netloc or (bool(split.query or split.fragment) and not local)
        except ValueError:
            secret = "@" in part
        if secret:
            raise EmEvalsError(
                "--store: the URL holds a user, a password or parameters; leave them out, and give credentials by the "
                "environment (for s3:// AWS_ACCESS_KEY_ID, AWS_PROFILE and the others of AWS)."
            )


def _is(path: Path, digest: str) -> bool:
    return files.is_file(path) and identity.file_digest(path) == digest


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
