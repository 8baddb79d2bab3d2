"""Devices and dtypes: what a card asks for, on machines that have it and on others."""

import pytest

torch = pytest.importorskip("torch")

from em_evals.models import bases


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bfloat16_takes_float16(native, dtype, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert bases.choose_dtype("auto", torch.device("cuda")) == dtype
