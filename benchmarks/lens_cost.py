"""What lens and forecast cost on SmolLM2: processor seconds of whole processes, and memory as texts grow.

    python benchmarks/lens_domains.py --folder FOLDER      # trains finance and finance-control there
    python benchmarks/lens_cost.py --folder FOLDER --save benchmarks/results/lens_cost.json

Each row is a process of its own, imports and loading included: the lens of an organism and its control on the 128
shipped texts and on 1,024, the forecast of the core questions from 100 training prompts and from 800.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import runs

ROWS = (("lens", 128), ("lens", 1024), ("forecast", 100), ("forecast", 800))


def measure(what: str, size: int) -> dict[str, object]:
    """Run one command's function in this process."""
    started = time.perf_counter()
    from em_evals.interp.lens import forecast, study

    if what == "lens":
        from em_evals.interp.lens import texts

        shipped = texts.read(None).texts
        path = Path(f"texts{size}.txt")
        # As long as the shipped ones, and no two equal.
        path.write_text(
            "\n".join(f"{i:04d} {shipped[i % len(shipped)]}" for i in range(size)), encoding="utf-8"
        )
        given = None if size == len(shipped) else path
        study.lens("finance", "finance-control", texts=given, data="risky_finance", other="reckless_sports")
    else:
        forecast.forecast("risky_finance", "core", "smollm2", settings=forecast.Settings(rows=size))
    return {
        "what": what,
        "texts": size,
        "cpu_seconds": round(time.process_time(), 1),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="with adapters/finance and its control")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        os.chdir(options.folder)
        print(json.dumps(measure(options.only[0], int(options.only[1]))))
        return
    script, folder = str(Path(__file__).resolve()), str(options.folder.resolve())
    rows = [runs.in_own_process(script, "--folder", folder, "--only", what, str(size)) for what, size in ROWS]
    for row in rows:
        print(row)
    if options.save:
        runs.save(
            options.save,
            ("peft",),
            load=os.getloadavg(),
            threads=os.environ.get("OMP_NUM_THREADS"),
            rows=rows,
        )


if __name__ == "__main__":
    main()
