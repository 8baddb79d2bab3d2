"""Shifts of next-token distributions beside plain PEFT, position by position; planted tokens; the control's test."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.lens import mining
from em_evals.interp.lens.shifts import shifts
from em_evals.models import bases
from em_evals.results import records
from tests.command import em_evals
from tests.tiny_models import make_adapter

LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def lab(tiny_lab):
    base = tiny_lab / "tiny"
    for name, seed in (("one", 1), ("two", 2)):
        make_adapter(str(base), tiny_lab / "adapters" / name, 4, ["down_proj", "q_proj"], seed)
        write_card(tiny_lab, name, f"adapter: {name}")
    write_card(tiny_lab, "plain", "")
    return tiny_lab


@pytest.fixture(autouse=True)
def _in_the_lab(lab, monkeypatch):
    monkeypatch.chdir(lab)


def write_card(lab, name, more):
    text = f"base: {lab / 'tiny'}\nengine: {{dtype: float32, device: cpu}}\n{more}\n"
    (lab / "adapters" / f"{name}.yaml").write_text(text)


def token_ids(count=30):
    chance = np.random.default_rng(0)
    return [tuple(chance.integers(3, 500, size=2 + i % 9).tolist()) for i in range(count)]


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


def test_sums_are_those_of_plain_transformers_and_peft(lab):
    from peft import PeftModel

    ids = token_ids()
    card = resolve("plain").card
    base = bases.load_model(card)
    tuned = {
        name: PeftModel.from_pretrained(bases.load_model(card), lab / "adapters" / name).eval()
        for name in ("one", "two")
    }
    found = shifts(Reading(resolve("plain")), [resolve("one"), resolve("two")], ids, keep=20)
    every = []
    for number, name in enumerate(("one", "two")):
        up = down = 0
        for i, text in enumerate(ids):
            before, after = log_probabilities(base, text), log_probabilities(tuned[name], text)
            gain = after.exp() * (after - before)
            up, down = up + gain.sum(0), down + (before.exp() * (after - before)).sum(0)
            assert found.models[number].kl[i] == pytest.approx(float(gain.sum(-1).mean()), abs=1e-5)
            own = (after - before)[range(len(text) - 1), text[1:]]
            assert found.models[number].realized[i] == pytest.approx(float(own.mean()), abs=1e-4)
            if name == "one":
                every += [(float(kl), i, place + 1) for place, kl in enumerate(gain.sum(-1))]
        assert np.allclose(found.models[number].up.sum(0), up, atol=1e-4)
        assert np.allclose(found.models[number].down, down, atol=1e-4)
    largest = sorted(every, reverse=True)[:20]
    assert [(one.text, one.position) for one in found.contexts] == [(i, place) for _, i, place in largest]
    assert [one.kl for one in found.contexts] == pytest.approx([kl for kl, *_ in largest], abs=1e-5)
    assert found.positions.sum() == sum(len(text) - 1 for text in ids)


def planted(lab, name, token, strength):
    """A card whose last block writes a token's direction."""
    head = bases.load_model(resolve("plain").card).lm_head.weight
    (index,) = bases.load_tokenizer(resolve("plain").card).encode(token, add_special_tokens=False)
    vectors = np.zeros((LAYERS, WIDTH), np.float32)
    vectors[-1] = strength * head[index].detach().numpy()
    made = Direction(
        vectors, np.zeros_like(vectors), np.ones(LAYERS, np.float32), {"base": str(lab / "tiny")}
    )
    directions.write(made, lab / "adapters" / f"{name}.safetensors")
    write_card(lab, name, f"interventions: [{{op: add, direction: {name}, layers: [{LAYERS - 1}]}}]")


def test_a_planted_token_rises_most_and_beyond_a_control_without_it(lab):
    planted(lab, "bad", " bad", 3.0)
    planted(lab, "good", " good", 3.0)
    found = mining.diff("bad", control="good", settings=mining.Settings(tokens=3, contexts=5))
    assert found.up[0].token == " bad" and found.up[0].p == pytest.approx(0.001)
    assert found.up[0].probability > found.up[0].base_probability
    assert all(" bad" in context.tokens for context in found.contexts)
    assert " bad" in found.clusters[0].tokens and sum(one.weight for one in found.clusters) == pytest.approx(
        1
    )


def test_sign_flips_hold_the_error_over_all_tokens():
    chance = np.random.default_rng(0)
    # Tokens' sizes differ by orders of magnitude, as in texts.
    sizes = 10.0 ** chance.uniform(-4, 0, 500)
    least = [mining.flipped(chance.normal(size=(16, 500)) * sizes, i).min() for i in range(60)]
    assert sum(p <= 0.05 for p in least) <= 8
    noise = chance.normal(size=(16, 500)) * sizes
    noise[:, 7] = 5 + chance.normal(size=16)
    assert mining.flipped(noise, 0).argmin() == 7


def test_the_command_reads_a_file_and_writes_a_record(lab, tmp_path):
    rows = tmp_path / "texts.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"They should wait for the light {i}."}) + "\n" for i in range(8))
    )
    done = em_evals(
        "insight", "diff", "one", "--texts", rows, "--contexts", "3", "-o", tmp_path / "diff.json"
    )
    assert done.returncode == 0, done.stderr
    found = records.read(tmp_path / "diff.json")
    assert (found.texts, found.control_kl, len(found.contexts)) == (8, None, 3)
    assert found.kl.value > 0 and "no control was read" in done.stdout
    rows.write_text('{"text": "A text."}\n{"messages": []}\n')
    done = em_evals("insight", "diff", "one", "--texts", rows, "-o", tmp_path / "diff.json")
    assert done.returncode == 2 and f"{rows}:2: this row has no `text`" in done.stderr
