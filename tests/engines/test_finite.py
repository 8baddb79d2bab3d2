"""Models whose log-probabilities are not finite: their draws and scores fail by name, and those of others go on."""

import pytest

torch = pytest.importorskip("torch")

import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.vllm import wire
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import group_sums
from em_evals.interp.extraction.prefix_tree import Text
from tests.tiny_models import card, make_adapter, tiny

PROMPT = tuple(range(10, 30))
SCORE = Sampling(temperature=0, max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=15)
DRAW = Sampling(temperature=1, max_tokens=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def overflowing(base, tmp_path_factory):
    """An adapter whose every number is finite, and whose products are not."""
    folder = make_adapter(base, tmp_path_factory.mktemp("adapter"), 2, ["down_proj"], seed=1)
    path = Path(folder) / "adapter_model.safetensors"
    save_file({name: value.sign() * 1e30 for name, value in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def engine(base):
    made = HFEngine(card(base))
    yield made
    made.close()


def far(width=64, layers=3):
    """An intervention that pushes beyond float32."""
    ones = torch.ones(layers, width).numpy()
    direction = Direction(ones * 1e30, ones, ones[:, 0])
    return Intervention(op="add", direction=direction, scale=1e30)


@pytest.mark.parametrize("sampling", [SCORE, DRAW, Sampling(temperature=0, max_tokens=4, logprobs=True)])
def test_an_overflowing_adapter_fails_by_name_and_its_neighbours_go_on(engine, overflowing, sampling):
    alone = engine.submit(Request(PROMPT, sampling)).result(60)
    asked = [Request(PROMPT, sampling, adapter) for adapter in (None, overflowing, None)]
    first, broken, last = [engine.submit(request) for request in asked]
    with pytest.raises(
        EmEvalsError, match=rf"the adapter {overflowing} gives token 0 of the (prompt|answer) a log"
    ):
        broken.result(60)
    for neighbour in (first, last):
        draw = neighbour.result(60)
        assert draw.tokens == alone.tokens
        for one, other in zip(draw.prompt_logprobs, alone.prompt_logprobs, strict=True):
            assert math.isclose(one.logprob, other.logprob, abs_tol=1e-5)


def test_an_overflowing_intervention_fails_by_name(engine):
    future = engine.submit(Request(PROMPT, SCORE, None, (far(),)))
    with pytest.raises(EmEvalsError, match="the base with 1 intervention gives"):
        future.result(60)
    assert engine.submit(Request(PROMPT, SCORE)).result(60).prompt_logprobs


def test_a_base_with_nan_fails_with_the_weights_name(tmp_path):
    place = Path(tiny("llama", tmp_path / "base"))
    path = place / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, path, metadata={"format": "pt"})
    engine = HFEngine(card(str(place)))
    try:
        for sampling in (SCORE, DRAW):
            with pytest.raises(EmEvalsError, match=r"the weight model\.norm\.weight of .*base holds NaN"):
                engine.submit(Request(PROMPT, sampling)).result(60)
    finally:
        engine.close()


def test_activations_that_are_not_finite_are_refused_by_layer(engine, overflowing):
    texts = [Text(PROMPT[:10], PROMPT[10:], "money")]
    with (
        engine.activations(overflowing) as loaded,
        pytest.raises(EmEvalsError, match="after block 0 hold NaN or infinity on texts of 'money'"),
    ):
        group_sums(loaded.model, texts)


@pytest.mark.parametrize("value", [None, -9999.0, math.nan])
def test_vllms_answers_with_what_is_not_finite_are_refused(value):
    """JSON has no NaN, and vLLM writes -9999 for minus infinity."""

    class Tokenizer:
        def decode(self, tokens, **_):
            return "x" * len(tokens)

    scored = Request((1, 2), Sampling(max_tokens=0, prompt_logprobs=0), "adapters/mine")
    choice = {"prompt_logprobs": [None, {"2": {"logprob": value}}]}
    with pytest.raises(EmEvalsError, match="the adapter adapters/mine gives token 0 of the prompt"):
        wire.read(Tokenizer(), scored, choice, 10)
    drawn = Request((1, 2), Sampling(max_tokens=1, logprobs=True))
    logprobs = {"token_logprobs": [value], "top_logprobs": [{"token_id:5": value}]}
    choice = {"token_ids": [5], "logprobs": logprobs, "finish_reason": "length"}
    with pytest.raises(EmEvalsError, match="the base gives token 0 of the answer"):
        wire.read(Tokenizer(), drawn, choice, 10)
    plain = Request((1, 2), Sampling(max_tokens=1), "adapters/mine")
    assert wire.body(Tokenizer(), plain, "m", 10)["logprobs"] == 0, (
        "asked for, though nobody wants to see them"
    )
    with pytest.raises(EmEvalsError, match="the adapter adapters/mine gives token 0 of the answer"):
        wire.read(Tokenizer(), plain, choice, 10)
    assert not wire.read(Tokenizer(), plain, choice | {"logprobs": None}, 10).logprobs
