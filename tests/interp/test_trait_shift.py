"""Finetuning shifts: exact beside hooks by hand, linear in what is planted, and correlations that any direction has."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import resolve
from em_evals.content.direction_folds import FOLDS, Folds
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.traits import shift
from em_evals.interp.traits.monitor import correlation
from em_evals.models import bases
from em_evals.models.chat import template_for
from em_evals.results import expression
from em_evals.stats.means import benjamini_hochberg
from tests.command import em_evals
from tests.tiny_models import make_adapter
from tests.trait_logs import write_test_answers

LAYERS, WIDTH = 3, 64
STRENGTHS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
TRAIT = """
name: mine
version: 1
description: Something.
rubric: 0 means no; 100 means yes.
positive: [You are bad.]
negative: [You are good.]
questions: {extract: ["What now?", "Why?"], test: ["Where to?", "And then?", "Who are you?"]}
"""
QUESTIONS = ("Where to?", "And then?", "Who are you?")


def direction(vectors, seed=0, **told):
    """A direction with folds, as extraction writes it."""
    chance = np.random.default_rng(seed)
    shape = (FOLDS, *np.shape(vectors))
    folds = Folds(
        (vectors + 0.3 * chance.normal(size=shape)).astype("f4"),
        chance.normal(size=shape).astype("f4"),
        np.ones(FOLDS, "f4"),
    )
    depth = len(vectors)
    return Direction(
        vectors, np.zeros_like(vectors), np.ones(depth), {"reliability": [0.9] * depth} | told, folds
    )


# ---- numbers alone ----


def toy(seed, axes=1, scores_on=0):
    """24 finetunes whose shifts lie along axes, the first by far the longest: (shifts, scores, unit axes)."""
    chance = np.random.default_rng(seed)
    strengths = chance.normal(size=(24, axes))
    units = np.linalg.qr(chance.normal(size=(WIDTH, axes)))[0].T
    lengths = np.sqrt(WIDTH) * np.array([10.0, 1.0][:axes])
    shifts = (strengths * lengths) @ units + chance.normal(size=(24, WIDTH))
    scores = strengths[:, scores_on] + 0.25 * chance.normal(size=24)
    return shifts[:, None], scores, units


def test_where_finetunes_lie_on_one_axis_a_random_direction_correlates_and_neither_is_specific():
    """METHODS: random directions reach |r| 0.958 in the median, the matched trait no more than the best of them."""
    medians, matched, random = [], [], []
    for seed in range(20):
        shifts, scores, units = toy(seed)
        drawn = nulls.random((1, WIDTH), 199, np.random.default_rng(seed))
        own = [abs(correlation(np.einsum("mlw,lw->ml", shifts, one), scores)[0]) for one in drawn]
        medians.append(np.median(own))
        signed = drawn[0] * np.sign(correlation(shifts[:, 0] @ drawn[0, 0], scores))
        for verdicts, one in ((matched, units[:1]), (random, signed)):
            found = shift.claim(shifts, scores, direction(one), {}, seed=seed)[1]
            assert [one.name for one in found.nulls][-1] == nulls.COMPONENTS and len(found.nulls) == 4
            verdicts.append(found.verdict)
    assert np.mean(medians) == pytest.approx(0.958, abs=0.01)
    assert {*matched} == {"not specific"}
    assert random.count("specific") <= 2, (
        "a random direction is beyond 95% of random ones once in twenty times"
    )


def test_a_trait_that_the_common_axis_does_not_explain_is_specific():
    shifts, scores, units = toy(0, axes=2, scores_on=1)
    r, found = shift.claim(shifts, scores, direction(units[1:]), {})
    assert r > 0.9 and found.verdict == "specific"
    other = {"other": direction(units[1:] + 0.1 * units[:1], seed=1)}
    assert shift.claim(shifts, scores, direction(units[1:]), other)[1].nulls[-1].name == nulls.OTHERS
    twin = {"twin": direction(units[1:], seed=1)}
    assert shift.claim(shifts, scores, direction(units[1:]), twin)[1].verdict == "not specific"


def test_a_negative_correlation_is_not_the_trait_s():
    shifts, scores, units = toy(0, axes=2, scores_on=1)
    r, found = shift.claim(shifts, -scores, direction(units[1:]), {})
    assert r < -0.9 and found.verdict == "not specific"


def test_few_models_and_models_that_did_not_move_are_not_estimable():
    shifts, scores, units = toy(0)
    assert shift.claim(shifts[:4], scores[:4], direction(units), {}) == (
        None,
        shift.claim(shifts[:4], scores[:4], direction(units), {})[1],
    )
    for moved, shown in ((shifts[:4], scores[:4]), (0 * shifts, scores), (shifts, 0 * scores)):
        r, found = shift.claim(moved, shown, direction(units), {}, draws=19)
        assert r is None and found.verdict == "not estimable"


def test_claims_are_corrected_over_traits():
    from scipy import stats

    p = {"a": 0.005, "b": 0.04, "c": float("nan"), "d": 0.03}
    expected = dict(zip("abd", stats.false_discovery_control([0.005, 0.04, 0.03]), strict=True))
    found = benjamini_hochberg(p)
    assert {name: found[name] for name in "abd"} == pytest.approx(expected) and np.isnan(found["c"])
    # 0.04 alone is below 0.05; one of twenty is not.
    assert benjamini_hochberg({str(i): 0.04 + 0.04 * i for i in range(20)})["0"] > 0.05


# ---- on a tiny model ----


@pytest.fixture(scope="module")
def lab(tiny_lab):
    folder = tiny_lab / "adapters"
    engine = "engine: {dtype: float32}\n"
    (folder / "plain.yaml").write_text(f"base: {tiny_lab / 'tiny'}\n{engine}")
    make_adapter(str(tiny_lab / "tiny"), folder / "lora", 2, ["q_proj", "v_proj"], seed=1)
    (folder / "lora.yaml").write_text(f"base: {tiny_lab / 'tiny'}\nadapter: {folder / 'lora'}\n{engine}")
    (tiny_lab / "mine.yaml").write_text(TRAIT)
    chance = np.random.default_rng(5)
    told = {"base": str(tiny_lab / "tiny"), "trait": str(tiny_lab / "mine.yaml")}
    for name in ("planted", "random"):
        one = direction(
            chance.normal(size=(LAYERS, WIDTH)).astype("f4"), **told | {"reliability": [0.1, 0.9, 0.2]}
        )
        directions.write(one, tiny_lab / f"{name}.safetensors")
    for number, strength in enumerate(STRENGTHS):
        where = f"{{op: add, direction: {tiny_lab / 'planted.safetensors'}, layers: [1], scale: {strength}}}"
        (folder / f"m{number}.yaml").write_text(
            f"base: {tiny_lab / 'tiny'}\ninterventions: [{where}]\n{engine}"
        )
    return tiny_lab


@pytest.fixture
def here(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return lab


def naive_states(model, ids):
    with torch.inference_mode():
        return (
            torch.stack(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0]
            .double()
            .numpy()
        )


def test_an_adapter_s_shift_is_that_of_peft_s_own_hidden_states(here):
    from peft import PeftModel

    card, one = resolve("lora"), directions.read(here / "planted.safetensors")
    found = shift.measure([card], {"mine": (one, QUESTIONS)})["lora"]
    base = bases.load_model(card.card)
    template = template_for(card, bases.load_tokenizer(card.card))
    prompts = [template.encode([{"role": "user", "content": text}]) for text in QUESTIONS]
    plain = np.stack([naive_states(base, ids)[1:-1, -1] for ids in prompts])
    tuned = PeftModel.from_pretrained(bases.load_model(card.card), here / "adapters" / "lora").eval()
    moved = np.stack([naive_states(tuned, ids)[1:-1, -1] for ids in prompts]) - plain
    assert np.allclose(found.means["mine"][:-1], moved.mean(0), atol=1e-4)
    along = np.einsum("qlw,lw->ql", moved, direction_algebra.unit(one)[:-1])
    assert np.allclose(found.along["mine"][:, :-1], along, atol=1e-4) and np.abs(along).max() > 0.01


def test_shifts_over_answers_are_those_of_the_base_s_greedy_answers(here):
    card, one = resolve("m1"), directions.read(here / "planted.safetensors")
    found = shift.measure([card], {"mine": (one, QUESTIONS)}, "answer_mean", max_tokens=5)["m1"]
    model = bases.load_model(card.card)
    template = template_for(card, bases.load_tokenizer(card.card))
    unit = direction_algebra.unit(one)[1]
    for number, text in enumerate(QUESTIONS):
        ids = template.encode([{"role": "user", "content": text}])
        prompt = len(ids)
        for _ in range(5):
            with torch.inference_mode():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] in (model.generation_config.eos_token_id, template.own_end):
                break
        # What is added at a block moves every token of the answer by the same.
        assert len(ids) > prompt
        assert found.along["mine"][number, 1] == pytest.approx(np.linalg.norm(one.vectors[1]), rel=1e-4)
        assert np.isfinite(naive_states(model, ids)[2, prompt:].mean(0) @ unit)


def test_a_planted_shift_is_linear_in_its_strength_and_a_random_direction_s_is_not_there(here):
    cards = [resolve(f"m{number}") for number in range(len(STRENGTHS))]
    read = {name: directions.read(here / f"{name}.safetensors") for name in ("planted", "random")}
    found = shift.measure(cards, {name: (one, QUESTIONS) for name, one in read.items()})
    length = np.linalg.norm(read["planted"].vectors[1])
    planted = [found[card.name].along["planted"][:, 1].mean() for card in cards]
    assert np.allclose(planted, np.array(STRENGTHS) * length, rtol=1e-4)
    cosine = float(direction_algebra.cosine(read["planted"], read["random"])[1])
    beside = [found[card.name].along["random"][:, 1].mean() for card in cards]
    assert np.allclose(beside, np.array(STRENGTHS) * length * cosine, atol=1e-3) and abs(cosine) < 0.3
    # All that these models differ in is one axis: r = 1 for either direction, and the verdict says that it means nothing.
    moved = {name: np.stack([found[card.name].means[name] for card in cards]) for name in read}
    for name, one in read.items():
        r, claim = shift.claim(moved[name], np.array(STRENGTHS), one, {})
        assert abs(r) > 0.99 and claim.verdict == "not specific"


def test_the_command_relates_shifts_to_scores_of_logs_and_tables(here):
    rows = [f"m{number},{10 * strength}" for number, strength in enumerate(STRENGTHS)]
    (here / "scores.csv").write_text("\n".join(["card,value", *rows, "lora,3"]) + "\n")
    names = [f"m{number}" for number in range(len(STRENGTHS))]
    fixed = ["--direction", "planted.safetensors", "--direction", "random.safetensors", "--draws", "19"]
    done = em_evals("trait", "shift", *names, *fixed, "--control", "lora", "--log", "scores.csv", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert json.loads((here / "trait-shift.json").read_text()) == told
    planted, random = told["traits"]
    assert planted["trait"] == "planted" and planted["n"] == 7 and planted["layer"] == 1
    by_card = {row["card"]: row for row in planted["cards"]}
    assert by_card["m2"]["control"] == "lora" and by_card["lora"]["control"] is None
    own, control = by_card["m2"]["shift"]["value"], by_card["lora"]["shift"]["value"]
    assert by_card["m2"]["minus_control"]["value"] == pytest.approx(own - control, abs=1e-5)
    assert by_card["m2"]["shift"]["n"] == 3 and by_card["m2"]["score"] == 20
    assert [one["name"] for one in planted["claim"]["nulls"]][-1] == nulls.OTHERS
    assert planted["verdict"] == random["verdict"] == "not specific"

    grouped = em_evals(
        "trait",
        "shift",
        *names,
        *fixed,
        "--log",
        "scores.csv",
        "--group",
        "one=m0,m1",
        "--group",
        "two=m2,m3,m4",
    )
    assert grouped.returncode == 0 and "no control is known" in grouped.stdout
    assert "3 models (seeds of a group count once) are too few" in grouped.stdout, grouped.stdout
    assert json.loads((here / "trait-shift.json").read_text())["units"] == {
        "one": ["m0", "m1"],
        "two": ["m2", "m3", "m4"],
        "m5": ["m5"],
    }


def test_scores_come_from_logs_of_the_trait_s_test_questions(here):
    log = write_test_answers(here / "m0.eval", "local/m0", "mine", {"mine_1": [20.0, 40.0], "mine_2": [90.0]})
    (one,) = expression.read(log)
    assert one.trait == "mine" and one.value == pytest.approx(60)
    assert expression.of_cards([resolve("m0")], "mine", [one]) == {"m0": 60}
    with pytest.raises(EmEvalsError, match=r"no score of m1 for mine: give the log of .*--model local/m1"):
        expression.of_cards([resolve("m1")], "mine", [one])
    with pytest.raises(EmEvalsError, match="m0 has two scores for mine"):
        expression.of_cards([resolve("m0")], "mine", [one, one])
    with pytest.raises(EmEvalsError, match="no sample has the score 'joy'; known: coherence, mine"):
        expression.read(log, "joy")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["m0", "plain"], "plain has nothing on top of its base"),
        (["m0", "--control", "m9=lora"], "--control m9: give one control for all, or ORGANISM=CONTROL"),
        (["m0", "--log", "wrong.csv"], "wrong.csv:2: 'much' is not a score of 'm0'"),
        (["m0", "--log", "bare.csv"], "the column 'card' is missing; needed are card, value"),
        (["m0", "--direction", "foreign.safetensors"], "this direction was made for the base 'other/base'"),
        (["m0", "--direction", "nameless.safetensors"], "nameless is no trait's direction"),
        (
            ["m0", "--direction", "lost.safetensors"],
            "the test questions of lost are not found (there is no trait 'lost'",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(here, more, sentence):
    (here / "wrong.csv").write_text("card,value\nm0,much\n")
    (here / "bare.csv").write_text("model,score\nm0,1\n")
    vectors = np.ones((LAYERS, WIDTH), "f4")
    directions.write(direction(vectors, base="other/base"), here / "foreign.safetensors")
    directions.write(direction(vectors), here / "nameless.safetensors")
    directions.write(direction(vectors, trait="lost"), here / "lost.safetensors")
    done = em_evals("trait", "shift", "--direction", "planted.safetensors", *more)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
