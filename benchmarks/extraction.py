"""Mean activations at all layers: `em_evals.interp.extraction.activations` against the field's usual loop.

    python benchmarks/extraction.py [--answers 512] [--save benchmarks/results/extraction.json]

The peer reads one answer at a time with `output_hidden_states=True` and keeps every answer's mean in a list, as most
published extraction scripts do. Both read the same answers with the same model in float32: the forced-choice pairs,
then the organisms' training data, none twice. Each way has a process of its own. Memory is the peak of the resident
set above the loaded model, for the answers and for twice as many: ours must stay flat.
"""

import argparse
import json
import time
from pathlib import Path

import runs

CARD = "smollm2"
RUNS = ("loop", "ours")


def texts(answers: int):
    """So many different answers to questions of evaluation and training."""
    from em_evals.content.cards import resolve
    from em_evals.data import datasets
    from em_evals.interp.extraction import contrast
    from em_evals.models import bases

    card = resolve(CARD, {"dtype": "float32"})
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
    return torch.stack(means).mean(0).numpy()


def ours(model, read):
    """[layers, width], by group sums."""
    from em_evals.interp.extraction.activations import group_sums

    return group_sums(model, read).mean()


def resident(what: str) -> float:
    """Return this process's resident set in MiB: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def measure(run: str, answers: int) -> dict:
    """One way of reading, in this process."""
    from em_evals.models import bases

    card, read = texts(answers)
    model = bases.load_model(card.card)
    way = {"loop": loop, "ours": ours}[run]
    way(model, read[:4])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here (Linux)
    before = resident("VmRSS")
    started = time.monotonic()
    mean = way(model, read)
    seconds = time.monotonic() - started
    grown = resident("VmHWM") - before
    tokens = sum(len(text.prompt) + len(text.answer) for text in read)
    numbers = {"run": run, "answers": answers, "tokens": tokens, "seconds": round(seconds, 1)}
    return numbers | {"peak_mb": round(grown), "mean": mean.tolist()}


def cosine(one, other) -> float:
    """Return the lowest cosine of the two means over all layers but the last, which it sees after the norm."""
    import numpy as np

    a, b = (np.asarray(mean)[:-1] for mean in (one, other))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main() -> None:
    """Each way in its own process, one after the other; ours again with twice the answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=512)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only[0], int(arguments.only[1]))))
        return
    plan = [("loop", arguments.answers), ("ours", arguments.answers), ("ours", 2 * arguments.answers)]
    rows = [runs.in_own_process(__file__, "--only", run, str(answers)) for run, answers in plan]
    means = [row.pop("mean") for row in rows]
    for row in rows:
        print(row, flush=True)
    numbers = {
        "rows": rows,
        "times_faster": round(rows[0]["seconds"] / rows[1]["seconds"], 2),
        "cosine": round(cosine(*means[:2]), 8),
        "memory_at_twice_the_answers": round(rows[2]["peak_mb"] / max(rows[1]["peak_mb"], 1), 2),
    }
    print({key: value for key, value in numbers.items() if key != "rows"})
    if arguments.save:
        runs.save(arguments.save, (), **numbers)


if __name__ == "__main__":
    main()
