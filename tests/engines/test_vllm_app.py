"""Cards as model names, without vLLM: what of a request reaches it, and what is refused before."""

import asyncio
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from em_evals.content.intervention import Intervention
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import app, meant, request_schema, wire
from em_evals.engines.vllm.app import Cards
from em_evals.engines.vllm.variants import BARE, Variant, as_json
from tests.small_tokenizer import small_tokenizer

PLAIN = {"model": "plain", "prompt": [1]}
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


async def messages(server, body, path="/v1/completions", method="POST", key="key", headers=None):
    """What the server sends."""
    sent, found = body if isinstance(body, bytes) else json.dumps(body).encode(), []

    async def receive():
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message):
        found.append(message)

    own = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    sends = [(b"authorization", f"Bearer {key}".encode()), *own]
    scope = {"type": "http", "path": path, "method": method, "headers": sends, "app": server.app}
    await server.cards(scope, receive, send)
    return found


def said_in(found):
    """Status and JSON of an answer."""
    return found[0]["status"], json.loads(b"".join(part.get("body", b"") for part in found[1:]))


def call(*arguments, **options):
    """Status and JSON of an answer."""
    return said_in(asyncio.run(messages(*arguments, **options)))


@pytest.fixture
def inside(server):
    """A count of the requests that reached the application, whose answers wait for `inside.go`."""
    inside = asyncio.Semaphore(0)
    inside.go = asyncio.Event()

    async def slow(scope, receive, send):
        inside.release()
        await inside.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    server.cards._app = slow
    return inside


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
        ({"model": "pushed", "vllm_xargs": [1]}, 400, "`vllm_xargs` of this request is wrong"),
        (
            {"model": "pushed", "vllm_xargs": {"em_evals_answer_start": "soon"}},
            400,
            "em_evals_answer_start` of",
        ),
        (
            {"model": "pushed", "vllm_xargs": {"em_evals_answer_start": 2**63}},
            400,
            "em_evals_answer_start` of",
        ),
        ({"model": "pushed", "vllm_xargs": {"em_evals_answer_start": -1}}, 400, "em_evals_answer_start` of"),
        (
            {"model": "pushed", "vllm_xargs": {"em_evals_answer_start": True}},
            400,
            "em_evals_answer_start` of",
        ),
        ({"model": "pushed", "vllm_xargs": {"other": 1}}, 400, "is not a field"),
        ({"model": "pushed", "cache_salt": 5}, 400, "`cache_salt` of"),
        ({"model": "pushed", "cache_salt": "\ud800"}, 400, "`cache_salt` of"),
        ({"model": "plain", "n": 10_000}, 400, "`n` of"),
        ({"model": "plain", "logprobs": 10**6}, 400, "`logprobs` of"),
        ({"model": "plain", "temperature": float("nan")}, 400, "`temperature` of"),
        ({"model": "plain", "prompt": [2**31]}, 400, "`prompt"),
        ({"model": "plain", "prompt": ["a"] * 300}, 400, "`prompt"),
        ({"model": "plain", "seed": 10**30}, 400, "`seed` of"),
        ({"model": "plain", "stop": [["a"]]}, 400, "`stop"),
        (
            {"model": "plain", "structured_outputs": {"regex": "(a+)+$"}},
            400,
            "is not a field of /v1/completions",
        ),
        ({"model": "plain", "temprature": 1}, 400, "did you mean 'temperature'"),
        (b'{"model": "plain", "seed": ' + b"9" * 5000 + b"}", 400, "a whole number of 5000 digits"),
        (b'{"model": ' * 5000, 400, "nested too deeply"),
        ({"model": "pushed", "vllm_xargs": {"em_evals_slot": 0}}, 400, "is set by the server"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(server, body, status, says):
    assert call(server, body)[0] == status
    assert says in call(server, body)[1]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [], "continue_final_message": True}, "token ids"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
                ]
            },
            "messages.0",
        ),
        ({"messages": "hello"}, "`messages` of"),
        ({"messages": [], "chat_template": "{{ 1 }}"}, "is not a field"),
        ({"messages": [], "tools": [{}]}, "`tools.0.type` of"),
        ({"messages": [], "tools": [{"type": "function", "function": {"name": "f"}}]}, "take no tools"),
        ({"messages": [], "response_format": {"type": "json_schema"}}, "`response_format.type` of"),
    ],
)
def test_chats_are_validated_field_by_field(server, body, says):
    status, said = call(server, {"model": "prefixed", **body}, "/v1/chat/completions")
    assert status == 400 and says in said["error"]["message"]


def test_requests_of_common_clients_pass(server):
    chat = {
        "model": "plain", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 5, "temperature": 1, "top_p": 0.9, "seed": 3, "stop": ["a"], "logprobs": True, "top_logprobs": 5, "n": 2,
        "stream": False, "user": "me", "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
    }  # fmt: skip
    assert call(server, chat, "/v1/chat/completions")[0] == 200
    assert call(server, {"model": "plain", "tokens": [1, 2]}, "/detokenize")[0] == 200
    assert call(server, {"model": "plain", "prompt": "hi"}, "/tokenize")[0] == 200
    assert call(server, {"model": "plain", "tokens": [2**40]}, "/detokenize")[0] == 400


def test_our_own_engines_requests_pass():
    """Whatever `wire` writes is valid; a field that it gains must be listed."""
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=5, max_tokens=3, stop=("a", "<|im_start|>"), seed=-1,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    tokenizer = small_tokenizer()
    for one in (sampling, Sampling(max_tokens=0, prompt_logprobs=1, prompt_logprobs_from=2)):
        request = Request((1, 2, 3), one, answer_start=1, end=7)
        body = wire.body(tokenizer, request, "plain", 10)
        assert request_schema.wrong("/v1/completions", body) is None
        special = [tokenizer.convert_tokens_to_ids("<|im_start|>")] if one.stop else []
        assert body["stop_token_ids"] == [*special, 7]


def test_keys_open_their_own_doors_only(server):
    assert call(server, {"model": "plain"}, key="wrong")[0] == 401
    assert call(server, {}, app.REGISTER, "PUT", "key")[0] == 403
    assert call(server, {"model": "plain"}, "/v1/responses")[0] == 404
    assert call(server, {"model": "plain"}, "/v1/load_lora_adapter")[0] == 404


def test_a_key_may_run_so_many_requests_at_once_and_no_more(server, inside):
    """Others of the key wait outside with a sentence; those that run go on, and places become free again."""
    server.cards._running.most = 3

    async def many():
        running = [asyncio.create_task(messages(server, PLAIN)) for _ in range(3)]
        for _ in range(3):
            await inside.acquire()
        refused = await asyncio.gather(*(messages(server, PLAIN) for _ in range(20)))
        inside.go.set()
        return await asyncio.gather(*running), refused, await messages(server, PLAIN)

    running, refused, later = asyncio.run(many())
    assert [found[0]["status"] for found in (*running, later)] == [200] * 4
    assert {found[0]["status"] for found in refused} == {429}
    assert dict(refused[0][0]["headers"])[b"retry-after"] == b"1"
    assert b"3 requests with this key run already" in refused[0][1]["body"]
    assert not any(server.cards._running.counts.values())


def test_an_answer_with_nan_is_refused_with_the_models_name(server):
    async def broken(scope, receive, send):
        json.dumps(float("nan"), allow_nan=False)

    server.cards._app = broken
    status, said = call(server, {"model": "pushed", "prompt": [1]})
    assert status == 422 and said["error"]["message"].startswith(
        "the model pushed gives a log-probability that is NaN"
    )


def test_a_name_that_stands_for_another_model_than_before_is_refused(server):
    """A client that looked a card up asks the next server under that name: another adapter would answer in silence."""
    asked = {"model": "pushed", "prompt": [1]}
    assert call(server, asked, headers={app.STAMP: meant.stamp("k1", "base")})[0] == 200
    for other in (meant.stamp("k2", "base"), meant.stamp("k1", "another base")):
        status, said = call(server, asked, headers={app.STAMP: other})
        assert (
            status == 409 and "another model here than when /v1/models was read" in said["error"]["message"]
        )


def test_a_server_that_is_ending_answers_what_runs_and_takes_nothing_new(server, inside):
    assert call(server, {}, app.DRAIN, "PUT", "key")[0] == 403

    async def drained():
        running = [asyncio.create_task(messages(server, PLAIN)) for _ in range(2)]
        for _ in range(2):
            await inside.acquire()
        told = [said_in(await messages(server, {}, app.DRAIN, "PUT", "admin"))]
        refused = [await messages(server, PLAIN), await messages(server, {}, "/health", "GET")]
        inside.go.set()
        answered = await asyncio.gather(*running)
        told.append(said_in(await messages(server, {}, app.DRAIN, "PUT", "admin")))
        return told, refused, answered

    told, refused, answered = asyncio.run(drained())
    assert told == [(200, {"running": 2}), (200, {"running": 0})]
    assert [found[0]["status"] for found in refused] == [503, 503]
    assert dict(refused[0][0]["headers"])[b"retry-after"] == b"1"
    assert b"ask another" in refused[0][1]["body"]
    assert [said_in(found) for found in answered] == [(200, {})] * 2
