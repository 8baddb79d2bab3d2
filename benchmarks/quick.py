"""The transformers engine against plain transformers and PEFT, small: has a change made it slower?

    python benchmarks/quick.py            compare with benchmarks/results/quick.json; ends with 1 where a ratio is lower
    python benchmarks/quick.py --save benchmarks/results/quick.json

Draws of the bare base and of one adapter, and scores of both answers of some pairs, by the engine and by the field's
plain loop: `generate` for a whole batch, PEFT around the model, one forward pass for some texts padded together. Both
use one thread, and what counts is processor time a token, so that other work on the machine matters little. Each ratio
is the median of rounds in alternation. It fails below the committed ratio by more than a quarter: rounds of one build
differ by less.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import draws
import runs

COMMITTED = Path(__file__).resolve().parent / "results" / "quick.json"
ROWS, TOKENS, EVERY = 32, 12, 20
"""Draws, their length, and of how many pairs one is scored."""
_TOLERANCE = 0.75


def measure(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the ratios plain / engine of each case, in processor time a token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from em_evals.content.cards import ModelCard
    from em_evals.engines.hf.engine import HFEngine

    torch.set_num_threads(1)
    dtype = draws.dtypes()[-1]
    plan = draws.plan_of(folder, ROWS, TOKENS, EVERY, ["base", "adapter", "pairs"])
    engine = {"dtype": dtype, "device": "cpu", "max_num_seqs": 64}
    ours = HFEngine(ModelCard.model_validate({"base": plan["folder"], "engine": engine}))
    ours._loaded.wait()  # transformers loads one model at a time
    plain = AutoModelForCausalLM.from_pretrained(plan["folder"], dtype=getattr(torch, dtype)).eval()
    ratios: dict[str, list[float]] = {}
    for name, case in plan["cases"].items():
        if name == "adapter":
            plain = PeftModel.from_pretrained(plain, case[0][2]).eval()
        if name == "pairs":
            plain = plain.unload()
        for number in range(rounds + 1):
            took = {}
            for side in ("ours", "plain") if number % 2 else ("plain", "ours"):
                work, model = (_ours, ours) if side == "ours" else (_plain, plain)
                took[side] = _per_token(work, model, case)
            if number:  # the first round warms up
                ratios.setdefault(name, []).append(took["plain"] / took["ours"])
    ours.close()
    return ratios


def _per_token(work, model, case: list) -> float:
    """Return processor seconds a token of work that returns a number of tokens."""
    started = time.process_time()
    tokens = work(model, case)
    return (time.process_time() - started) / tokens


def _ours(engine, case: list) -> int:
    made = draws.requests(case, TOKENS)
    found = draws.all_of(engine, made)
    return sum(len(one.tokens) or len(one.prompt_logprobs) for one in found)


def _plain(model, case: list) -> int:
    import torch

    with torch.inference_mode():
        return _generated(model, case) if case[0][1] is None else _scored(model, case)


def _generated(model, case: list) -> int:
    import torch

    longest = max(len(ids) for ids, _, _ in case)
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _, _ in case])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _, _ in case])
    found = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=TOKENS, pad_token_id=0
    )
    ends = model.generation_config.eos_token_id
    counts = (found[:, longest:] == ends).int().cumsum(1)
    return int((counts - (found[:, longest:] == ends).int() == 0).sum())


def _scored(model, case: list) -> int:
    import torch

    count = 0
    for begin in range(0, len(case), 8):
        some = case[begin : begin + 8]
        longest = max(len(ids) for ids, _, _ in some)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _, _ in some])
        logprobs = model(input_ids=ids).logits.float().log_softmax(-1)
        logprobs[:, :-1].gather(-1, ids[:, 1:, None])
        count += sum(len(ids) - start for ids, start, _ in some)
    return count


def main() -> None:
    """Measure, print, and compare with the committed ratios or save them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure(arguments.rounds, Path(folder))
    found = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    dtype = draws.dtypes()[-1]
    committed = json.loads(COMMITTED.read_text())["ratios"].get(dtype, {}) if COMMITTED.is_file() else {}
    slower = []
    for name, value in found.items():
        before = committed.get(name)
        spread = sorted(round(one, 2) for one in ratios[name])
        print(f"{dtype} {name}: {value} times plain transformers {spread}, committed {before}")
        if before is not None and value < _TOLERANCE * before:
            slower.append(name)
    if arguments.save:
        runs.save(arguments.save, ("peft",), ratios={dtype: found}, rounds={dtype: ratios})
    elif slower:
        sys.exit(f"slower than committed: {', '.join(slower)}")


if __name__ == "__main__":
    main()
