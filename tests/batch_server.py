"""A scripted judge behind OpenAI's batch API: a file of requests goes up, a batch is made of it, a file of replies comes."""

from __future__ import annotations

import json
from typing import Any

from inspect_ai.model import BatchConfig, GenerateConfig, Model, get_model

from tests.judge_server import API_KEY, Handler, JudgeServer


def of(size: int) -> BatchConfig:
    """Batches of so many requests, whatever the time; Inspect sends what is there every 15 seconds by default."""
    return BatchConfig(size=size, send_delay=300, tick=0.05)


class _Handler(Handler):
    server: Any

    def do_POST(self) -> None:
        judge = self.server.judge
        if self.path.endswith("/files"):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            lines = [json.loads(line) for line in body.splitlines() if line.startswith('{"custom_id"')]
            judge.files.append(lines)
            self._json(
                {"id": f"file-{len(judge.files) - 1}", "object": "file", "bytes": 1, "created_at": 0}
                | {"filename": "a.jsonl", "purpose": "batch", "status": "processed"}
            )
        elif self.path.endswith("/batches"):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.batches.append(judge.files[int(asked["input_file_id"].removeprefix("file-"))])
            self._json(self._batch(len(judge.batches) - 1))
        else:
            judge.alone += 1
            super().do_POST()

    def do_GET(self) -> None:
        judge, parts = self.server.judge, self.path.split("/")
        if "batches" in parts:
            self._json(self._batch(int(parts[-1].removeprefix("batch-"))))
            return
        lines = []
        for line in judge.batches[int(parts[-2].removeprefix("out-"))]:
            status, body = judge.answer(line["body"], API_KEY)
            lines.append({"custom_id": line["custom_id"], "response": {"status_code": status, "body": body}})
        self.send(200, "\n".join(map(json.dumps, lines)).encode())

    def _batch(self, number: int) -> dict[str, Any]:
        return {
            "id": f"batch-{number}",
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": f"file-{number}",
            "output_file_id": f"out-{number}",
            "completion_window": "24h",
            "created_at": 0,
            "status": "completed",
            "request_counts": {"total": 1, "completed": 1, "failed": 0},
        }

    def _json(self, body: dict[str, Any]) -> None:
        self.send(200, json.dumps(body).encode())


class BatchServer(JudgeServer):
    """Keeps the batches that came; `alone` counts requests that came by themselves."""

    handler = _Handler

    def __init__(self, *given: Any, **named: Any) -> None:
        self.files: list[list[dict[str, Any]]] = []
        self.batches: list[list[dict[str, Any]]] = []
        self.alone = 0
        super().__init__(*given, **named)

    def openai(self, **config: Any) -> Model:
        """This server as a model of Inspect's provider for OpenAI, which knows the batch API."""
        return get_model(
            "openai/test-judge",
            base_url=self.url,
            api_key=API_KEY,
            config=GenerateConfig(**{"max_retries": 0, **config}),
            responses_api=False,
            memoize=False,
        )
