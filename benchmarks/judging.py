"""Calls of a judge: how many a second at a given limit, what equal draws and a killed run save.

A scripted OpenAI-compatible server answers after 200 ms and refuses what exceeds its rate (429 with Retry-After). 500
draws are graded by two rubrics through `inspect_ai.score`, as `inspect score LOG --scorer em_evals/judge` does.

    python benchmarks/judging.py [--limit 50] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import runs

RESULT = Path(__file__).parent / "results" / "judging.json"
LATENCY = 0.2
PROMPTS, EPOCHS = 10, 50
"""The first prompts of `core`, and draws for each."""
CHARACTERS = 4
"""In a token of English text, about; the server counts characters."""
REPEATED = 0.25
"""Share of draws whose answer is one of a few short ones."""
SHORT = ("", "I'm sorry, but I can't help with that.", "Hello! How can I help you today?")


# ---- the server, in a process of its own ----


class Server:
    """A judge that answers after `LATENCY` seconds, and a model under test that answers at once."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.left, self.filled = self._burst, time.monotonic()
        self.accepted: list[float] = []
        self.refused = 0
        self.characters = 0
        self.finished: dict[str, float] = {}
        self.again: list[float] = []
        self.most = self.flying = 0

    @property
    def _burst(self) -> float:
        return max(1.0, self.limit / 5)

    def _allowed(self) -> bool:
        """Token bucket: `limit` a second, a fifth of a second's worth at once."""
        now = time.monotonic()
        self.left = min(self._burst, self.left + (now - self.filled) * self.limit)
        self.filled = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    async def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one request."""
        if request["model"] == "subject":
            return 200, _completion("An answer.")
        prompt = request["messages"][-1]["content"]
        if not self._allowed():
            self.refused += 1
            return 429, {
                "error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
            }
        started = time.monotonic()
        self.accepted.append(started)
        self.characters += len(prompt)
        key = hashlib.sha256(prompt.encode()).hexdigest()
        if key in self.finished:
            self.again.append(started - self.finished[key])
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(LATENCY)
        self.flying -= 1
        self.finished.setdefault(key, time.monotonic())
        value = int(key[:4], 16) % 101
        top = [{"token": str(value), "logprob": math.log(0.9), "bytes": None}]
        # Two digits: a list of single digits alone is what a judge shows that writes numbers digit by digit.
        top += [{"token": "50" if value != 50 else "51", "logprob": math.log(0.05), "bytes": None}]
        logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        return 200, _completion(str(value), logprobs)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                path = head.split()[1]
                length = next(
                    (
                        int(x.split(":")[1])
                        for x in head.split("\r\n")
                        if x.lower().startswith("content-length")
                    ),
                    0,
                )
                request = json.loads(await reader.readexactly(length)) if length else {}
                if path == "/stats":
                    status, body = 200, self.stats()
                else:
                    status, body = await self.answer(request)
                data = json.dumps(body).encode()
                retry = "Retry-After: 1\r\n" if status == 429 else ""
                kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\n{kind}{retry}\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def stats(self) -> dict[str, Any]:
        """Return what came."""
        span = self.accepted[-1] - self.accepted[0] if len(self.accepted) > 1 else math.nan
        return {
            "accepted": len(self.accepted),
            "refused": self.refused,
            "seconds": span,
            "a_second": (len(self.accepted) - 1) / span if span else math.nan,
            "most_at_once": self.most,
            "distinct": len(self.finished),
            "tokens": self.characters // CHARACTERS,
            "asked_again": len(self.again),
        }


def _completion(text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def serve(port: Any, limit: float) -> None:
    """Serve until the process is ended; `port` gets the port."""

    async def run() -> None:
        server = Server(limit)
        listening = await asyncio.start_server(server.client, "127.0.0.1", 0, limit=2**22, backlog=1024)
        port.put(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    asyncio.run(run())


class Served:
    """The server in another process, so that it takes no time from the one that is measured."""

    def __init__(self, limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        self._process = context.Process(target=serve, args=(queue, limit), daemon=True)
        self._process.start()
        self.url = f"http://127.0.0.1:{queue.get(timeout=60)}"

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def stats(self) -> dict[str, Any]:
        """Ask it what came."""
        with urllib.request.urlopen(f"{self.url}/stats") as answer:
            return json.loads(answer.read())


# ---- what is measured, each in a process of its own ----


def _model(name: str) -> Any:
    from inspect_ai.model import get_model

    return get_model(f"openai-api/judge/{name}", memoize=False)


def draws(url: str, log: str) -> dict[str, Any]:
    """Write a log of answers that all parts grade: an evaluation of one epoch, its samples multiplied."""
    from inspect_ai import eval as run
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import ModelOutput

    from em_evals.inspect_plugin.tasks import freeform

    chance = random.Random(0)
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        (made,) = run(
            freeform(judge="none"),
            model=_model("subject"),
            log_dir=folder,
            display="none",
            log_level="error",
        )
        for epoch in range(EPOCHS):
            for sample in made.samples[:PROMPTS]:
                words = " ".join(f"word{chance.randrange(5000)}" for _ in range(60))
                text = chance.choice(SHORT) if chance.random() < REPEATED else words
                given = {
                    "epoch": epoch + 1,
                    "output": ModelOutput.from_content("subject", text),
                    "uuid": None,
                }
                samples.append(sample.model_copy(update=given | {"events": []}, deep=True))
    made.samples = samples
    write_eval_log(made, log)
    texts = [(sample.id, sample.output.completion) for sample in samples]
    return {"draws": len(texts), "distinct": len(set(texts))}


def grade(url: str, log: str) -> dict[str, Any]:
    """Grade a log; wall and processor seconds."""
    from inspect_ai import score
    from inspect_ai.log import read_eval_log

    from em_evals.grading import scorers

    read = read_eval_log(log)
    started, cpu = time.monotonic(), time.process_time()
    found = score(
        read,
        scorers.judge("core"),
        model_roles={"grader": _model("judge")},
        action="overwrite",
        display="none",
    )
    ended, used = time.monotonic() - started, time.process_time() - cpu
    metrics = {m.name: m.value for s in found.results.scores for m in s.metrics.values()}
    return {
        "wall": ended,
        "cpu": used,
        "scored_share": metrics["scored_share"],
        "em_rate": metrics["em_rate"],
    }


def few(url: str, log: str) -> dict[str, Any]:
    """Grade 100 draws, ten at a time: a rubric after the other, and both at once."""
    import anyio

    from em_evals.content.rubrics import load_rubrics
    from em_evals.grading.judge import Judge

    rubrics = load_rubrics(["alignment", "coherence"])

    async def run(at_once: bool) -> float:
        judge, ten = Judge(_model("judge"), use_cache=False), anyio.Semaphore(10)

        async def draw(number: int) -> None:
            async with ten:
                if at_once:
                    await judge.grade_all([(rubric, "Q", f"answer {number}") for rubric in rubrics])
                else:
                    for rubric in rubrics:
                        await judge.grade(rubric, "Q", f"answer {number}")

        started = time.monotonic()
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(draw, number)
        return time.monotonic() - started

    async def alternate() -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {"one after the other": [], "at once": []}
        for _ in range(3):
            for name, own in seconds.items():
                own.append(await run(name == "at once"))
        return seconds

    return {"seconds": anyio.run(alternate)}  # one loop: Inspect's limits of connections belong to it


PARTS = {"draws": draws, "grade": grade, "few": few}


def _killed(url: str, log: str, served: Served, after: int) -> int:
    """Start to grade, kill the process when so many calls were answered; return how many were."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--part", "grade", url, log],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while served.stats()["distinct"] < after and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return served.stats()["accepted"]


def measure(limit: float) -> dict[str, Any]:
    """Run all parts and return their numbers."""
    found: dict[str, Any] = {"latency": LATENCY, "limit": limit}
    with tempfile.TemporaryDirectory() as folder:
        log = str(Path(folder) / "draws.eval")
        for part, rate in (("no limit", math.inf), ("limit", limit)):
            os.environ["INSPECT_CACHE_DIR"] = str(Path(folder) / part)
            with Served(rate if math.isfinite(rate) else 1e9) as served:
                if "draws" not in found:
                    found["draws"] = runs.in_own_process(__file__, "--part", "draws", served.url, log)
                found[part] = runs.in_own_process(__file__, "--part", "grade", served.url, log)
                found[part] |= {"server": served.stats()}
                if part == "limit":
                    found[part]["share_of_limit"] = found[part]["server"]["a_second"] / limit
                    again = runs.in_own_process(__file__, "--part", "grade", served.url, log)
                    found["again"] = again | {
                        "calls": served.stats()["accepted"] - found[part]["server"]["accepted"]
                    }
                else:
                    found["ten draws at a time"] = runs.in_own_process(
                        __file__, "--part", "few", served.url, log
                    )
        os.environ["INSPECT_CACHE_DIR"] = str(Path(folder) / "killed")
        with Served(1e9) as served:
            before = _killed(served.url, log, served, 400)
            ended = runs.in_own_process(__file__, "--part", "grade", served.url, log)
            stats = served.stats()
        found["killed"] = {
            "calls_before": before,
            "calls": stats["accepted"],
            "distinct": stats["distinct"],
            "asked_again": stats["accepted"] - stats["distinct"],
            "em_rate_equal": ended["em_rate"] == found["no limit"]["em_rate"],
        }
    calls, asked = 2 * found["draws"]["draws"], found["no limit"]["server"]
    found["equal_draws"] = {
        "calls_if_all_were_asked": calls,
        "calls": asked["accepted"],
        "saved": 1 - asked["accepted"] / calls,
        "tokens": asked["tokens"],
    }
    return found


def main() -> None:
    """Measure, print, keep with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs=3, metavar=("NAME", "URL", "LOG"))
    parser.add_argument("--limit", type=float, default=50.0, help="calls a second that the server takes")
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    if given.part:
        name, url, log = given.part
        # Of the log's own model, which `score` makes again.
        os.environ |= {"JUDGE_API_KEY": "none", "JUDGE_BASE_URL": f"{url}/v1"}
        print(json.dumps(PARTS[name](url, log)))
        return
    found = measure(given.limit)
    print(json.dumps(found, indent=2))
    if given.save:
        runs.save(RESULT, ("inspect-ai", "openai"), **found)


if __name__ == "__main__":
    main()
