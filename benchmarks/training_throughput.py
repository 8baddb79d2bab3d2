"""`em-evals train` against plain TRL: examples a second and peak memory, same LoRA, same data, same batch.

    python benchmarks/training_throughput.py [--steps 12] [--batch 8] [--save benchmarks/results/NAME.json]

The peer is TRL's SFTTrainer as its documentation shows it, on chats of prompt and completion (its loss is on
completions only too): `trl` without gradient checkpointing, which is faster, `trl-default` with it, which is TRL's
default. In bfloat16 and in float32, because a CPU without bfloat16 instructions emulates them. Each run has a process
of its own, one after the other; the first steps are not timed, and the median step counts, for machines are shared.
Memory is the growth of the process's resident set from before the model is loaded to its peak (on a GPU: what torch
allocated).
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import runs

CARDS = ("smollm2-risky", "smollm2-risky-r1")
RUNS = ("trl bfloat16", "trl float32", "trl-default float32", "ours bfloat16", "ours float32")
WARM_UP = 3


def resident() -> int:
    """Bytes of the process's resident set now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def clock():
    """Return a callback that notes when each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append(time.monotonic())

    return Clock()


def measure(run: str, name: str, steps: int, batch: int) -> dict:
    """One trainer in this process."""
    import torch
    import trl  # noqa: F401 - imported before memory is read

    from em_evals.content.cards import read_card
    from em_evals.models import bases

    kind, dtype = run.split()
    changes = {"engine": {"dtype": dtype}, "train": {"batch_size": batch, "gradient_accumulation": 1}}
    card, _ = read_card(name, changes)
    recipe = card.train.model_copy(update={"max_steps": steps})
    tokenizer = bases.load_tokenizer(card)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "ours":
            trainer = ours(card, recipe, tokenizer, Path(folder))
        else:
            trainer = plain(card, recipe, tokenizer, Path(folder), checkpointing=kind == "trl-default")
        seen = clock()
        trainer.add_callback(seen)
        trainer.train()
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ends = seen.ends[WARM_UP - 1 :]
    step = statistics.median(after - before for before, after in pairwise(ends))
    return {
        "run": run,
        "card": name,
        "examples_per_s": round(batch / step, 2),
        "memory_mb": round(memory / 1e6),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def ours(card, recipe, tokenizer, folder: Path):
    """Return the trainer of `em-evals train`."""
    from em_evals.training import curriculum, setup, trainer
    from em_evals.training.workspace import Workspace

    lessons = curriculum.build(recipe, tokenizer)
    trainer.processes_for(card, recipe)
    return setup.build(card, recipe, lessons, tokenizer, Workspace(folder / "out", "bench"), 10_000, ())


def plain(card, recipe, tokenizer, folder: Path, checkpointing: bool):
    """TRL as documented."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from em_evals.data import datasets
    from em_evals.models import bases

    method = recipe.method
    rows = datasets.load(recipe.data[0].name).rows
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            bases.locate(card.base), dtype=getattr(torch, card.engine.dtype)
        ),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=recipe.max_steps,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=1,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            max_length=recipe.max_length,
            gradient_checkpointing=checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            seed=recipe.seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=method.rank,
            lora_alpha=method.alpha,
            use_rslora=method.rslora,
            target_modules=method.modules,
            layers_to_transform=None if method.layers == "all" else method.layers,
        ),
    )


def main() -> None:
    """Run every trainer in its own process and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cards", nargs="+", default=CARDS)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(*arguments.only, arguments.steps, arguments.batch)))
        return
    rows, ratios = [], {}
    for card in arguments.cards:
        for run in arguments.runs:
            options = ["--steps", str(arguments.steps), "--batch", str(arguments.batch)]
            rows.append(runs.in_own_process(__file__, "--only", run, card, *options))
            print(rows[-1], flush=True)
        best = {
            kind: max(
                (row for row in rows if row["card"] == card and row["run"].split()[0] == kind), key=speed
            )
            for kind in ("ours", "trl")
        }
        ratios[card] = {
            "examples_per_s": round(speed(best["ours"]) / speed(best["trl"]), 2),
            "memory": round(best["ours"]["memory_mb"] / best["trl"]["memory_mb"], 2),
            "ours": best["ours"]["run"],
            "trl": best["trl"]["run"],
        }
        print(f"{card}: {ratios[card]}", flush=True)
    if arguments.save:
        numbers = {"steps": arguments.steps, "batch": arguments.batch, "rows": rows, "ratios": ratios}
        runs.save(arguments.save, ("peft", "trl"), **numbers)


def speed(row: dict) -> float:
    """Examples a second."""
    return row["examples_per_s"]


if __name__ == "__main__":
    main()
