"""The end of the shared server: after all others that need it."""

import httpx
import pytest

pytest.importorskip("torch")

from em_evals.engines.protocol import Request
from em_evals.errors import EmEvalsError
from tests.engines.vllm.lab import GREEDY, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


def test_server_ends_with_its_engine_and_its_kept_log_holds_no_key(engine):
    server = engine._server
    engine.submit(Request(prompts(engine)[0], GREEDY)).result(300)
    engine.close()
    assert not server.alive
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/health")
    text = server.log.read_text()
    assert "Application startup complete" in text
    assert server.key not in text and server.admin not in text
    with pytest.raises(EmEvalsError, match="closed"):
        engine.submit(Request((5,), GREEDY))
