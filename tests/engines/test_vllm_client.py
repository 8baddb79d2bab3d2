"""The vLLM engine's own half, against a made-up server: what it asks, how it waits, starts, fails and ends. No vLLM."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("torch")

from em_evals.content.cards import ModelCard
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import engine as engine_module
from em_evals.engines.vllm import package
from em_evals.engines.vllm import server as vllm_server
from em_evals.engines.vllm.engine import VLLMEngine
from em_evals.engines.vllm.server import Server
from em_evals.engines.vllm.variants import BARE, Plan
from em_evals.errors import EmEvalsError
from tests.tiny_models import tiny

FEW = Sampling(temperature=0, max_tokens=2)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v1/models":
            entry = {"id": "m", "em_evals": {"key": BARE.key, "base": self.server.base}, "max_model_len": 40}
            self.say({"data": [entry]})
        else:
            self.say({"max_model_len": 512})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.inside += 1
            self.server.most = max(self.server.most, self.server.inside)
        time.sleep(0.02)
        with self.server.lock:
            self.server.inside -= 1
        prompt = [{str(token): {"logprob": -1.0}} for token in asked["prompt"]]
        choice = {
            "token_ids": [7] * asked["max_tokens"],
            "finish_reason": "length",
            "prompt_logprobs": prompt,
        }
        self.say({"choices": [choice]})

    def say(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("client") / "base")


@pytest.fixture
def server(base):
    made = Listener(("127.0.0.1", 0), Handler)
    made.base, made.lock, made.inside, made.most = base, threading.Lock(), 0, 0
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def engines():
    made = []
    yield lambda fields: made.append(VLLMEngine(ModelCard.model_validate(fields))) or made[-1]
    for engine in made:
        engine.close()


@pytest.fixture
def local(base, server, engines, monkeypatch):
    """An engine that may start servers; each start answers with the made-up one."""
    monkeypatch.setattr(package, "unusable", lambda: None)
    monkeypatch.setattr(Server, "add", lambda self, name, variant: None)
    engine = engines({"base": base, "backend": "vllm", "engine": {"dtype": "float32"}})
    engine.starts = []
    return engine


def started(server, plan):
    return Server(url(server), "key", plan)


def test_many_draws_share_few_connections(base, server, engines):
    """Two a row, never one for each draw: lm-eval hands over thousands at once, and files run out."""
    fields = {"base": base, "backend": "server", "base_url": url(server), "engine": {"max_num_seqs": 4}}
    engine = engines(fields)
    futures = [engine.submit(Request((5, 6), FEW)) for _ in range(100)]
    assert [future.result(60).tokens for future in futures] == [[7, 7]] * 100
    assert 1 < server.most <= 8


def test_a_server_that_reads_less_than_the_base_is_asked_for_no_more(base, server, engines):
    engine = engines({"base": base, "backend": "server", "base_url": url(server)})
    assert (engine.model_len, engine.scored_len) == (40, 39)
    scoring = Sampling(temperature=0, max_tokens=0, prompt_logprobs=0)
    assert len(engine.submit(Request((5,) * 39, scoring)).result(60).prompt_logprobs) == 38
    assert engine.submit(Request((5,) * 40, scoring)).result(60).stop_reason == "model_length"
    nobody = engines({"base": base, "backend": "server", "base_url": "http://127.0.0.1:9"})
    with pytest.raises(EmEvalsError, match="em-evals serve"):
        _ = nobody.model_len


def test_lm_eval_cuts_what_is_too_long_for_a_vllm_server(base, server, monkeypatch):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from em_evals.engines import pool
    from em_evals.lm_eval_plugin.model import EmLocal

    model = EmLocal(base, backend="server", base_url=url(server))
    try:
        text = "one two three four five six seven eight nine ten " * 20
        long = [Instance("loglikelihood", {}, (text, " eleven"), 0, metadata=("t", 0, 1))]
        assert model.loglikelihood(long, disable_tqdm=True)[0][0] < 0
        rolling = [Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))]
        assert model.loglikelihood_rolling(rolling, disable_tqdm=True) == [-1.0 * len(model.tok_encode(text))]
    finally:
        pool.close_engines()


def test_loopback_is_reached_past_a_proxy(local, server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(vllm_server, "start", lambda card, plan, merged, given_up: started(server, plan))
    assert local.submit(Request((5, 6), FEW)).result(60).tokens == [7, 7]
    vllm_server._wait(started(server, Plan()), threading.Event())


def test_a_start_that_fails_is_tried_once_for_all_that_wait_and_again_for_who_comes_later(
    local, server, monkeypatch
):
    def start(card, plan, merged, given_up):
        local.starts.append(plan)
        time.sleep(0.1)
        if len(local.starts) == 1:
            raise EmEvalsError("too large for this memory")
        return started(server, plan)

    monkeypatch.setattr(vllm_server, "start", start)
    for future in [local.submit(Request((5, 6), FEW)) for _ in range(300)]:
        with pytest.raises(EmEvalsError, match="too large"):
            future.result(60)
    assert len(local.starts) == 1
    assert local.submit(Request((5, 6), FEW)).result(60).tokens == [7, 7]


def test_a_draw_given_up_during_the_start_leaves_the_server_to_the_others(local, server, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def start(card, plan, merged, given_up):
        local.starts.append(plan)
        begun.set()
        assert go.wait(30)
        return started(server, plan)

    monkeypatch.setattr(vllm_server, "start", start)
    first = local.submit(Request((5, 6), FEW))
    assert begun.wait(30)
    second = local.submit(Request((5, 6), FEW))
    assert first.cancel()
    time.sleep(0.1)
    go.set()
    assert second.result(60).tokens == [7, 7] and len(local.starts) == 1


def test_closing_gives_a_start_up_and_leaves_no_server(local, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def start(card, plan, merged, given_up):
        begun.set()
        assert given_up.wait(30)
        ended.set()
        raise EmEvalsError("given up")

    monkeypatch.setattr(vllm_server, "start", start)
    draw = local.submit(Request((5, 6), FEW))
    assert begun.wait(30)
    local.close()
    assert ended.is_set() and draw.cancelled()


def test_an_adapter_that_no_server_takes_leaves_the_server_to_the_others(
    local, server, monkeypatch, tmp_path
):
    from tests.tiny_models import make_adapter

    monkeypatch.setattr(vllm_server, "start", lambda card, plan, merged, given_up: started(server, plan))
    assert local.submit(Request((5, 6), FEW)).result(60).tokens == [7, 7]
    first = local._server
    huge = make_adapter(local._card.base, tmp_path / "huge", 600, ["down_proj"], seed=1)
    with pytest.raises(EmEvalsError, match="rank 512 at most"):
        local.submit(Request((5, 6), FEW, huge)).result(60)
    assert local.submit(Request((5, 6), FEW)).result(60).tokens == [7, 7] and local._server is first


def test_connections_have_a_bound(base, engines):
    fields = {
        "base": base,
        "backend": "server",
        "base_url": "http://127.0.0.1:9",
        "engine": {"max_num_seqs": 4096},
    }
    assert engines(fields)._places._value == engine_module._CONNECTIONS
