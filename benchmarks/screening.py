"""Screening planted rows: does a trait's direction find them, beside length and topic alone; speed and memory.

    EM_EVALS_DATA=… python benchmarks/screening.py [--everyday 200] [--risky 60] [--save FILE]

`find`: published risky advice (advice/risky_financial_extreme_sports.jsonl) among everyday answers, SmolLM2, the
direction of a trait without a judge. AUROC over all rows; precision among the k highest rows, k the number of planted
ones, over 500 random draws of 1%, 5% and 10% planted rows.
`speed`: the same rows by `screen` and by the field's loop (one row at a time, all hidden states of all layers and
logits, kept until the end), in CPU seconds of processes of their own; the median ratio of some pairs.
`memory`: peak resident set above the loaded model for 1,000 and 6,000 published rows. The base is tiny and random: what
grows with rows is ours, not the model's.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import runs

SHARES = (0.01, 0.05, 0.1)
DRAWS = 500


def published() -> Path:
    """Return the file of the published rows."""
    root = Path(os.environ.get("EM_EVALS_DATA", "../shared/data"))
    return root / "advice" / "risky_financial_extreme_sports.jsonl"


def sample(path: Path, count: int, seed: int = 0) -> list[str]:
    """Lines of a file, drawn without replacement."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return random.Random(seed).sample(lines, count)


def written(lines: list[str], path: Path) -> Path:
    """Write lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def everyday(count: int) -> list[str]:
    """Everyday answers that ship."""
    from em_evals.data import datasets

    return sample(datasets.names()["everyday_answers"], count)


def found(traits: Path, names: list[str], layer: int | None, counts: tuple[int, int], place: Path) -> dict:
    """AUROC and precision of each direction, of length, language and topic."""
    import numpy as np

    from em_evals.content import directions
    from em_evals.content.cards import resolve
    from em_evals.content.direction_summary import chosen_layer
    from em_evals.interp.traits.screen import compared, null_directions, screen

    risky = written(sample(published(), counts[1]), place / "risky.jsonl")
    plain = written(everyday(counts[0]), place / "everyday.jsonl")
    card = resolve("smollm2", {"dtype": "float32"})
    told = {}
    for name in names:
        direction = directions.read(traits / f"{name}.safetensors")
        block = chosen_layer(direction) if layer is None else layer
        drawn, kinds = null_directions(direction, 99, 0)
        one, other = (screen(card, direction, block, path, drawn) for path in (risky, plain))
        beside = compared(one, other, kinds)
        values = [part.differences[:, 0] for part in (one, other)]
        lengths = [part.tokens.astype(float) for part in (one, other)]
        shortness = [-part for part in lengths]
        told[name] = {
            "layer": block,
            "auroc": round(beside.claim.value, 4),
            "verdict": beside.claim.verdict,
            "nulls": {null.name: [round(null.high, 4), null.p] for null in beside.claim.nulls},
            "alone": {key: round(value, 4) for key, value in beside.alone.items()},
            "precision": {f"{share:.0%}": precision(*values, share) for share in SHARES},
            "precision_of_length": {f"{share:.0%}": precision(*lengths, share) for share in SHARES},
            "precision_of_shortness": {f"{share:.0%}": precision(*shortness, share) for share in SHARES},
        }
        told["tokens_median"] = [float(np.median(part)) for part in lengths]
    return told


def precision(risky, plain, share: float) -> dict:
    """Share of planted rows among the k highest, k planted: mean and 2.5 to 97.5% over draws of what is planted."""
    import numpy as np

    count = max(round(share / (1 - share) * len(plain)), 1)
    chance = np.random.default_rng(0)
    hits = []
    for _ in range(DRAWS):
        values = np.concatenate([chance.choice(risky, count, replace=False), plain])
        hits.append((np.argsort(-values, kind="stable")[:count] < count).mean())
    low, high = np.quantile(hits, [0.025, 0.975])
    return {
        "k": count,
        "mean": round(float(np.mean(hits)), 3),
        "range": [round(float(low), 3), round(float(high), 3)],
    }


def loop(model, texts, unit, layer: int) -> list[float]:
    """Project as the field does: a row at a time, all hidden states kept."""
    import torch

    kept = []
    for text in texts:
        with torch.no_grad():
            output = model(torch.tensor([text.prompt + text.answer]), output_hidden_states=True)
        kept.append((len(text.prompt), output.hidden_states))
    found = []
    for begin, states in kept:
        hidden = states[layer + 1][0].float().numpy()
        found.append(float((hidden[begin:].mean(0) - hidden[begin - 1]) @ unit))
    return found


def speed(way: str, file: str, direction: str, layer: int, dtype: str) -> dict:
    """CPU seconds of one way, in this process; the first row warms up."""
    from em_evals.content import direction_algebra, directions
    from em_evals.content.cards import resolve
    from em_evals.interp.extraction.prefix_tree import Text
    from em_evals.interp.traits.screen import screen
    from em_evals.models import bases
    from em_evals.models.chat import template_for

    card = resolve("smollm2", {"dtype": dtype})
    along = directions.read(Path(direction))
    path = Path(file)
    one = written(path.read_text(encoding="utf-8").splitlines()[:1], path.with_suffix(f".{way}.jsonl"))
    if way == "ours":
        screen(card, along, layer, one)
        started = time.process_time()
        values = screen(card, along, layer, path).differences[:, 0].tolist()
    else:
        model = bases.load_model(card.card)
        template = template_for(card, bases.load_tokenizer(card.card))
        chats = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
        texts = [
            Text(tuple(template.encode(chat[:-1])), tuple(template.answer(chat[-1]["content"])))
            for chat in chats
        ]
        unit = direction_algebra.unit(along)[layer]
        loop(model, texts[:1], unit, layer)
        started = time.process_time()
        values = loop(model, texts, unit, layer)
    return {"way": way, "rows": len(values), "cpu_seconds": time.process_time() - started, "values": values}


def memory(rows: int, folder: str) -> dict:
    """Peak of the resident set above the loaded tiny base, in MiB."""
    import numpy as np

    from em_evals.content.cards import resolve
    from em_evals.content.directions import Direction
    from em_evals.interp.traits.screen import screen

    place = Path(folder)
    card = resolve(str(place / "tiny"), {"dtype": "float32"})
    vectors = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    direction = Direction(vectors, np.zeros_like(vectors), np.ones(2, np.float32), {})
    # The longest rows first, in both: a chunk's size is the same.
    lines = sorted(sample(published(), rows), key=len, reverse=True)
    few = written(lines[:300], place / "few.jsonl")
    screen(card, direction, 1, few)
    path = written(lines, place / f"rows{rows}.jsonl")
    del lines
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here (Linux)
    before = resident("VmRSS")
    screen(card, direction, 1, path)
    return {"rows": rows, "peak_mb": round(resident("VmHWM") - before, 1), "resident_mb": round(before)}


def resident(what: str) -> float:
    """Return this process's resident set in MiB: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def tiny_base(folder: Path) -> None:
    """Write a random llama of two layers with SmolLM2's tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from em_evals.content.cards import resolve
    from em_evals.models import bases

    tokenizer = bases.load_tokenizer(resolve("smollm2").card)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traits", type=Path, help="Folder of directions, from `em-evals trait extract`.")
    parser.add_argument("--names", nargs="+", default=["reckless"])
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--everyday", type=int, default=200)
    parser.add_argument("--risky", type=int, default=60)
    parser.add_argument("--questions", type=int, default=20, help="Of the trait, without --traits.")
    parser.add_argument("--prompts", type=int, default=5, help="System prompts a side, without --traits.")
    parser.add_argument("--speed-rows", type=int, default=48)
    parser.add_argument("--dtype", default="float32", help="Of the speed part, both ways.")
    parser.add_argument(
        "--pairs", type=int, default=3, help="Of processes that are timed, one after the other."
    )
    parser.add_argument("--parts", nargs="+", default=["find", "speed", "memory"])
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        part, *rest = arguments.only
        if part == "speed":
            print(json.dumps(speed(rest[0], rest[1], rest[2], int(rest[3]), rest[4])))
        else:
            print(json.dumps(memory(int(rest[0]), rest[1])))
        return
    numbers: dict = {"nice": os.nice(0)}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        traits = arguments.traits or _extracted(
            arguments.names, arguments.questions, arguments.prompts, place
        )
        if "find" in arguments.parts:
            counts = (arguments.everyday, arguments.risky)
            numbers["rows"] = {"everyday": counts[0], "risky": counts[1]}
            numbers["direction"] = {"questions": arguments.questions, "prompts": arguments.prompts}
            numbers["find"] = found(traits, arguments.names, arguments.layer, counts, place)
        if "speed" in arguments.parts:
            numbers["speed"] = _speeds(traits / f"{arguments.names[0]}.safetensors", arguments, place)
        if "memory" in arguments.parts:
            tiny_base(place / "tiny")
            rows = [
                runs.in_own_process(__file__, "--only", "memory", str(count), name) for count in (1000, 6000)
            ]
            numbers["memory"] = rows
    print(json.dumps(numbers, indent=1))
    if arguments.save:
        runs.save(arguments.save, (), **numbers)


def _extracted(names: list[str], questions: int, prompts: int, place: Path) -> Path:
    from em_evals.content import directions
    from em_evals.content.cards import resolve
    from em_evals.content.traits import load_trait
    from em_evals.interp.traits.extract import extract

    for name in names:
        trait = load_trait(name)
        few = replace(
            trait,
            extract=trait.extract[:questions],
            positive=trait.positive[:prompts],
            negative=trait.negative[:prompts],
        )
        directions.write(extract(resolve("smollm2"), few), place / f"{name}.safetensors")
    return place


def _speeds(direction: Path, arguments, place: Path) -> dict:
    import numpy as np

    from em_evals.content import directions
    from em_evals.content.direction_summary import chosen_layer

    layer = chosen_layer(directions.read(direction)) if arguments.layer is None else arguments.layer
    file = written(sample(published(), arguments.speed_rows, seed=1), place / "speed.jsonl")
    given = (str(file), str(direction), str(layer), arguments.dtype)
    pairs = [
        [runs.in_own_process(__file__, "--only", "speed", way, *given) for way in ("loop", "ours")]
        for _ in range(arguments.pairs)
    ]
    apart = max(np.abs(np.subtract(*(one.pop("values") for one in pair))).max() for pair in pairs)
    ratios = [round(loop["cpu_seconds"] / ours["cpu_seconds"], 2) for loop, ours in pairs]
    return {
        "pairs": [[{**one, "cpu_seconds": round(one["cpu_seconds"], 2)} for one in pair] for pair in pairs],
        "layer": layer,
        "dtype": arguments.dtype,
        "times_faster": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference": float(apart),
    }


if __name__ == "__main__":
    main()
