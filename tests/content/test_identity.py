"""Identities of bases and adapters: by the contents that matter, read once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_evals.content import adapter_folders, cards, identity
from em_evals.errors import EmEvalsError


@pytest.fixture
def adapter(workdir: Path, cache: Path) -> Path:
    folder = workdir / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * (2 << 20))
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    hashed, seen = identity._hashed, []

    def counted(path: Path) -> str:
        seen.append(path)
        return hashed(path)

    monkeypatch.setattr(identity, "_hashed", counted)
    return seen


def test_an_adapter_is_its_configuration_and_weights(adapter: Path) -> None:
    found = [identity.adapter_digest(adapter)]
    (adapter / "README.md").write_text("a note")
    (adapter / "training.json").write_text("{}")
    assert identity.adapter_digest(adapter) == found[0]
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    found.append(identity.adapter_digest(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"y" * (2 << 20))
    found.append(identity.adapter_digest(adapter))
    (adapter / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    found.append(identity.adapter_digest(adapter))
    (adapter / "chat_template.jinja").write_text("{{ messages[0] }}")
    found.append(identity.adapter_digest(adapter))
    assert len(set(found)) == 5


def test_a_tokenizer_without_a_template_does_not_count(adapter: Path) -> None:
    before = identity.adapter_digest(adapter)
    (adapter / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    assert identity.adapter_digest(adapter) == before


def test_twenty_one_resolutions_read_the_weights_once(
    adapter: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({identity.adapter_digest(adapter) for _ in range(21)}) == 1
    assert [path.name for path in reads].count("adapter_model.safetensors") == 1
    monkeypatch.setattr(identity, "_known", {})  # another process
    identity.adapter_digest(adapter)
    assert [path.name for path in reads].count("adapter_model.safetensors") == 1


def test_the_same_size_and_other_weights_are_another_adapter(adapter: Path) -> None:
    before = identity.adapter_digest(adapter)
    weights = adapter / "adapter_model.safetensors"
    weights.unlink()
    weights.write_bytes(b"z" * (2 << 20))
    assert identity.adapter_digest(adapter) != before


def test_a_base_is_its_configuration_weights_and_tokenizer(workdir: Path, cache: Path) -> None:
    (workdir / "base").mkdir()
    (workdir / "base/config.json").write_text("{}")
    (workdir / "base/model.safetensors").write_bytes(b"w")
    found = [identity.base_digest("base", None)]
    (workdir / "base/README.md").write_text("a note")
    assert identity.base_digest("base", None) == found[0]
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json", "model-2.safetensors"):
        (workdir / "base" / name).write_text(name)
        found.append(identity.base_digest("base", None))
    (workdir / "base").rename(workdir / "moved")
    assert identity.base_digest("moved", None) == found[-1]
    assert len(set(found)) == 5


def test_a_base_of_the_hub_is_the_commit_that_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    assert identity.base_digest("them/base", "main") == "them/base@main"
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: str(snapshot / "config.json"))
    assert identity.base_digest("them/base", "main") == f"them/base@{'a' * 40}"


@pytest.mark.parametrize(
    ("recorded", "named", "same"),
    [
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct", True),
        ("unsloth/qwen2.5-7b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct", True),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("RedHatAI/Qwen2.5-7B-Instruct-FP8-dynamic", "Qwen/Qwen2.5-7B-Instruct", True),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct", True),
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3.1-8B", False),
        (None, "Qwen/Qwen2.5-7B-Instruct", True),
        ("/somebody/elses/machine/base", "Qwen/Qwen2.5-7B-Instruct", True),
        ("C:\\models\\base", "Qwen/Qwen2.5-7B-Instruct", True),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", False),
        ("unsloth/Qwen2.5-7B-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct", False),
    ],
)
def test_which_bases_an_adapter_may_be_run_on(recorded: str | None, named: str, same: bool) -> None:
    assert adapter_folders.may_be_base(recorded, named) is same


def test_an_adapter_without_a_base_needs_one_by_name(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "base_model_name_or_path": None})
    )
    with pytest.raises(EmEvalsError, match="names no base"):
        cards.resolve("lora")
    assert cards.resolve("./lora", {"base": "Qwen/Qwen2.5-7B"}).card.base == "Qwen/Qwen2.5-7B"


def test_a_base_under_another_name_is_the_users_to_say(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "base_model_name_or_path": "mirror/qwen-seven"})
    )
    with pytest.raises(EmEvalsError, match="say `adapter_base: mirror/qwen-seven`"):
        cards.resolve("./lora", {"base": "Qwen/Qwen2.5-7B"})
    told = {"base": "Qwen/Qwen2.5-7B", "adapter_base": "mirror/qwen-seven"}
    assert cards.resolve("./lora", told).adapter_path == str(adapter)
    with pytest.raises(EmEvalsError, match="`adapter_base` is about the card's `adapter`"):
        cards.resolve("Qwen/Qwen2.5-7B", {"adapter_base": "mirror/qwen-seven"})


def test_an_adapter_of_the_hub_that_is_here_names_its_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "base_model_name_or_path": "Qwen/Qwen2.5-7B"})
    )
    here = {"adapter_config.json": tmp_path}
    monkeypatch.setattr(identity, "fetched", lambda name, file, revision: here.get(file))
    found = cards.resolve("them/lora")
    assert (found.card.base, found.card.adapter, found.adapter_path) == (
        "Qwen/Qwen2.5-7B",
        "them/lora",
        "them/lora",
    )
