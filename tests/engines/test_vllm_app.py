"""Cards as model names, without vLLM: what of a request reaches it, and what is refused before."""

import asyncio
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from em_evals.content.intervention import Intervention
from em_evals.engines.vllm import app
from em_evals.engines.vllm.app import Cards
from em_evals.engines.vllm.variants import BARE, Variant, as_json

PUSH = Intervention(op="add", direction="/d.safetensors")
PREFIX = Intervention(op="add", direction="/d.safetensors", positions="prompt")
MODELS = {
    "plain": BARE,
    "pushed": Variant("k1", steering=(PUSH,), steering_key="s1"),
    "prefixed": Variant("k2", steering=(PREFIX,), steering_key="s2"),
}


@pytest.fixture
def server(monkeypatch):
    """The middleware around an application that answers what it was sent; its models registered."""
    monkeypatch.setenv(app.API_KEY, "key")
    monkeypatch.setenv(app.ADMIN_KEY, "admin")
    plan = {"loras": 0, "rank": 0, "steps": 1, "merged": "", "base": "base"}
    monkeypatch.setenv(app.PLAN, json.dumps(plan))
    written = []

    async def rpc(name, args):
        written.append((name, *args))
        return [""]

    async def echo(scope, receive, send):
        body = json.dumps(json.loads((await receive())["body"]), separators=(",", ":")).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    state = SimpleNamespace(engine_client=SimpleNamespace(collective_rpc=rpc))
    made = SimpleNamespace(cards=Cards(echo), app=SimpleNamespace(state=state), written=written)
    for name, variant in MODELS.items():
        sent = {"name": name, "variant": as_json(variant)}
        assert call(made, sent, app.REGISTER, "PUT", "admin")[0] == 200
    return made


def call(server, body, path="/v1/completions", method="POST", key="key"):
    """Status and JSON of an answer."""
    sent, found = body if isinstance(body, bytes) else json.dumps(body).encode(), []

    async def receive():
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message):
        found.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "path": path, "method": method, "headers": headers, "app": server.app}
    asyncio.run(server.cards(scope, receive, send))
    return found[0]["status"], json.loads(b"".join(part.get("body", b"") for part in found[1:]))


def test_a_cards_name_becomes_a_slot_and_a_salt(server):
    status, said = call(server, {"model": "pushed", "prompt": [1, 2]})
    assert status == 200 and said["model"] == "pushed", "clients never see vLLM's own names"
    assert said["vllm_xargs"] == {"em_evals_slot": 1} and said["cache_salt"]
    _, other = call(
        server, {"model": "prefixed", "prompt": [1, 2], "vllm_xargs": {"em_evals_answer_start": 1}}
    )
    assert other["vllm_xargs"] == {"em_evals_slot": 2, "em_evals_answer_start": 1}
    assert other["cache_salt"] != said["cache_salt"]
    _, bare = call(server, {"model": "plain", "prompt": [1, 2], "cache_salt": "mine"})
    assert bare["vllm_xargs"] is None and bare["cache_salt"] == "mine"
    assert [(name, slot) for name, slot, _ in server.written] == [("em_evals_set", 1), ("em_evals_set", 2)]


def test_beam_search_which_vllm_would_not_steer_is_refused(server):
    """It makes sampling parameters of its own, without the request's extra arguments (vLLM 0.32)."""
    asked = {"prompt": [1], "use_beam_search": True}
    status, said = call(server, {"model": "pushed", **asked})
    assert status == 400 and "use_beam_search" in said["error"]["message"]
    assert call(server, {"model": "plain", **asked})[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"[1]", 400, "not a JSON object"),
        (b"nonsense", 400, "not a JSON object"),
        ({"model": ["pushed"]}, 404, "no model"),
        ({"model": "pushd"}, 404, "did you mean 'pushed'"),
        ({"model": "pushed", "vllm_xargs": [1]}, 400, "not a JSON object"),
        ({"model": "pushed", "vllm_xargs": {"em_evals_answer_start": "soon"}}, 400, "a number of tokens"),
        ({"model": "pushed", "vllm_xargs": {"em_evals_slot": 0}}, 400, "is set by the server"),
        ({"model": "prefixed", "messages": [], "continue_final_message": True}, 400, "token ids"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(server, body, status, says):
    assert call(server, body)[0] == status
    assert says in call(server, body)[1]["error"]["message"]


def test_keys_open_their_own_doors_only(server):
    assert call(server, {"model": "plain"}, key="wrong")[0] == 401
    assert call(server, {}, app.REGISTER, "PUT", "key")[0] == 403
    assert call(server, {"model": "plain"}, "/v1/responses")[0] == 404
    assert call(server, {"model": "plain"}, "/v1/load_lora_adapter")[0] == 404
