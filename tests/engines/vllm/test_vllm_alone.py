"""A server for one adapter, which is merged; killed amid an eval, it starts again, now for all models of this folder."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from inspect_ai import eval

from em_evals.engines.protocol import Request, Sampling
from em_evals.inspect_plugin.tasks import freeform
from em_evals.lm_eval_plugin.model import EmLocal
from tests.engines.vllm.lab import GREEDY, logprobs, metric, prompts, same_in_lm_eval

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.mark.full
def test_a_single_adapter_is_merged_and_scores_in_lm_eval_as_on_transformers(cards, lone, reference):
    """As `--model_args card=b,backend=vllm` makes it: no LoRA is served, vLLM loads one merged checkpoint."""
    ours = EmLocal.create_from_arg_string("card=b,backend=vllm")
    assert ours.engine is lone
    request = Request(prompts(lone)[0], GREEDY, ours.card.adapter_path)
    draw, want = lone.submit(request).result(1200), reference.submit(request).result(120)
    assert lone.plan.merged and not lone.plan.loras
    assert draw.tokens == want.tokens
    assert logprobs(draw.logprobs) == pytest.approx(logprobs(want.logprobs), abs=1e-3)
    same_in_lm_eval(ours, EmLocal("b", backend="transformers", max_model_len=ours.max_length))


@pytest.mark.full
def test_a_server_killed_amid_an_eval_is_restarted_and_its_answers_are_the_same(
    cards, root, base, reserved, loras
):
    """Draws that others asked for are repeated too. The new server is for every model that was reserved by then."""
    task = freeform(judge="none", seed=1)

    def run(folder):
        [log] = eval(
            task,
            model="local/b",
            limit=5,
            max_tokens=base.answer,
            log_dir=str(root / folder),
            display="none",
        )
        assert log.status == "success"
        return log.samples

    def finished():
        return metric(reserved, "request_success_total")

    def kill(earlier):
        deadline = time.monotonic() + 300
        while finished() == earlier and time.monotonic() < deadline:
            time.sleep(0.02)
        futures = [reserved.submit(request) for request in requests]
        amid = finished() - earlier, metric(reserved, "num_requests_running")
        os.killpg(first.process.pid, signal.SIGKILL)
        return amid, [future.result(1200).tokens for future in futures]

    prompt = prompts(reserved)[0]
    requests = [
        Request(prompt, Sampling(temperature=1, max_tokens=base.answer, seed=seed), loras["r16"])
        for seed in range(10)
    ]
    before = [reserved.submit(request).result(1200).tokens for request in requests[:3]]
    first = reserved._server
    undisturbed = run("undisturbed")
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill, finished())
        disturbed = run("disturbed")
        (done, running), after = killed.result(1200)
    assert 0 < done < 15 and running > 0, "some answers were there, others on their way"
    assert not first.alive and reserved._server is not first
    assert after[:3] == before
    assert len(undisturbed) == len(disturbed) == 5
    for one, other in zip(undisturbed, disturbed, strict=True):
        assert one.output.completion == other.output.completion and other.output.completion
        assert other.error is None
    assert reserved.plan.loras == 4 and not reserved.plan.merged, "the new server is for all"
