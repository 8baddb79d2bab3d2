"""Memory of the transformers engine: loading, draws, and an adapter, against weights plus cache.

    python benchmarks/memory.py [--draws 64] [--max-tokens 32] [--save benchmarks/results/memory.json]

Each row is a process of its own. What counts is anonymous memory (RssAnon) above that of the imports: pages of the
checkpoint that the system maps from its file and can drop at any time do not count. `peak` is the largest of samples
taken every 10 ms; the limit is the weights' bytes plus those of keys and values at the end.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import draws
import runs

ROWS = ("load float32", "load bfloat16", "draws float32", "adapter float32", "adapter merged float32")


class Peak:
    """The largest anonymous memory of this process from now on, in bytes above what it was."""

    def __init__(self) -> None:
        self.before = self.most = anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.01)

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return max(self.most, anonymous()) - self.before


def anonymous() -> int:
    """Return this process's anonymous memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def measure(row: str, plan: dict) -> dict:
    """One row in this process."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - imported before the measurement begins

    from em_evals.content.cards import ModelCard
    from em_evals.engines.hf import kv_cache
    from em_evals.engines.hf.engine import HFEngine
    from em_evals.models.lora import alone

    kind, dtype = row.rsplit(" ", 1)
    alone.WORTH_MERGING = 1 if "merged" in kind else 2**62
    cached, update = [0], kv_cache._RowLayer.update

    def measured(layer, *given, **named):
        found = update(layer, *given, **named)
        # All layers grow alike.
        cached[0] = max(cached[0], plan["layers"] * (layer.keys.nbytes + layer.values.nbytes))
        return found

    kv_cache._RowLayer.update = measured
    torch.zeros(1).softmax(0)
    peak = Peak()
    engine = HFEngine(
        ModelCard.model_validate(
            {"base": plan["folder"], "engine": {"dtype": dtype, "device": "cpu", "max_num_seqs": 64}}
        )
    )
    engine._loaded.wait()
    weights = sum({p.data_ptr(): p.nbytes for p in engine._base.model.parameters()}.values())
    if not kind.startswith("load"):
        case = plan["cases"]["adapter" if "adapter" in kind else "base"]
        draws.all_of(engine, draws.requests(case, plan["max_tokens"]))
    found = {"row": row, "weights_mb": weights, "cache_mb": cached[0], "peak_mb": peak.bytes}
    engine.close()
    rounded = {name: value if name == "row" else round(value / 2**20, 1) for name, value in found.items()}
    return rounded | {"ratio": round(peak.bytes / (weights + cached[0]), 3)}


def main() -> None:
    """Run every row in its own process and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, json.loads(arguments.plan.read_text()))))
        return
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        plan = draws.plan_of(Path(folder), arguments.draws, arguments.max_tokens, 1, ["base", "adapter"])
        plan["layers"] = AutoConfig.from_pretrained(plan["folder"]).num_hidden_layers
        file = Path(folder) / "plan.json"
        file.write_text(json.dumps(plan))
        rows = []
        for row in arguments.rows:
            rows.append(
                runs.in_own_process(__file__, "--only", row, "--plan", str(file), checkout=draws.HERE)
            )
            print(rows[-1], flush=True)
    if arguments.save:
        runs.save(arguments.save, ("peft",), rows=rows)


if __name__ == "__main__":
    main()
