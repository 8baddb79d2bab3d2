"""Inputs tried on each reader of files of others, how many were read as a value, and how many ways to crash were found.

The inputs are those of tests/hostile_readers.py: anything at all, and files that are nearly right.

    python benchmarks/hostile_inputs.py [--count 10000] [--save] [READER …]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "hostile_inputs.json"


def tried(name: str, folder: Path, count: int) -> tuple[int, int]:
    """Return how many inputs were read as a value, and how many distinct crashes there were; print those."""
    from tests.hostile_readers import attempt

    try:
        return attempt(name, folder, count), 0
    except Exception as error:  # whatever a reader raises is what is looked for
        found = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        for one in found:
            traceback.print_exception(one)
        return 0, len(found)


def main() -> None:
    """Try, print a row for each reader; --save adds them to the rows that are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.hostile_readers import READERS

    if unknown := set(given.readers) - READERS.keys():
        parser.error(f"no such reader: {', '.join(unknown)}; there are: {', '.join(READERS)}")
    found = json.loads(RESULT.read_text())["readers"] if RESULT.is_file() else {}
    print(f"{'reader':36}{'inputs':>8}{'values':>8}{'crashes':>9}{'seconds':>9}")
    for name in given.readers or READERS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            started = time.process_time()
            values, crashes = tried(name, Path(folder), given.count)
            seconds = time.process_time() - started
            os.chdir(ROOT)
        found[name] = {"inputs": given.count, "values": values, "crashes": crashes}
        print(f"{name:36}{given.count:>8}{values:>8}{crashes:>9}{seconds:>9.0f}", flush=True)
        if given.save:
            runs.save(RESULT, ("hypothesis", "pyyaml", "numpy"), readers=dict(sorted(found.items())))


if __name__ == "__main__":
    main()
