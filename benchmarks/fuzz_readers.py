"""Fuzz one reader of files of others: atheris changes bytes, and keeps what reaches new lines of em_evals.

Readers and first inputs are those of tests/hostile_readers.py. The corpus stays in its folder, and the next run
continues from it. An input that crashes a reader ends the run and is kept there (crash-*, timeout-*, oom-*); so does
the next run until the reader is mended. Seconds are of processor time.

    pip install atheris    # Linux; in no extra of ours
    python benchmarks/fuzz_readers.py READER [--seconds 3600] [--corpus runs/fuzz/READER] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

import atheris
import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "fuzz_readers.json"
SEEDS, LONGEST = 200, 16_384  # first inputs; bytes of an input
SLOWEST, MEMORY = 30, 4096  # seconds an input, MiB of the process
DIGEST = 40  # characters of an input's name in a corpus


def seed(strategy: object, corpus: Path) -> None:
    """Write inputs of the property test to an empty corpus: good files, and files that are nearly right."""
    from hypothesis import HealthCheck, given, settings

    @settings(
        max_examples=SEEDS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(content: bytes) -> None:
        if len(content) <= LONGEST:
            (corpus / sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)

    keep()


def words(folder: Path) -> Path:
    """Write the fields that the property tests know as libFuzzer's dictionary; return its file."""
    from tests.hostile_inputs import FIELDS

    file = folder / "words.txt"
    file.write_text("".join(f'"{name}"\n' for name in sorted(set(FIELDS)) if re.fullmatch(r"[\w,-]+", name)))
    return file


@dataclass
class Run:
    """One reader under atheris: counts its inputs, and ends the process when its time is over.

    atheris never returns to its caller, so that the counts are saved from inside.
    """

    name: str
    corpus: Path
    folder: Path
    seconds: float
    save: bool
    inputs: int = 0
    values: int = 0
    started: float = field(default_factory=time.process_time)

    def one(self, content: bytes) -> None:
        """Read one input; anything but an EmEvalsError is a crash, which libFuzzer reports and keeps."""
        from tests.hostile_readers import read_one

        self.inputs += 1
        try:
            self.values += read_one(self.name, self.folder, content)
        except Exception:
            self.end(crashes=1)
            raise
        if time.process_time() - self.started > self.seconds:
            self.end(crashes=0)
            os._exit(0)

    def end(self, crashes: int) -> None:
        """Print the counts, and keep them with --save."""
        signal.setitimer(
            signal.ITIMER_REAL, 0
        )  # libFuzzer's limit of time is for inputs, not for what follows
        os.chdir(ROOT)  # PyTorch, which `save` imports, does not load in a folder that is gone
        shutil.rmtree(self.folder, ignore_errors=True)
        kept = sum(1 for one in self.corpus.iterdir() if len(one.name) == DIGEST)
        seconds = round(time.process_time() - self.started)
        row = {
            "seconds": seconds,
            "inputs": self.inputs,
            "values": self.values,
            "corpus": kept,
            "crashes": crashes,
        }
        print(f"{self.name}: {row}", flush=True)
        if self.save:
            found = json.loads(RESULT.read_text())["readers"] if RESULT.is_file() else {}
            found[self.name] = row
            runs.save(RESULT, ("atheris", "hypothesis", "pyyaml"), readers=dict(sorted(found.items())))


def main() -> None:
    """Fuzz the reader that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", metavar="READER")
    parser.add_argument("--seconds", type=float, default=3600, help="of processor time")
    parser.add_argument("--corpus", type=Path, help="default: runs/fuzz/READER")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    name = given.reader
    with atheris.instrument_imports(include=["em_evals"]):
        from tests.hostile_readers import READERS, read_one

        if name not in READERS:
            parser.error(f"no such reader: {name}; there are: {', '.join(READERS)}")
        corpus = (given.corpus or ROOT / "runs/fuzz" / re.sub(r"\W+", "-", name)).resolve()
        corpus.mkdir(parents=True, exist_ok=True)
        if not any(corpus.iterdir()):
            seed(READERS[name][1], corpus)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        os.chdir(folder)
        for file in list(corpus.iterdir())[
            :SEEDS
        ]:  # what a reader imports only when it is called is instrumented too
            with suppress(Exception):  # a crash that was kept: the run itself reports it
                read_one(name, folder, file.read_bytes())
    run = Run(name, corpus, folder, given.seconds, given.save)
    limits = (
        f"-max_len={LONGEST}",
        f"-timeout={SLOWEST}",
        f"-rss_limit_mb={MEMORY}",
        f"-dict={words(folder)}",
    )
    atheris.Setup([sys.argv[0], str(corpus), *limits, f"-artifact_prefix={corpus}/"], run.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
