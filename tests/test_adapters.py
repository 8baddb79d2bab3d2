"""Adapters are read from safetensors only, wherever they come from."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.errors import EmEvalsError
from em_evals.models.adapters import with_adapter


def test_pickled_weights_from_the_hub_are_never_read(tmp_path, monkeypatch):
    import huggingface_hub

    read = tmp_path / "read"

    class Trap:
        def __reduce__(self):
            return type(read).touch, (read,)

    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    torch.save(Trap(), tmp_path / "adapter_model.bin")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(EmEvalsError, match=r"them/theirs has no adapter_model\.safetensors"):
        with_adapter(torch.nn.Linear(1, 1), "them/theirs", "adapter0")
    assert not read.exists()
