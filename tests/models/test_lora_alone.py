"""An adapter that is alone on its base: merged while it is, exact as PEFT, and the base stays as it was."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.models.lora import Bank, alone
from em_evals.models.memory import available
from tests.lora_lab import adapter, base, fresh, ids, logits, with_peft

MANY = 10_000
"""Tokens that are worth merging for."""


@pytest.fixture
def merged(monkeypatch):
    """How often copies took the place of a base's weights."""
    found, applied = [], alone.Alone.applied
    monkeypatch.setattr(
        alone.Alone, "applied", lambda self: (found.append(len(self._copies)), applied(self))[1]
    )
    return found


def read(bank, model, names, tokens=MANY):
    with torch.inference_mode(), bank.rows(names, tokens):
        return logits(model, ids())


def raises(error):
    raise error


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_an_adapter_alone_is_merged_after_many_tokens_and_unmerged_for_a_second(tmp_path, merged):
    folders = [adapter("llama", tmp_path / str(i), i, target_modules="all-linear") for i in (1, 2)]
    model, expected = fresh("llama"), [logits(with_peft("llama", folder), ids()) for folder in folders]
    before, bank = copy.deepcopy(model.state_dict()), Bank(model)
    first, second = (bank.load(str(folder)) for folder in folders)
    for _ in range(2):
        close(read(bank, model, [first] * 4), expected[0])
    assert merged == [3 * 7], "not in the first pass: one pass is not worth it"
    close(read(bank, model, [None]), logits(base("llama"), ids()))
    close(read(bank, model, [first]), expected[0])
    assert len(merged) == 2, "a pass of the bare base in between changes nothing"
    mixed = read(bank, model, [first, second, None, first])
    close(mixed[:2], torch.stack([expected[0][0], expected[1][1]]))
    for name, wanted in ((first, expected[0]), (second, expected[1])):
        close(read(bank, model, [name]), wanted)
    assert len(merged) == 2
    close(read(bank, model, [second]), expected[1])
    assert len(merged) == 3
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    bank.drop(second)
    assert bank._alone._copies is None


@pytest.mark.parametrize(
    "what", ["bfloat16", "dora", "gradients", "weights read", "no memory", "memory runs out"]
)
def test_what_merging_would_change_is_not_merged(what, tmp_path, merged, monkeypatch):
    folder = adapter("llama", tmp_path, use_dora=what == "dora", target_modules=["q_proj", "down_proj"])
    model = fresh("llama").to(torch.bfloat16 if what == "bfloat16" else torch.float32)
    bank = Bank(model)
    name = bank.load(str(folder))
    if what == "no memory":
        monkeypatch.setattr(alone, "available", lambda: 1000)
    if what == "memory runs out":
        monkeypatch.setattr(alone.torch, "addmm", lambda *given, **named: raises(MemoryError()))
    for _ in range(2):
        if what == "gradients":
            with bank.rows([name], MANY):
                model(input_ids=ids())
        else:
            found = read(bank, model, [name], 0 if what == "weights read" else MANY)
    assert not merged
    if what == "dora":
        close(found, logits(with_peft("llama", folder), ids()))


def test_a_weight_that_is_read_past_its_module_is_not_merged(tmp_path, merged):
    """Mamba's mixer multiplies with `dt_proj.weight` itself, so PEFT's LoRA there has no effect; a merged one would."""
    folder = adapter("mamba", tmp_path, target_modules=["in_proj", "dt_proj"])
    model, expected = fresh("mamba"), logits(with_peft("mamba", folder), ids())
    before, bank = copy.deepcopy(model.state_dict()), Bank(model)
    name = bank.load(str(folder))
    for _ in range(3):
        close(read(bank, model, [name] * 4), expected)
    assert not merged
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_free_memory_is_that_of_the_machine_or_of_a_container_that_allows_less(tmp_path):
    assert available(tmp_path) == float("inf")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    600 kB\n")
    assert available(tmp_path) == 600 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in {"max": "max", "current": "5000", "stat": "anon 1\ninactive_file 1000\n"}.items():
        (group / f"memory.{name}").write_text(text)
    assert available(tmp_path) == 600 * 1024
    (group / "memory.max").write_text("9000\n")
    assert available(tmp_path) == 9000 - (5000 - 1000)
