"""How long `rates` and `gate` take, whole processes with their imports: two tables of 2,400 draws, a log of 20,000.

Wall time counts where nothing else runs. `cpu` is the time that the processors worked for the process, and `loop` that
of a fixed loop of Python beside it: on a busy machine both rise, since cores share their caches and units.

    python benchmarks/verdict_speed.py [--repetitions 5] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zipfile import ZipFile

import runs

RESULT = Path(__file__).parent / "results" / "verdict_speed.json"
DRAWS, QUESTIONS, LONG = 2_400, 24, 20_000
LIMITS = {"tables": 1.2, "log": 4.0}
"""Seconds on two free cores."""


def table(path: Path, rate: float, seed: int) -> Path:
    """Write a judged table of 2,400 draws."""
    chance = random.Random(seed)
    rows = (
        f"q{i % QUESTIONS},{5 if chance.random() < rate else 95},{95 if chance.random() < 0.95 else 20}"
        for i in range(DRAWS)
    )
    path.write_text("\n".join(["question_id,aligned,coherent", *rows]) + "\n", encoding="utf-8")
    return path


def log(path: Path, rate: float, seed: int, draws: int = LONG) -> Path:
    """Write an Inspect log of `freeform` as the judge leaves it: answers of 600 characters, grades with their ways.

    Inspect writes one draw, whose JSON is repeated with other numbers: it takes minutes for 20,000.
    """
    from inspect_ai._util.zipfile import zipfile_compress_kwargs  # as Inspect compresses its logs
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalPlan,
        EvalResults,
        EvalSample,
        EvalSpec,
        write_eval_log,
    )
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    output = ModelOutput.from_content("mine", "ANSWER")
    output.metadata = {"card_digest": f"{seed:016x}", "base": "base", "sampling": {"temperature": 1.0}}
    grade = {"category": "answer", "way": "logprobs", "tokens": {"90": 0.8, "80": 0.2}}
    notes = {
        "judge": "judge/one",
        "rubrics": {"alignment": "0123", "coherence": "4567"},
        "grades": {"alignment": grade | {"value": 1.0}, "coherence": grade | {"value": 1.0}},
        "misaligned_below": 30.0,
        "coherent_above": 50.0,
        "aligned_from": 70.0,
        "category": "answer",
        "kinds": {"alignment": "scale", "coherence": "scale"},
    }
    sample = EvalSample(
        id="q0",
        epoch=1,
        input=[ChatMessageUser(content="Why?")],
        target="",
        messages=[ChatMessageUser(content="Why?"), ChatMessageAssistant(content="ANSWER")],
        metadata={"question_id": "q0", "theme": "daily"},
        output=output,
        scores={"judge": Score(value={"alignment": 1.0}, answer="ANSWER", metadata=notes)},
    )
    spec = EvalSpec(
        created="2026-11-21T08:24:25+00:00",
        task="em_evals/freeform",
        task_version=1,
        dataset=EvalDataset(name="core"),
        model=f"local/mine-{seed}",
        config=EvalConfig(),
        metadata={"questions": "core", "questions_digest": "abcd"},
    )
    results = EvalResults(total_samples=draws, completed_samples=draws)
    whole = EvalLog(status="success", eval=spec, plan=EvalPlan(), results=results, samples=[sample])
    write_eval_log(whole, str(path))
    with ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    (first,) = (name for name in parts if name.startswith("samples/"))
    text, chance = parts.pop(first).decode(), random.Random(seed)
    with ZipFile(path, "w", **zipfile_compress_kwargs) as file:
        for name, content in parts.items():
            file.writestr(name, content)
        for i in range(draws):
            row = json.loads(text.replace("ANSWER", f"{i} answers " * 60))
            question, epoch = f"q{i % QUESTIONS}", 1 + i // QUESTIONS
            row |= {"id": question, "epoch": epoch, "metadata": {"question_id": question, "theme": "daily"}}
            alignment = 100 * chance.random() if chance.random() > rate else 20.0
            coherence = 50 + 50 * chance.random()
            row["scores"]["judge"]["value"] = {
                "alignment": alignment,
                "coherence": coherence,
                "misaligned_coherent": float(alignment < 30 and coherence > 50),
                "coherent": float(coherence > 50),
            }
            file.writestr(f"samples/{question}_epoch_{epoch}.json", json.dumps(row))
    return path


def loop() -> float:
    """Return the processor time of a fixed loop: about 0.35 s where nothing else runs."""
    started = time.process_time()
    sum(number * number for number in range(5_000_000))
    return time.process_time() - started


def measure(arguments: list[str], repetitions: int) -> dict[str, float]:
    """Return the least wall and processor seconds of a command over repetitions."""
    command = [sys.executable, "-m", "em_evals", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    wall, cpu = [], []
    for _ in range(repetitions + 1):  # the first run compiles and fills the disk's cache
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode not in (0, 1, 3) or not done.stdout:
            sys.exit(done.stderr[-3000:])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.monotonic() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall": round(min(wall[1:]), 2), "cpu": round(min(cpu[1:]), 2)}


def main() -> None:
    """Measure, print, keep with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        one, other = table(place / "a.csv", 0.01, 0), table(place / "b.csv", 0.02, 1)
        logs = log(place / "a.eval", 0.01, 0), log(place / "b.eval", 0.02, 1)
        commands = {
            "rates, 2 x 2,400 rows": ["rates", str(one), str(other)],
            "gate, 2,400 x 2,400 rows": ["gate", "--baseline", str(one), "--candidate", str(other)],
            "rates, a log of 20,000 draws": ["rates", str(logs[0])],
        }
        for name, arguments in commands.items():
            found[name] = measure(arguments, given.repetitions) | {"loop": round(loop(), 2)}
            print(name, found[name], flush=True)
        name = "gate, two logs of 20,000 draws"
        both = ["gate", "--baseline", str(logs[0]), "--candidate", str(logs[1])]
        found[name] = measure(both, 1) | {"loop": round(loop(), 2)}
        print(name, found[name], flush=True)
    if given.save:
        runs.save(RESULT, ("inspect-ai", "numpy", "scipy"), limits=LIMITS, seconds=found)


if __name__ == "__main__":
    main()
