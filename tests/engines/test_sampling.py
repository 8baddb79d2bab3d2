"""Inverse-transform sampling draws from the distribution it should, row by row."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.engines.hf import sampling
from em_evals.engines.hf.sampling import UniformStream, token_logprobs
from em_evals.engines.hf.sampling import choose as choose_and_check
from em_evals.engines.protocol import Sampling
from em_evals.errors import EmEvalsError


def choose(*given):
    tokens, finite = choose_and_check(*given)
    assert finite.all()
    return tokens


def test_a_row_with_nan_or_infinity_is_not_finite_and_its_neighbours_are():
    rows = torch.zeros(4, 600)
    rows[1, 7], rows[2, 7] = math.nan, math.inf
    rows[3, :7] = -math.inf  # a masked vocabulary is a distribution
    for one in (Sampling(temperature=0), Sampling(temperature=1), Sampling(temperature=1, top_p=0.5)):
        tokens, finite = choose_and_check(rows, [one] * 4, [0.5] * 4)
        assert finite.tolist() == [True, False, False, True] and len(tokens) == 4


def frequencies(logits, sampling, draws=20_000):
    stream = UniformStream(1)
    rows = logits.expand(draws, -1)
    tokens = choose(rows, [sampling] * draws, [stream.next() for _ in range(draws)])
    return torch.bincount(tokens, minlength=logits.shape[-1]) / draws


def test_all_tokens_appear_as_often_as_their_probability():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(logits / 0.7, -1)
    assert torch.allclose(frequencies(logits, Sampling(temperature=0.7)), expected, atol=0.015)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.6, None), (1.0, 3), (0.8, 5)])
def test_filters_keep_what_transformers_keeps(top_p, top_k):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 2
    kept = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    kept = TopPLogitsWarper(top_p)(None, kept) if top_p < 1 else kept
    found = frequencies(logits[0], Sampling(temperature=1, top_p=top_p, top_k=top_k))
    assert torch.allclose(found, torch.softmax(kept[0], -1), atol=0.015)


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_of_zero_or_minus_one_keeps_all_as_elsewhere(top_k):
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(1))
    every = [choose(logits, [Sampling(top_k=none)], [u]).item() for none in (top_k, None) for u in (0.3, 0.9)]
    assert every[:2] == every[2:]


@pytest.mark.parametrize(
    "settings",
    [
        *({"temperature": value} for value in (-1.0, 1e-30, math.nan, math.inf)),
        *({"top_p": value} for value in (0.0, -0.1, 1.01, math.nan)),
        *({"top_k": -2}, {"max_tokens": -1}, {"top_logprobs": -1}, {"prompt_logprobs": -1}),
        *({"max_reasoning_tokens": 0}, {"stop": ("a", "")}),
    ],
)
def test_settings_that_no_draw_has_are_refused_by_name(settings):
    """A top_p of 0, or a temperature at which logits overflow, drew an arbitrary token without a word."""
    (name,) = settings
    with pytest.raises(EmEvalsError, match=f"the sampling setting `{name}` is .*; it must be "):
        Sampling(**settings)


def test_a_wide_nucleus_is_found_beyond_the_candidates():
    logits = torch.zeros(1000)  # every token equally likely: the nucleus of 0.9 holds 900 of them
    assert (frequencies(logits, Sampling(top_p=0.9), 8_000) > 0).sum() > 850


def test_a_large_top_k_keeps_the_same_tokens_whoever_shares_the_batch():
    """top_p is a share of the mass of top_k's tokens, also where they are more than the candidates."""
    logits = torch.cat([torch.full((300,), 2.0), torch.full((300,), -2.0), torch.full((9_400,), -4.6)])
    logits -= torch.arange(10_000) * 1e-6  # no two are equal
    flat, sampling = torch.zeros(10_000), Sampling(temperature=1, top_p=0.9, top_k=600)
    uniforms = np.linspace(0, 0.9999, 400)
    alone = [int(choose(logits[None], [sampling], [u])) for u in uniforms]
    beside = [
        int(choose(torch.stack([logits, flat]), [sampling, Sampling(temperature=1, top_p=0.99)], [u, u])[0])
        for u in uniforms
    ]
    assert alone == beside
    kept = torch.softmax(logits[:600], -1)
    assert (
        max(alone) < 300 and float(kept[:276].sum()) > 0.9
    )  # 0.9 of the 600 tokens' mass ends before token 276
    assert max(alone) < 276


def test_rows_with_different_settings_share_a_batch():
    logits = torch.tensor([[0.0, 5.0, 1.0]] * 3)
    rows = [Sampling(temperature=0), Sampling(temperature=1, top_k=1), Sampling(temperature=1)]
    assert choose(logits, rows, [0.0, 0.99, 0.9999]).tolist() == [1, 1, 2]


class OnMPS(torch.Tensor):
    """A tensor that says that it lies on MPS, and refuses float64."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("mps")
        if function is torch.Tensor.cpu:
            return arguments[0].as_subclass(torch.Tensor)
        if torch.float64 in (options or {}).values() or function is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return super().__torch_function__(function, types, arguments, options or {})


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9), Sampling(temperature=0)])
def test_draws_on_mps_need_no_float64_there(sampling):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    uniforms = [0.1, 0.4, 0.6, 0.9]
    drawn = choose(logits.as_subclass(OnMPS), [sampling] * 4, uniforms)
    assert isinstance(drawn, OnMPS)
    assert drawn.tolist() == choose(logits, [sampling] * 4, uniforms).tolist()


def test_uniform_streams_depend_on_the_seed_alone():
    one, same, other = UniformStream(5), UniformStream(5), UniformStream(6)
    values = [one.next() for _ in range(4)]
    assert values == [same.next() for _ in range(4)] != [other.next() for _ in range(4)]
    assert all(0 <= value < 1 for value in values)


def test_log_probabilities_are_the_models_own():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    tokens = torch.tensor([4, 0, 19])
    found = token_logprobs(logits.bfloat16(), tokens, top=2)
    expected = logits.bfloat16().float().log_softmax(-1)
    for i, entry in enumerate(found):
        assert entry.token == tokens[i] and entry.logprob == pytest.approx(
            float(expected[i, tokens[i]]), abs=1e-5
        )
        assert [token for token, _ in entry.top] == expected[i].topk(2).indices.tolist()


def test_blocks_of_the_vocabulary_hold_the_index_that_a_cumulative_sum_finds():
    """Also at the edges of blocks, for entries of weight 0 and for a vocabulary that is no multiple of a block."""
    weights = torch.rand(200, 1000, generator=torch.Generator().manual_seed(4)).pow(8)
    weights[weights < weights.median()] = 0
    weights[:50, 256:] = 0
    whole = weights.cumsum(-1, dtype=torch.float64)
    edges = (whole[:, 255] / whole[:, -1]).clamp(max=1 - 2**-53)
    for uniforms in (torch.rand(200, dtype=torch.float64), torch.zeros(200), edges, edges * 0 + 1 - 2**-53):
        found = sampling._invert(weights, uniforms.tolist())
        assert (weights.gather(1, found[:, None]) > 0).all()
        # A float32 sum of a block may move its edge by its rounding.
        low, wanted, high = (
            torch.searchsorted(whole, (uniforms.double() + off)[:, None] * whole[:, -1:], right=True)[:, 0]
            for off in (-1e-6, 0, 1e-6)
        )
        assert ((low <= found) & (found <= high)).all()
        assert uniforms is edges or (found == wanted).float().mean() > 0.99
