"""Several running servers of one card: who is asked, and what becomes of a draw whose server dies, ends or changes."""

import json
import threading
import time

import pytest

pytest.importorskip("torch")

from em_evals.content.cards import ModelCard
from em_evals.engines.protocol import Request
from em_evals.engines.vllm import remotes as remotes_module
from em_evals.engines.vllm.app import STAMP
from em_evals.engines.vllm.engine import VLLMEngine
from em_evals.engines.vllm.meant import stamp
from em_evals.engines.vllm.variants import BARE
from em_evals.errors import EmEvalsError
from tests.engines.test_vllm_client import FEW, Handler, Listener, base, url  # noqa: F401 - base is a fixture

PROMPT = (5, 6, 7)


class Node(Handler):
    """A server that can die, end, or be started again with other cards."""

    def do_GET(self):
        self.server.listed += self.path == "/v1/models"
        if self.path == "/health":
            self.answer(503 if self.server.ending else 200, {})
        else:
            entry = {
                "id": "m",
                "em_evals": {"key": self.server.key, "base": self.server.base},
                "max_model_len": self.server.length,
            }
            self.say({"data": [entry]})

    def do_POST(self):
        server = self.server
        with server.lock:
            server.asked += 1
            dies = server.dies_after is not None and server.asked > server.dies_after
        if dies:
            self.close_connection = True  # no answer: the node is gone
            return
        if server.ending:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(503, {"error": {"message": "this server is ending"}})
        elif self.headers[STAMP] != stamp(server.key, server.base):
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(409, {"error": {"message": "'m' is another model here"}})
        else:
            with server.lock:
                server.answered += 1
            super().do_POST()

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def pair(base):  # noqa: F811
    made = []
    for _ in range(2):
        node = Listener(("127.0.0.1", 0), Node)
        node.base, node.key, node.length, node.ending, node.dies_after = base, BARE.key, 40, False, None
        node.lock, node.inside, node.most, node.asked, node.answered = threading.Lock(), 0, 0, 0, 0
        node.listed = 0
        threading.Thread(target=node.serve_forever, daemon=True).start()
        made.append(node)
    yield made
    for node in made:
        node.shutdown()
        node.server_close()


@pytest.fixture
def engine(base, pair):  # noqa: F811
    card = {"base": base, "backend": "server", "base_url": [url(node) for node in pair]}
    made = VLLMEngine(ModelCard.model_validate(card))
    yield made
    made.close()


def draws(engine, number):
    return [one.result(60).tokens for one in engine.submit_all([Request(PROMPT, FEW)] * number)]


def answered(pair):
    return [node.answered for node in pair]


def test_two_servers_share_the_draws(engine, pair):
    assert draws(engine, 60) == [[7, 7]] * 60
    assert sum(answered(pair)) == 60 and min(answered(pair)) >= 20
    assert [node.listed for node in pair] == [1, 1], "what they serve is asked once"


def test_a_server_that_dies_costs_only_what_it_had_not_answered(engine, pair):
    pair[0].dies_after = 20
    assert draws(engine, 80) == [[7, 7]] * 80
    assert pair[0].answered == 20
    assert pair[1].answered == 60, "nothing that was answered is drawn again"


def test_a_server_that_is_ending_finishes_what_it_has_and_gets_no_more(engine, pair):
    assert draws(engine, 4) == [[7, 7]] * 4
    one, other = answered(pair)
    pair[0].ending = True
    assert draws(engine, 40) == [[7, 7]] * 40
    assert answered(pair) == [one, other + 40]


def test_what_runs_on_a_server_when_it_begins_to_end_is_not_drawn_again(engine, pair):
    futures = engine.submit_all([Request(PROMPT, FEW)] * 80)
    while not (pair[0].answered and pair[0].inside):
        time.sleep(0.001)
    pair[0].ending = True
    assert [one.result(60).tokens for one in futures] == [[7, 7]] * 80
    assert sum(answered(pair)) == 80
    assert pair[0].asked > pair[0].answered > 0, "some were refused, and drawn by the other"
    assert pair[1].asked == pair[1].answered > pair[0].answered


def test_cards_are_changed_one_server_after_the_other(engine, pair, monkeypatch):
    """The second server is started again with another card under the same name, then the first with the old one."""
    assert draws(engine, 4) == [[7, 7]] * 4
    one, other = answered(pair)
    pair[1].key = "another card"
    assert draws(engine, 40) == [[7, 7]] * 40
    assert answered(pair) == [one + 40, other], "another model under the name draws nothing"
    pair[0].key, pair[1].key = "another card", BARE.key
    assert draws(engine, 40) == [[7, 7]] * 40
    assert answered(pair) == [one + 40, other + 40]
    pair[1].key = "another card"
    with pytest.raises(EmEvalsError, match="none of them is this card"):
        draws(engine, 1)


def test_a_server_that_comes_back_is_asked_again(engine, pair, monkeypatch):
    monkeypatch.setattr(remotes_module, "_AWAY_SECONDS", 0.1)
    pair[0].dies_after = 0
    draws(engine, 4)
    pair[0].dies_after = None
    time.sleep(0.3)
    draws(engine, 40)
    assert pair[0].answered >= 10


def test_without_any_server_a_draw_ends_with_their_addresses(engine, pair):
    draws(engine, 2)
    for node in pair:
        node.dies_after = 0
    with pytest.raises(EmEvalsError, match=r"the servers at http.* and http.* do not answer"):
        draws(engine, 1)


def test_servers_that_end_answers_at_different_places_are_refused(engine, pair):
    pair[1].length = 41
    with pytest.raises(EmEvalsError, match=r"reads 4. tokens and .*engine\.max_model_len"):
        draws(engine, 2)


def test_a_card_names_one_server_several_or_none(base):  # noqa: F811
    one = {"base": base, "backend": "server", "base_url": "http://a:1"}
    assert ModelCard.model_validate(one).servers == ("http://a:1",)
    assert ModelCard.model_validate({"base": base}).servers == ()
    for wrong in (
        {"base": base, "backend": "server", "base_url": []},
        {"base": base, "base_url": ["http://a:1"]},
    ):
        with pytest.raises(ValueError, match="belong together"):
            ModelCard.model_validate(wrong)
    with pytest.raises(ValueError, match="a user or a password"):
        ModelCard.model_validate(one | {"base_url": ["http://a:1", "http://me:secret@b:1"]})
