"""Run one step in this process, which keeps what it has imported and the bases that it has loaded."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

from em_evals.content import documents
from em_evals.errors import EmEvalsError
from em_evals.sweep import steps
from em_evals.sweep.steps import OUTPUT, RECORD, Record, Step, Supply
from em_evals.sweep.store import Store

_DRAWN = "EM_EVALS_DRAWS"
"""Read by inspect_plugin/drawn.py, which this process does not import before a step asks for it."""


def perform(step: Step, folder: Path, home: Path) -> Record:
    """Run a step's command and write its record; a failure is told in the record.

    A folder that an earlier plan's step of this name left is moved to `replaced/`. What the command prints goes to
    `output.txt`.

    Args:
        step: its needs are done.
        folder: the sweep's, absolute.
        home: the folder where the sweep was started: names of content mean there what they mean to the user.

    Raises:
        EmEvalsError: the folder or the store cannot be written to.
        KeyboardInterrupt: interrupted; the same step resumes.
    """
    if step.supply is not None:
        return _perform_with_store(step, step.supply, folder, home)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begun = Record(
        step.name,
        step.digest,
        "running",
        step.words(folder),
        host=socket.gethostname(),
        started=started,
        version=_version(),
    )
    earlier = steps.read_record(folder, step.name)
    words = step.words(folder)
    if step.measure == "train":
        adapter = steps.adapter(folder, step.model)
        published = (adapter / "training.json").is_file()
        if earlier is not None and published and (earlier.digest, earlier.state) == (step.digest, "running"):
            # Trained whole, and ended before the record was written.
            return _ended(step, folder, begun, 0, 0.0)
        words += ["--overwrite"] if published else []
    elif earlier is not None and earlier.digest != step.digest:
        steps.put_aside(folder, step.name)
    steps.write_record(folder, begun)
    clock = time.monotonic()
    drawn = str(steps.place(folder, step.draws)) if step.draws else None
    with _settings(home, folder, drawn), _printed_to(steps.place(folder, step.name) / OUTPUT):
        code = _run(words)
    if words[0] == "inspect" and _interrupted(steps.place(folder, step.name)):
        raise KeyboardInterrupt
    return _ended(step, folder, begun, code, time.monotonic() - clock)


def perform_json(step: str, folder: str, home: str) -> str:
    """Run a step given and recorded as JSON, for processes that share no code of ours but this function.

    Raises:
        EmEvalsError: as for `perform`.
    """
    return json.dumps(asdict(perform(steps.from_json(step), Path(folder), Path(home))))


def _perform_with_store(step: Step, supply: Supply, folder: Path, home: Path) -> Record:
    """Fetch what the step needs, run it, and send what it wrote.

    What is done here and did not reach the store is only sent.
    """
    store = Store(supply.store)
    if steps.is_done(step, folder) and (record := steps.read_record(folder, step.name)) is not None:
        store.send(step, folder, record)
        return record
    for name, text in supply.cards.items():
        steps.write_card(folder, name, text)
    for before in supply.steps():
        if not store.fetch(before, folder):
            raise EmEvalsError(f"{step.name} needs {before.name}, which is not in {store.url} any more.")
    record = perform(replace(step, supply=None), folder, home)
    # Of a step that failed its own reason is told, and not that its output could not be stored.
    with contextlib.nullcontext() if record.state == "done" else contextlib.suppress(EmEvalsError):
        store.send(step, folder, record)
    return record


def _ended(step: Step, folder: Path, begun: Record, code: int, seconds: float) -> Record:
    done = code in step.accept
    place = steps.place(folder, step.name)
    record = replace(
        begun,
        state="done" if done else "failed",
        exit_code=code,
        seconds=round(seconds, 3),
        outputs=_written(steps.home(step, folder)) if done else (),
        problem="" if done else _last_line(place / OUTPUT, code),
    )
    steps.write_record(folder, record)
    return record


@lru_cache
def _script(name: str) -> EntryPoint | None:
    """Find a console script; the search reads every installed package's metadata."""
    return next(iter(entry_points(group="console_scripts", name=name)), None)


@lru_cache
def _version() -> str:
    return version("em-evals")


def _run(words: list[str]) -> int:
    """Call a console script in this process, and return its exit code."""
    script = _script(words[0])
    if script is None:
        print(f"{words[0]} is not installed here.", file=sys.stderr)  # noqa: T201
        return 127
    before, sys.argv = sys.argv, words
    try:
        script.load()()
    except SystemExit as end:
        if end.code == 130:
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        raise
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before
    return 0


def _interrupted(folder: Path) -> bool:
    """Return whether an eval was interrupted: `inspect eval-set` then ends with 0 all the same (inspect-ai 0.3.285)."""
    from inspect_ai.log import read_eval_log

    last = {}
    for path in sorted(folder.glob("*.eval")):  # names begin with the time
        with contextlib.suppress(Exception):  # the log of a killed attempt may be cut
            log = read_eval_log(str(path), header_only=True)
            last[log.eval.task_id] = log.status
    return "cancelled" in last.values()


@contextlib.contextmanager
def _settings(home: Path, folder: Path, drawn: str | None) -> Iterator[None]:
    """Work in the user's folder, with the sweep's cards beside the user's; Inspect draws no screen.

    Args:
        home: the user's folder.
        folder: the sweep's.
        drawn: the folder of the answers that the step grades.
    """
    names = os.pathsep.join(filter(None, [os.environ.get(documents.SHARED), str(folder)]))
    changed = {documents.SHARED: names, "INSPECT_DISPLAY": "plain", "COLUMNS": "100", _DRAWN: drawn}
    before = {name: os.environ.get(name) for name in changed}
    place = Path.cwd()
    try:
        os.chdir(home)
    except OSError as error:
        raise EmEvalsError(
            f"the sweep was started here, and {socket.gethostname()} does not have it ({error.strerror}): cards and "
            "data must be under the same path on every node.",
            home,
        ) from None
    _set(changed)
    try:
        yield
    finally:
        os.chdir(place)
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Send what this process prints to a file, also what C libraries and child processes print."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with path.open("wb") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            text = os.fdopen(os.dup(file.fileno()), "w", encoding="utf-8", errors="replace", buffering=1)
            with text, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                yield
    finally:
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)


def _written(folder: Path) -> tuple[str, ...]:
    hidden = (RECORD, OUTPUT)
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in hidden)
    return tuple(sorted(str(path.relative_to(folder)) for path in found if not path.name.startswith(".")))


def _last_line(path: Path, code: int) -> str:
    """Return the last line that says something; where no more could be written, why."""
    try:
        with path.open("r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")  # a full disk takes the command's last words too
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"what it printed cannot be written: {error.strerror}"
    lines = [line.strip(" │╭╮╰╯─\t") for line in text.splitlines()]
    said = [line for line in lines if line]
    return (said[-1] if said else f"exit code {code}, without a word")[:500]
