"""`em-evals serve` as a user starts it: a process whose models any OpenAI client reaches; and `doctor`."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from inspect_ai import eval
from inspect_ai.log import list_eval_logs, read_eval_log

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.engines import pool
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import package, serve
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.tasks import freeform
from em_evals.lm_eval_plugin.model import EmLocal
from em_evals.models import bases
from em_evals.workflows.doctor import examine
from tests.engines.vllm.lab import same_in_lm_eval
from tests.tiny_models import make_adapter, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    base = tiny("llama", root / "base", **heads)
    make_adapter(base, root / "adapters" / "lora", 4, ["down_proj"], seed=1, strength=0.5)
    chance = np.random.default_rng(1)
    vectors = [chance.normal(size=(3, 64)).astype(np.float32) for _ in range(2)]
    directions.write(Direction(*vectors, np.ones(3, np.float32)), root / "adapters" / "d.safetensors")
    engine = {
        "dtype": "float32",
        "max_model_len": 128,
        "kv_cache_memory_bytes": 64 * 1024**2,
        "enforce_eager": True,
    }
    for name, more in {
        "plain": {},
        "pushed": {"interventions": [{"op": "add", "direction": "d", "layers": [1], "scale": 3.0}]},
        "cleared": {
            "interventions": [{"op": "ablate", "direction": "d", "reference": "mean", "skip": "sink"}]
        },
        "trained": {"adapter": "lora"},
        "both": {
            "adapter": "lora",
            "interventions": [{"op": "add", "direction": "d", "layers": [1], "scale": 3.0}],
        },
    }.items():
        fields = {"base": base, "engine": engine, "generation": {"max_tokens": 8}, **more}
        (root / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    return root


@pytest.mark.full
@pytest.mark.vllm
@pytest.mark.timeout(1800)
@pytest.mark.process
def test_serve_command_equals_the_transformers_engine_and_ends_on_interrupt(root, monkeypatch):
    openai = pytest.importorskip("openai")
    monkeypatch.chdir(root)
    names = ["plain", "pushed", "cleared", "trained", "both"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "em_evals",
        "serve",
        *names,
        "--port",
        str(port),
        "--key-file",
        "key",
        "--json",
    ]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    served = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    engine = HFEngine(resolve("plain").card)
    try:
        line = served.stdout.readline()
        assert line, served.stderr.read()[-2000:]
        ready = json.loads(line)
        assert ready["models"] == names and (root / "key").stat().st_mode & 0o077 == 0
        client = openai.OpenAI(
            base_url=ready["base_url"], api_key=(root / "key").read_text().strip(), max_retries=0
        )
        assert [entry.id for entry in client.models.list()] == names
        prompt, said = [5, 9, 200, 31, 401, 12, 500, 33, 21], set()
        for name in names:
            answer = client.completions.create(
                model=name,
                prompt=prompt,
                max_tokens=8,
                temperature=0,
                logprobs=0,
                extra_body={"return_token_ids": True},
            ).choices[0]
            sampling = Sampling(temperature=0, max_tokens=8, logprobs=True)
            found = resolve(name)
            request = Request(tuple(prompt), sampling, found.adapter_path, found.interventions)
            want = engine.submit(request).result(120)
            assert answer.token_ids == want.tokens
            expected = [entry.logprob for entry in want.logprobs]
            assert answer.logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
            said.add(tuple(answer.logprobs.token_logprobs))
        assert len(said) == len(names)
        served.send_signal(signal.SIGINT)
        assert ended(served) == 130
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    finally:
        engine.close()
        if served.poll() is None:
            os.kill(served.pid, signal.SIGTERM)
            served.wait(60)


def ended(served):
    """The exit code; a process that hangs tells where."""
    try:
        return served.wait(60)
    except subprocess.TimeoutExpired:
        served.send_signal(signal.SIGABRT)
        pytest.fail(served.stderr.read()[-4000:])


@pytest.mark.vllm
@pytest.mark.timeout(1800)
@pytest.mark.full
def test_a_single_adapter_merged_and_compiled_scores_in_lm_eval_as_peft(root, monkeypatch, cache):
    """As `--model_args card=trained,backend=vllm` makes it; compiled by torch, as by default: a minute on a CPU."""
    monkeypatch.chdir(root)
    ours = EmLocal.create_from_arg_string("card=trained,backend=vllm,enforce_eager=False")
    reference = EmLocal("trained", max_model_len=ours.max_length)
    try:
        request = Request(
            (5, 9, 200, 31, 77), Sampling(temperature=0, max_tokens=8, logprobs=True), ours.card.adapter_path
        )
        draw, want = ours.engine.submit(request).result(1200), reference.engine.submit(request).result(120)
        assert ours.engine.plan.merged and not ours.engine.plan.loras
        assert draw.tokens == want.tokens
        assert [e.logprob for e in draw.logprobs] == pytest.approx(
            [e.logprob for e in want.logprobs], abs=1e-3
        )
        same_in_lm_eval(ours, reference)
    finally:
        pool.close_engines()


@pytest.mark.vllm
@pytest.mark.timeout(1800)
@pytest.mark.full
@pytest.mark.process
def test_comma_separated_cards_share_one_server_that_ends_with_inspect(root, monkeypatch, cache):
    """As a user types it, in a process that has no engine yet."""
    monkeypatch.chdir(root)
    names = "local/plain,local/trained,local/both"
    command = f"eval em_evals/freeform --model {names} -M backend=vllm -T judge=none --limit 3"
    options = "--temperature 0 --max-tokens 8 --log-dir commas --display none"
    done = subprocess.run(
        [sys.executable, "-m", "inspect_ai", *command.split(), *options.split()],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [started] = (cache / "servers").glob("*.log")
    assert started.read_text().count("Application startup complete") == 1, "one start for three cards"
    found = {log.eval.model: log for log in map(read_eval_log, list_eval_logs(str(root / "commas")))}
    reference = eval(
        freeform(judge="none"),
        model=names,
        limit=3,
        temperature=0,
        max_tokens=8,
        log_dir=str(root / "logs"),
        display="none",
    )
    pool.close_engines()
    said = set()
    for want in reference:
        log = found[want.eval.model]
        assert log.status == "success"
        answers = [sample.output.completion for sample in log.samples]
        assert answers == [sample.output.completion for sample in want.samples] and all(answers)
        said.add(tuple(answers))
    assert len(said) == 3, "three models say three things"


def test_serve_refuses_cards_on_different_bases(root, monkeypatch):
    monkeypatch.chdir(root)
    cards = [resolve("plain"), resolve("smollm2")]
    with pytest.raises(EmEvalsError, match="differ in `base`"):
        serve._together(cards)


def test_api_key_file_is_created_once_and_write_errors_are_reported(tmp_path):
    made = serve._key(tmp_path / "new" / "key")
    assert serve._key(tmp_path / "new" / "key") == made and len(made) > 30
    assert (tmp_path / "new" / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(EmEvalsError, match="not a regular file"):
        serve._key(tmp_path)
    (tmp_path / "empty").touch()
    assert len(serve._key(tmp_path / "empty")) > 30


def test_doctor_reports_the_engine_and_the_reason(monkeypatch):
    rows = {row["what"]: row for row in examine()}
    assert rows["backend auto"]["state"] in {"transformers", "vllm"} and rows["backend auto"]["remark"]
    assert rows["torch"]["state"] == bases.torch.__version__
    monkeypatch.setattr(package, "installed", lambda: None)
    rows = {row["what"]: row for row in examine()}
    assert rows["backend vllm"]["state"] == "not usable" and "make vllm-cpu" in rows["vllm"]["remark"]
    assert rows["backend auto"]["state"] == "transformers"
