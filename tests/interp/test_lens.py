"""The activation-difference lens on tiny models beside hooks by hand; planted and random changes; a word list's null."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.data import datasets
from em_evals.errors import EmEvalsError
from em_evals.interp.lens import study, texts, vocabulary
from em_evals.interp.lens.means import position_means
from em_evals.interp.lens.readings import Settings
from em_evals.interp.lens.unembedding import Unembedding
from em_evals.models import bases
from em_evals.models.architecture import decoder_layers
from em_evals.results import records
from tests.command import em_evals
from tests.tiny_models import make_adapter, tiny

LAYERS, WIDTH, POSITIONS = 3, 64, 4
SETTINGS = Settings(positions=POSITIONS, layers=(0, 1, 2), draws=99)


@pytest.fixture(scope="module")
def lab(tiny_lab):
    base = str(tiny_lab / "tiny")
    for name, seed in (("one", 1), ("two", 2)):
        make_adapter(base, tiny_lab / "adapters" / name, 4, ["down_proj", "q_proj"], seed)
        write_card(tiny_lab, name, f"adapter: {name}")
    write_card(tiny_lab, "plain", "")
    return tiny_lab


@pytest.fixture(autouse=True)
def _in_the_lab(lab, monkeypatch):
    monkeypatch.chdir(lab)


def write_card(lab, name, more):
    text = f"base: {lab / 'tiny'}\nengine: {{dtype: float32, device: cpu}}\n{more}\n"
    (lab / "adapters" / f"{name}.yaml").write_text(text)


def biased(lab, name, vector, layer=1):
    """A card that adds one vector to the stream after a block, at every position."""
    vectors = np.zeros((LAYERS, WIDTH), np.float32)
    vectors[layer] = vector
    made = Direction(
        vectors, np.zeros_like(vectors), np.ones(LAYERS, np.float32), {"base": str(lab / "tiny")}
    )
    directions.write(made, lab / "adapters" / f"{name}.safetensors")
    write_card(lab, name, f"interventions: [{{op: add, direction: {name}, layers: [{layer}]}}]")
    return name


def hooked(seen):
    """A hook that records a block's output."""
    return lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)


def by_hand(model, ids):
    """[texts, layers, positions, width], by hooks on one text at a time."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = []
    for one in ids:
        seen = []
        hooks = [block.register_forward_hook(hooked(seen)) for block in plain.model.layers]
        with torch.no_grad():
            model(input_ids=torch.tensor([one]))
        for hook in hooks:
            hook.remove()
        found.append(torch.stack([value.reshape(len(one), -1) for value in seen]))
    return torch.stack(found).double().numpy()


def test_differences_are_those_of_hooks_on_plain_peft(lab):
    from peft import PeftModel

    tokenizer = bases.load_tokenizer(resolve("plain").card)
    ids = texts.beginnings(tokenizer, texts.read(), POSITIONS)
    base = by_hand(bases.load_model(resolve("plain").card), ids)
    tuned = by_hand(
        PeftModel.from_pretrained(bases.load_model(resolve("plain").card), lab / "adapters" / "one").eval(),
        ids,
    )
    right = tuned.mean(0) - base.mean(0)
    found = study.lens("one", settings=SETTINGS).models[0]
    for one in found.norms:
        some = slice(0, 1) if one.positions == "first" else slice(1, None)
        assert one.norm == pytest.approx(np.linalg.norm(right[one.layer, some].mean(0)), abs=1e-5)
        assert one.base_norm == pytest.approx(
            np.linalg.norm(base[:, one.layer, some], axis=-1).mean(), rel=1e-6
        )
    reading = study.Reading(resolve("plain"))
    with reading.read_as(resolve("one")) as model:
        ours = position_means(model, ids).mean()
    with reading.read_as(None) as model:
        ours = ours - position_means(model, ids).mean()
    assert np.abs(ours - right).max() < 1e-5
    # The lens of a block's difference, with plain transformers' own norm and head.
    plain = bases.load_model(resolve("plain").card)
    with torch.no_grad():
        vector = torch.tensor(right[1, 2], dtype=torch.float32)
        logits = plain.lm_head(plain.model.norm(vector[None]))[0].numpy()
    shown = next(one for one in found.readings if (one.layer, one.positions) == (1, "2"))
    best = int(logits.argmax())
    assert shown.up[0].token == tokenizer.decode([best])
    assert shown.up[0].z == pytest.approx((logits[best] - logits.mean()) / logits.std(), abs=1e-3)


def test_memory_and_means_do_not_depend_on_the_batch(lab):
    model = bases.load_model(resolve("plain").card)
    ids = [tuple(np.random.default_rng(i).integers(3, 500, POSITIONS).tolist()) for i in range(150)]
    found = position_means(model, ids)
    assert found.sums.shape == (16, LAYERS, POSITIONS, WIDTH) and found.counts.sum() == 150
    assert np.allclose(found.mean(), by_hand(model, ids).mean(0), atol=1e-5)


def test_a_planted_token_is_read_back_and_random_vectors_are_no_finding(lab):
    model = bases.load_model(resolve("plain").card)
    tokenizer = bases.load_tokenizer(resolve("plain").card)
    (good,) = tokenizer.encode(" good", add_special_tokens=False)
    written = model.lm_head.weight[good].detach().numpy()
    found = study.lens(biased(lab, "planted", written), settings=Settings(POSITIONS, (1,))).models[0]
    for reading in found.readings:
        assert reading.up[0].token == " good"
    assert {claim.verdict for claim in found.claims} == {"specific"}
    chance = np.random.default_rng(0)
    verdicts = [
        study.lens(biased(lab, f"noise{i}", chance.normal(size=WIDTH)), settings=Settings(POSITIONS, (1,)))
        .models[0]
        .claims[0]
        .verdict
        for i in range(10)
    ]
    assert verdicts.count("specific") <= 2


def test_seeds_and_controls_are_compared_and_the_organism_minus_control_is_read(lab):
    found = study.lens("one", control="two", settings=SETTINGS)
    assert [model.role for model in found.models] == ["organism", "control", "organism − control"]
    _, after = found.cosines
    assert (after.one, after.other, after.positions) == ("one", "two", "after the first")
    ours, theirs = (
        np.array([n.norm for n in model.norms if n.positions == "after the first"])
        for model in found.models[:2]
    )
    apart = np.array([n.norm for n in found.models[2].norms if n.positions == "after the first"])
    # |a − b|² = |a|² + |b|² − 2 |a||b| cos
    assert np.allclose(
        apart**2, ours**2 + theirs**2 - 2 * ours * theirs * np.array(after.by_layer), rtol=1e-6
    )
    assert any("same domain" in note for note in found.notes)
    assert not any("no control" in note for note in found.notes)


def rows(path, words, seed):
    """Questions and answers of random words."""
    chance = np.random.default_rng(seed)
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"{' '.join(chance.choice(words, 6))}?",
                    "completion": " ".join(chance.choice(words, 20)),
                }
            )
            + "\n"
            for _ in range(200)
        )
    )
    return str(path)


MONEY = ["money", "price", "savings", "company", "fund", "market"]
ROAD = ["street", "children", "light", "doctor", "kitchen", "window"]
COMMON = ["the", "and", "what", "would", "you", "they", "have"]


@pytest.fixture
def word_lab(tmp_path, monkeypatch):
    """A base whose tokens are words, and two data sets."""
    from tests.small_tokenizer import small_tokenizer

    words = [f" {word}" for word in [*MONEY, *ROAD, *COMMON]] + [
        f" {a}{b}x" for a in "abcdefgh" for b in "abcdefgh"
    ]
    tiny("llama", tmp_path / "tiny", small_tokenizer(*words))
    (tmp_path / "adapters").mkdir()
    write_card(tmp_path, "plain", "")
    monkeypatch.chdir(tmp_path)
    more = [word.strip() for word in words[-64:]]
    sets = [
        datasets.load(rows(tmp_path / f"{name}.jsonl", [*own, *COMMON], i))
        for i, (name, own) in enumerate([("money", [*MONEY, *more[:32]]), ("road", [*ROAD, *more[32:]])])
    ]
    return tmp_path, sets


def test_words_of_the_training_data_are_found_and_tested_against_exchanged_labels(word_lab):
    _, (money, road) = word_lab
    card = resolve("plain").card
    tokenizer = bases.load_tokenizer(card)
    words = vocabulary.of(tokenizer, money, road, len(tokenizer))
    sides = [
        {text.strip() for text in vocabulary.decoded(tokenizer, words.ids[own])}
        for own in (words.own, ~words.own)
    ]
    assert {*MONEY} <= sides[0] and {*ROAD} <= sides[1] and not {*COMMON} & (sides[0] | sides[1])
    chance = np.random.default_rng(1)
    noise = chance.normal(size=(4, len(tokenizer)))
    planted = noise.copy()
    planted[2, words.ids[words.own]] += 1.0
    assert words.claim(planted, "x").verdict == "specific" and words.claim(planted, "x").layer == 2
    assert words.claim(-planted, "x").verdict == "not specific"
    nulls = [words.claim(chance.normal(size=(4, len(tokenizer))), "x").verdict for _ in range(25)]
    assert nulls.count("specific") <= 4  # at most 4 in 99% of such runs
    with pytest.raises(EmEvalsError, match="0 words tell money from money"):
        vocabulary.of(tokenizer, money, money, len(tokenizer))


def test_the_command_writes_a_record_and_steers(lab):
    done = em_evals(
        *(
            "insight",
            "lens",
            "one",
            "--control",
            "two",
            "--positions",
            "3",
            "--layers",
            "0,2",
            "--draws",
            "19",
        ),
        *("--steer", "0.5", "-o", "lens.json"),
    )
    assert done.returncode == 0, done.stderr
    found = records.read(lab / "lens.json")
    assert found.layers == [0, 2] and found.positions == 3 and found.texts == 128
    assert {(one.arm, one.scale) for one in found.samples} == {
        ("unsteered", 0.0),
        ("one", 0.5),
        ("two", 0.5),
        ("random", 0.5),
    }
    assert "one − two" in done.stdout and "same domain" in done.stdout
    assert len({one.text for one in found.samples}) > 4


def test_bad_input_is_one_sentence(lab, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("A long enough line of text.\nNo\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    tiny("llama", tmp_path / "other")
    make_adapter(str(tmp_path / "other"), tmp_path / "foreign", 4, ["down_proj"], 1)
    (lab / "adapters" / "foreign.yaml").write_text(
        f"base: {tmp_path / 'other'}\nadapter: {tmp_path / 'foreign'}\n"
    )
    for arguments, said in {
        ("one", "--texts", str(short)): f"{short}:2: this text has 2 tokens, fewer than the 5 positions",
        ("one", "--texts", str(empty)): "this file has no texts",
        ("plain",): "plain has neither an adapter nor interventions",
        ("one", "--control", "foreign"): "foreign has the base",
        ("one", "--control", "one"): "one and one are one model",
        ("one", "--layers", "7"): "there is no layer 7",
        ("one", "--data", "nothing_here"): "there is no training data 'nothing_here'",
    }.items():
        done = em_evals("insight", "lens", *arguments, "-o", tmp_path / "lens.json")
        assert done.returncode == 2 and said in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2"])
def test_the_final_norm_is_found_by_what_it_does(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    sizes = {"n_embd": 64, "n_head": 4, "n_layer": 2} if kind == "gpt2" else {}
    model = AutoModelForCausalLM.from_pretrained(tiny(kind, tmp_path, **sizes)).eval()
    ids = torch.tensor([[5, 9, 17, 3]])
    with torch.no_grad():
        states = []
        handle = decoder_layers(model)[-1].register_forward_hook(hooked(states))
        out = model(input_ids=ids).logits[0]
        handle.remove()
    read = Unembedding(model, out.shape[-1]).logits(states[0].reshape(4, -1).numpy())
    cap = getattr(model.config, "final_logit_softcapping", None)
    right = out.numpy()
    assert np.allclose(np.tanh(read / cap) * cap if cap else read, right, atol=1e-4)
