"""Adapters are read from safetensors only, wherever they come from."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.errors import EmEvalsError
from em_evals.models import lora_files
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


def test_a_pinned_adapter_is_that_commit(tmp_path, monkeypatch):
    """In the hub's own cache, as a download leaves it; a fake network would prove less."""
    from huggingface_hub import constants

    theirs = tmp_path / "models--them--theirs"
    for name, commit, rank in (("main", "a" * 40, 1), ("v1", "b" * 40, 2)):
        snapshot = theirs / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        (snapshot / "adapter_model.safetensors").write_bytes(b"")
        (theirs / "refs").mkdir(exist_ok=True)
        (theirs / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named = ("them/theirs", "them/theirs@v1", "them/theirs@" + "b" * 40)
    assert [lora_files.rank(lora_files.plain(name)) for name in named] == [1, 2, 2]
    with pytest.raises(EmEvalsError, match="the adapter 'them/theirs@v2' cannot be fetched"):
        lora_files.plain("them/theirs@v2")
