"""Which layouts of a batch the table of families allows, and what is done where it allows none."""

from __future__ import annotations

import json
from concurrent.futures import wait

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoConfig

from em_evals.content.cards import ResolvedCard
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.hf.loaded import loaded
from em_evals.engines.pool import reserve
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import group_sums
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.models import bases, families
from em_evals.models.families import Layout, layout
from em_evals.workflows.verify import verify
from tests import architectures
from tests.architectures import CATALOGUE
from tests.tiny_models import card, make_adapter

GREEDY = Sampling(temperature=0, max_tokens=8, logprobs=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", Layout(rows=True, share=True, pack=True)),
        ("mistral", Layout(rows=True, share=True)),
        ("mistral-window", Layout(rows=True)),
        ("phi3-window", Layout(rows=True)),
        ("mixtral-window", Layout(rows=True)),
        ("starcoder2-window", Layout(rows=True)),
        ("qwen2-window", Layout(rows=True)),
        ("gemma3", Layout(rows=True)),
        ("qwen3-5", Layout(rows=True)),
        ("granite4-dense", Layout(rows=True)),
        ("phi4-mini", Layout(rows=True, border=24)),
        ("llama4-text", Layout(rows=True, border=7, mixed=False)),
        ("mamba", Layout()),
        ("llama-dynamic-ntk", Layout(rows=True, share=True, pack=True, limit=24)),
    ],
)
def test_what_a_configuration_allows(name: str, expected: Layout) -> None:
    assert layout(CATALOGUE[name]()) == expected


def test_a_window_in_one_block_forbids_sharing() -> None:
    text = CATALOGUE["qwen3"]()
    text.layer_types = ["full_attention"] * (text.num_hidden_layers - 1) + ["sliding_attention"]
    assert not layout(text).share and not layout(text).pack


def test_lengths_on_two_sides_of_a_border_share_no_batch() -> None:
    allowed = Layout(rows=True, border=24)
    assert [allowed.side(length) for length in (1, 24, 25)] == [False, False, True]
    assert not allowed.alone(25) and Layout(rows=True, border=7, mixed=False).alone(8)


@pytest.fixture
def draws(tmp_path):
    """What an engine draws from a tiny base, each draw compared with forward passes over the whole text."""

    def made(name: str, prompts: list[tuple[int, ...]], **changes: object) -> HFEngine:
        folder = architectures.build(name, tmp_path / name)
        if changes:
            file = tmp_path / name / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        engine = HFEngine(card(folder))
        try:
            with engine._wake:
                futures = [engine.submit(Request(prompt, GREEDY)) for prompt in prompts]
            wait(futures)
            with bases.LOADING:
                plain = architectures.load(folder)
            for prompt, future in zip(prompts, futures, strict=True):
                said = list(prompt)
                for entry in future.result().logprobs:
                    wanted = architectures.logits(plain, said)[-1].log_softmax(-1)
                    assert entry.logprob == pytest.approx(float(wanted.max()), abs=1e-4)
                    said.append(entry.token)
                assert len(said) > len(prompt), "a draw without tokens compares nothing"
        finally:
            engine.close()
        return engine

    return made


PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 17, 23, 40)]


def test_rows_that_cross_the_border_of_a_rope_are_read_again(draws) -> None:
    draws("phi4-mini", PROMPTS)


def test_a_model_that_is_unknown_is_computed_one_row_at_a_time(
    draws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(families.FAMILIES, "qwen3_5_text")
    draws("qwen3-5-text", PROMPTS)


def test_time_steps_are_clamped_in_single_steps_as_in_a_whole_text(draws) -> None:
    draws("nemotron-h", PROMPTS, time_step_min=0.4)


def test_a_cache_that_changes_what_an_unknown_model_says_is_not_used(tmp_path, monkeypatch) -> None:
    monkeypatch.delitem(families.FAMILIES, "llama")
    folder = architectures.build("llama", tmp_path / "llama")
    with bases.LOADING:
        model = architectures.load(folder)
    assert loaded(model, architectures.tokenizer(), 64).caches
    attention = model.model.layers[0].self_attn
    forward = attention.forward
    without = dict.fromkeys(("past_key_values", "cache"))
    monkeypatch.setattr(attention, "forward", lambda *given, **named: forward(*given, **named | without))
    assert not loaded(model, architectures.tokenizer(), 64).caches


def test_a_base_without_all_of_its_tensors_is_refused(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = architectures.build("qwen3", tmp_path / "qwen3")
    file = tmp_path / "qwen3" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(EmEvalsError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        bases.load_model(card(folder))


def test_what_generates_no_text_is_refused_by_its_configuration(tmp_path) -> None:
    AutoConfig.for_model("clip").save_pretrained(tmp_path)
    with pytest.raises(EmEvalsError, match="'clip', for which transformers has no class that generates text"):
        bases.check(card(str(tmp_path)))


def test_an_attention_that_leaves_out_a_soft_cap_is_refused(tmp_path) -> None:
    folder = architectures.build("gemma2", tmp_path / "gemma2")
    assert bases.load_model(card(folder)).config._attn_implementation == "eager"
    with pytest.raises(EmEvalsError, match="leaves out its soft cap; say `eager`"):
        bases.check(card(folder, attn_implementation="sdpa"))


def test_an_adapter_of_another_depth_is_refused_before_weights_are_loaded(tmp_path, monkeypatch) -> None:
    base = architectures.build("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", 2, ["down_proj"], seed=1)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2}))
    monkeypatch.setattr(bases, "load_model", lambda card: pytest.fail("weights were loaded"))
    organism = ResolvedCard("organism", card(base), None, adapter)
    for use in (reserve, verify):
        with pytest.raises(EmEvalsError, match=r"layers\.2\.mlp\.down_proj"):
            use(organism)


@pytest.mark.parametrize(
    ("name", "length", "sentence"),
    [
        ("llama-dynamic-ntk", 40, "rope depends on what was read before"),
        ("gemma3n-text", 12, "streams at once"),
    ],
)
def test_texts_that_cannot_be_read_as_if_alone_are_refused(name, length, sentence, tmp_path) -> None:
    with bases.LOADING:
        model = architectures.load(architectures.build(name, tmp_path / "base"))
    text = Text(tuple(range(5, 5 + length)), (7, 8, 9), "one")
    with pytest.raises(EmEvalsError, match=sentence):
        group_sums(model, [text])
