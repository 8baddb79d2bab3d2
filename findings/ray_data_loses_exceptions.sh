#!/usr/bin/env bash
# ray 2.60.0: an exception of one's own, raised in a Ray Data transform, cannot be caught as what it is.
#
# Expected: as with a task: Ray raises "an instance of both RayTaskError and the user's exception type", so that
#   `except BadRow as error` catches it with its attributes (file and line of a bad row, say).
# Seen: `map_batches` raises RayTaskError(UserCodeException). Neither it nor anything in its chain of `cause` and
#   `__cause__` is the user's exception; type and attributes are gone, and only a text is left, inside a traceback.
#
#     python 3.11.7 | ray 2.60.0 | pyarrow 26.0.1 | pandas 3.1.1 | fsspec 2026.6.0
#                    caught as BadRow  in the chain   line
#     task                       True  True           3
#     map_batches               False  False          none
#     seen: Ray Data keeps no exception of its users
#
# Hurt: pipelines that name the file and line of a bad row, or that treat kinds of errors differently.
# Avoid: return problems as a column and raise them where the results are read.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ray==2.60.0 pyarrow==26.0.1 pandas==3.1.1 fsspec==2026.6.0
export RAY_DEDUP_LOGS=0 RAY_DATA_DISABLE_PROGRESS_BARS=1
python - 2>/dev/null <<'PY'
import sys

import ray


class BadRow(ValueError):
    def __init__(self, what, line):
        super().__init__(what, line)
        self.line = line


def rows(batch):
    raise BadRow("no answer", 3)


@ray.remote
def task():
    rows(None)


def chain(error):
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


ray.init(num_cpus=2, log_to_driver=False, logging_level="CRITICAL", include_dashboard=False)
ways = {"task": lambda: ray.get(task.remote()), "map_batches": lambda: ray.data.range(4).map_batches(rows).take_all()}
print("               caught as BadRow  in the chain   line")
found = {}
for name, way in ways.items():
    try:
        way()
    except Exception as error:
        own = [one for one in chain(error) if isinstance(one, BadRow)]
        line = next((one.line for one in own if hasattr(one, "line")), "none")
        found[name] = isinstance(error, BadRow), bool(own), line
        print(f"{name:15}{found[name][0]!s:>16}  {found[name][1]!s:14} {line}")
seen = found["task"][0] and not found["map_batches"][1]
print("seen: Ray Data keeps no exception of its users" if seen else "changed: the exception is kept")
sys.exit(0 if seen else 4)
PY
