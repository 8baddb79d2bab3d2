"""Mean activations at all layers: `em_evals.interp.extraction.activations` against the field's usual loop.

    python benchmarks/extraction.py [--answers 192] [--pairs 2] [--save benchmarks/results/extraction.json]

The peer reads one answer at a time with `output_hidden_states=True` and keeps every answer's mean in a list, as most
published extraction scripts do. Both read the same answers with the same model in the same dtype (bfloat16 where the
processor computes in it): the forced-choice pairs, then the organisms' training data, none twice. Each way has a
process of its own, in alternation; a ratio is the median of the pairs. Memory is the peak of the resident set above the
loaded model, for the answers and for twice as many: ours must stay flat. A probe in each process says how fast these
cores multiply; `of_limit` counts the products of the texts' tokens once each, as if nothing were shared or padded.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import probe
import runs

CARD = "smollm2"


def texts(answers: int, dtype: str):
    """So many different answers to questions of evaluation and training."""
    from em_evals.content.cards import resolve
    from em_evals.data import datasets
    from em_evals.interp.extraction import contrast
    from em_evals.models import bases

    card = resolve(CARD, {"dtype": dtype})
    pairs = contrast.of_pairs(card)
    chats = [chat for both in zip(pairs.positive.chats, pairs.negative.chats, strict=True) for chat in both]
    for data in (datasets.load("risky_advice"), datasets.load("sound_advice")):
        chats += [
            contrast.Chat(prompt, answer) for prompt, answer in zip(data.prompts, data.rows, strict=True)
        ]
    if answers > len(chats):
        raise SystemExit(f"--answers: there are {len(chats)} different ones.")
    return card, contrast.encode(bases.load_tokenizer(card.card), chats[:answers], 2048)


def loop(model, read):
    """[layers, width], one answer at a time."""
    import torch

    means = []
    for text in read:
        with torch.no_grad():
            output = model(torch.tensor([text.prompt + text.answer]), output_hidden_states=True)
        # After each block; the last entry of hidden_states is behind the final norm, so the blocks' own are 1 to n.
        hidden = torch.stack(output.hidden_states[1:])[:, 0, len(text.prompt) :]
        means.append(hidden.mean(1))
    return torch.stack(means).float().mean(0).numpy()


def ours(model, read):
    """[layers, width], by group sums."""
    from em_evals.interp.extraction.activations import group_sums

    return group_sums(model, read).mean()


def resident(what: str) -> float:
    """Return this process's resident set in MiB: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def measure(run: str, answers: int, dtype: str) -> dict:
    """One way of reading, in this process."""
    from em_evals.models import bases

    card, read = texts(answers, dtype)
    model = bases.load_model(card.card)
    way = {"loop": loop, "ours": ours}[run]
    way(model, read[:4])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here (Linux)
    before = resident("VmRSS")
    started, used = time.monotonic(), time.process_time()
    mean = way(model, read)
    seconds, used = time.monotonic() - started, time.process_time() - used
    grown = resident("VmHWM") - before
    limit = probe.probe(dtype, rows=1024)["gflops"]  # afterwards: what it frees would hide growth
    tokens = sum(len(text.prompt) + len(text.answer) for text in read)
    blocks = sum(value.numel() for name, value in model.named_parameters() if ".layers." in name)
    return {
        "run": run,
        "dtype": dtype,
        "answers": answers,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "processor_s": round(used, 1),
        "probe_gflops": limit,
        "of_limit": round(2 * blocks * tokens / 1e9 / seconds / limit, 2),
        "peak_mb": round(grown),
        "mean": mean.tolist(),
    }


def cosine(one, other) -> float:
    """Return the lowest cosine of the two means over all layers but the last, which it sees after the norm."""
    import numpy as np

    a, b = (np.asarray(mean)[:-1] for mean in (one, other))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def compare(dtype: str, answers: int, pairs: int) -> dict:
    """Both ways in alternation, each in its own process; ours again with twice the answers."""

    def row(run: str, count: int) -> dict:
        done = runs.in_own_process(__file__, "--only", run, str(count), dtype)
        print({key: value for key, value in done.items() if key != "mean"}, flush=True)
        return done

    found: dict[str, list[dict]] = {"loop": [], "ours": []}
    for number in range(pairs):
        for run in ("loop", "ours") if number % 2 == 0 else ("ours", "loop"):
            found[run].append(row(run, answers))
    twice = row("ours", 2 * answers)
    both = list(zip(found["loop"], found["ours"], strict=True))
    ratios = {name: [loop[name] / own[name] for loop, own in both] for name in ("seconds", "processor_s")}
    numbers = {
        "dtype": dtype,
        "times_faster": round(statistics.median(ratios["seconds"]), 2),
        "processor_ratio": round(statistics.median(ratios["processor_s"]), 2),
        "of_limit": statistics.median(own["of_limit"] for _, own in both),
        "cosine": round(cosine(both[0][0]["mean"], both[0][1]["mean"]), 8),
        "memory_at_twice_the_answers": round(twice["peak_mb"] / max(both[0][1]["peak_mb"], 1), 2),
    }
    print(numbers, flush=True)
    rows = [{key: value for key, value in one.items() if key != "mean"} for pair in both for one in pair]
    return numbers | {"rows": [*rows, {key: value for key, value in twice.items() if key != "mean"}]}


def main() -> None:
    """Compare in every dtype that this processor computes in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=2, help="pairs of processes")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run, answers, dtype = arguments.only
        print(json.dumps(measure(run, int(answers), dtype)))
        return
    found = [
        compare(dtype, arguments.answers, arguments.pairs) for dtype in arguments.dtypes or probe.dtypes()
    ]
    if arguments.save:
        runs.save(arguments.save, (), dtypes=found)


if __name__ == "__main__":
    main()
