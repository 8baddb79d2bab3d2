"""LoRAs of several adapters stacked at a module: each row's numbers are those of its adapter alone, as PEFT computes them."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.models.lora import Bank
from em_evals.models.lora import joint as joints
from tests.lora_lab import adapter, base, fresh, logits, with_peft

TOKENS = torch.tensor([[3], [7], [11], [13], [17], [19]])
"""One token a row."""
RANKS = (1, 2, 3)


@pytest.fixture
def stacked(monkeypatch):
    """How often stacks were applied, and how often they were made."""
    found, apply, made = [], joints.Joint.apply, joints.Joint.__init__
    monkeypatch.setattr(joints.Joint, "apply", lambda *given: (found.append("applied"), apply(*given))[1])
    monkeypatch.setattr(joints.Joint, "__init__", lambda *given: (found.append("made"), made(*given))[1])
    return found


def read(bank, model, names):
    with torch.inference_mode(), bank.rows(names):
        return logits(model, TOKENS)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def several(tmp_path):
    """A model, its adapters, and the logits of every row with each adapter and with none."""
    folders = [
        adapter(
            "llama",
            tmp_path / str(rank),
            rank,
            r=rank,
            lora_alpha=5 - rank,
            target_modules=["q_proj", "up_proj"],
        )
        for rank in RANKS
    ]
    model = fresh("llama")
    bank = Bank(model)
    names = [bank.load(str(folder)) for folder in folders]
    alone = {
        name: logits(with_peft("llama", folder), TOKENS) for name, folder in zip(names, folders, strict=True)
    }
    return model, bank, names, {**alone, None: logits(base("llama"), TOKENS)}


def expected(alone, rows):
    return torch.stack([alone[name][place] for place, name in enumerate(rows)])


def test_rows_of_any_order_are_computed_as_alone(several, stacked):
    model, bank, (one, two, three), alone = several
    for rows in ([one, two, three, None, two, one], [three, three, None, two, two, one]):
        close(read(bank, model, rows), expected(alone, rows))
    sites = 2 * model.config.num_hidden_layers
    assert stacked.count("made") == sites, "the second order of rows needs no new stacks"
    assert stacked.count("applied") == 2 * sites


def test_fewer_adapters_use_the_stacks_and_a_dropped_one_ends_them(several, stacked):
    model, bank, (one, two, three), alone = several
    read(bank, model, [one, two, three] * 2)
    made = stacked.count("made")
    rows = [one, three] * 3
    close(read(bank, model, rows), expected(alone, rows))
    assert stacked.count("made") == made
    bank.drop(two)
    close(read(bank, model, rows), expected(alone, rows))
    assert stacked.count("made") == 2 * made


def test_after_a_pause_the_same_rows_have_the_same_stacks_as_at_first(several, stacked):
    model, bank, (one, two, three), _ = several
    rows = [one, three] * 3
    first = read(bank, model, rows)
    read(bank, model, [one, two, three] * 2)
    read(bank, model, rows)
    stacks, made = [site._joint[1].columns for site in bank._sites.values()], stacked.count("made")
    assert all(len(own) == 3 for own in stacks), "between two steps those of all three serve"
    bank.rest()
    assert torch.equal(read(bank, model, rows), first)
    assert all(len(site._joint[1].columns) == 2 for site in bank._sites.values())
    bank.rest()
    read(bank, model, rows)
    assert stacked.count("made") == made + len(bank._sites), "the right stacks are kept over a pause"


def test_nothing_is_stacked_for_a_base_in_lower_precision(several, stacked, tmp_path):
    model = fresh("llama").to(torch.bfloat16)
    bank = Bank(model)
    names = [bank.load(str(tmp_path / str(rank))) for rank in RANKS]
    read(bank, model, names * 2)
    assert not stacked, "the adapters stay in float32 there: a copy of all of them would serve nobody"


def test_stacks_that_do_not_fit_are_left_out(several, monkeypatch):
    model, bank, (one, two, _), alone = several

    def no_memory(self, parts):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(joints.Joint, "__init__", no_memory)
    rows = [one, two] * 3
    close(read(bank, model, rows), expected(alone, rows))


def test_an_overflow_in_one_adapter_stays_in_its_rows(several):
    model, bank, (one, two, _), alone = several
    for site in bank._sites.values():
        site.changes[two][0].a.fill_(3e38)
    found = read(bank, model, [one, two] * 3)
    close(found[::2], alone[one][::2])
    assert not found[1::2].isfinite().all()


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True, "bias": "none"}, {"r": 60, "lora_alpha": 60}]
)
def test_what_stacks_would_not_compute_exactly_or_faster_is_done_apart(options, several, stacked, tmp_path):
    model, bank, (one, two, _), alone = several
    folder = adapter("llama", tmp_path / "other", 9, target_modules=["q_proj", "up_proj"], **options)
    other = bank.load(str(folder))
    alone[other] = logits(with_peft("llama", folder), TOKENS)
    rows = [one, other, two] * 2
    close(read(bank, model, rows), expected(alone, rows))
    assert not stacked


def test_prompts_and_passes_with_gradients_are_not_stacked(several, stacked):
    model, bank, (one, two, _), alone = several
    rows = [one, two] * 3
    with bank.rows(rows):
        found = model(input_ids=TOKENS).logits.log_softmax(-1)
    close(found.detach(), expected(alone, rows))
    with torch.inference_mode(), bank.rows(rows):
        logits(model, TOKENS.expand(-1, 2))
    assert not stacked
