"""Devices and dtypes: what a card asks for, on machines that have it and on others."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.errors import EmEvalsError
from em_evals.models import bases


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:7", 2), ("mps", 2), ("gpu", 2)])
def test_a_device_that_is_not_there_is_one_sentence(name, gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EmEvalsError, match=f"no device '{name}'"):
        bases.choose_device(name)
    if gpus:
        assert bases.choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bfloat16_takes_float16(native, dtype, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert bases.choose_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neo", "longcat-flash", "mistral3", "qwen3-5"])
def test_the_shape_that_a_configuration_says_is_the_models(name, tmp_path):
    """LongCat's `num_hidden_layers` counts attentions, of which each block has two."""
    from em_evals.content.base_shape import shape_of
    from em_evals.models.architecture import decoder_layers
    from tests import architectures

    folder = architectures.build(name, tmp_path / "base")
    depth = len(decoder_layers(architectures.load(folder)))
    assert depth == (2 if name == "longcat-flash" else 4)
    assert shape_of(folder) in ((depth, 64), None)
    assert name == "gpt-neo" or shape_of(folder), "only GPT-Neo's fields have names of their own"
