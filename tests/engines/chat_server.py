"""The middleware of `em-evals serve` around an application that answers completions by the transformers engine."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import app
from em_evals.engines.vllm.app import Cards
from em_evals.engines.vllm.chat import asked_as
from em_evals.engines.vllm.variants import BARE, as_json
from tests.engines.test_vllm_app import call


def serving(card, engine, monkeypatch):
    """A server of one card; `call` (test_vllm_app.py) asks it."""
    monkeypatch.setenv(app.API_KEY, "key")
    monkeypatch.setenv(app.ADMIN_KEY, "admin")
    plan = {"loras": 0, "rank": 0, "steps": 0, "merged": "", "base": "base"}
    monkeypatch.setenv(app.PLAN, json.dumps(plan))

    async def complete(scope, receive, send):
        assert scope["path"] == "/v1/completions"
        body = json.loads((await receive())["body"])
        asked = Sampling(
            temperature=body["temperature"], max_tokens=body["max_tokens"], seed=body["seed"], logprobs=True
        )
        draw = await asyncio.wrap_future(engine.submit(Request(tuple(body["prompt"]), asked)))
        logprobs = {
            "token_logprobs": [entry.logprob for entry in draw.logprobs],
            "top_logprobs": [{} for _ in draw.logprobs],
        }
        reason = "stop" if draw.stop_reason == "stop" else "length"
        choice = {"token_ids": draw.tokens, "finish_reason": reason, "logprobs": logprobs}
        sent = json.dumps({"choices": [choice]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": sent})

    limits = SimpleNamespace(model_config=SimpleNamespace(max_model_len=2048))
    made = SimpleNamespace(
        cards=Cards(complete), app=SimpleNamespace(state=SimpleNamespace(engine_client=limits))
    )
    sent = {"name": card.name, "variant": as_json(BARE), "asked": asked_as(card)}
    assert call(made, sent, app.REGISTER, "PUT", "admin")[0] == 200
    return made
