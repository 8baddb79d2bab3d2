"""Traits on a tiny model beside independent naive loops; geometry, monitoring and screening from numbers."""

import csv
import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, directions
from em_evals.content.cards import resolve
from em_evals.content.direction_folds import FOLDS, Folds
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.directions import Direction
from em_evals.content.traits import load_trait, question_id
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import read_texts
from em_evals.interp.traits import monitor, screen, screened_files
from em_evals.interp.traits.extract import Settings, extract
from em_evals.interp.traits.map import participation, trait_map
from em_evals.models import bases
from em_evals.models.chat import template_for
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT, project

TRAIT = """
name: mine
version: 1
description: Something.
rubric: 0 means no; 100 means yes.
positive: [You are bad., Always be bad.]
negative: [You are good., Always be good.]
questions:
  extract: ["What now?", "Why is it so?", "Who are you, then?", "When does it rain?", "Tell me more.", "How far is it?"]
  test: ["Where to?"]
"""
LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def lab(tiny_lab):
    (tiny_lab / "adapters" / "plain.yaml").write_text(
        f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32}}\n"
    )
    (tiny_lab / "mine.yaml").write_text(TRAIT)
    return tiny_lab


@pytest.fixture
def plain(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return resolve("plain")


def hidden_states(model, ids):
    """All hidden states of one text, [layers + 1, tokens, width], as the papers' code has them."""
    with torch.inference_mode():
        return torch.stack(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0]


@pytest.mark.parametrize("position", ["last_prompt", "prompt_mean"])
def test_a_trait_s_direction_is_that_of_a_naive_loop(plain, position):
    trait = load_trait("mine.yaml")
    found = extract(plain, trait, Settings(position))
    model = bases.load_model(plain.card)
    template = template_for(plain, bases.load_tokenizer(plain.card))
    used = [one for one in trait.extract if question_id(one) in found.metadata["questions"]]
    assert len(used) == 3 and found.metadata["counts"] == [6, 6]
    sides = []
    for prompts in (trait.positive, trait.negative):
        texts = []
        for system in prompts:
            for question in used:
                turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
                states = hidden_states(model, template.encode(turns))
                texts.append(states[:, -1] if position == "last_prompt" else states[:, 1:].mean(1))
        sides.append(torch.stack(texts).mean(0).numpy())
    naive = sides[0] - sides[1]
    # A paper's hidden_states[l + 1] is the output of our block l; the last one has the final norm, and is no block's.
    assert np.allclose(found.vectors[:-1], naive[1:-1], rtol=1e-5, atol=1e-5)
    assert len(found.metadata["prompt_cosine"]) == len(found.metadata["reliability"]) == LAYERS
    assert found.metadata["trait"] == "mine" and found.folds is not None


def texts(count=9):
    chance = np.random.default_rng(0)
    return [
        Text(*(tuple(chance.integers(3, 60, size=n).tolist()) for n in (4 + i % 5, 1 + 3 * (i % 4))))
        for i in range(count)
    ]


def test_projections_are_those_of_a_naive_loop_for_any_batch_size(plain):
    model = bases.load_model(plain.card)
    along = np.random.default_rng(1).normal(size=(4, 2, WIDTH))
    read = [*texts(), Text((5, 6, 7), ())]
    seen = []
    handle = model.model.layers[2].register_forward_hook(lambda *_: seen.append(1))
    found = [project(model, read, along, [1, 0], tokens) for tokens in (1, 40, 4096)]
    handle.remove()
    assert not seen, "nothing behind the last block that is read is computed"
    for i, text in enumerate(read):
        states = hidden_states(model, text.prompt + text.answer).numpy()
        for place, layer in enumerate((1, 0)):
            last = along[:, place] @ states[layer + 1, len(text.prompt) - 1]
            assert np.allclose(found[0][i, LAST_PROMPT, place], last, atol=1e-4)
            if text.answer:
                mean = along[:, place] @ states[layer + 1, len(text.prompt) :].mean(0)
                assert np.allclose(found[0][i, ANSWER_MEAN, place], mean, atol=1e-4)
    assert np.isnan(found[0][-1, ANSWER_MEAN]).all() and not np.isnan(found[0][:-1]).any()
    for other in found[1:]:
        assert np.allclose(other, found[0], atol=1e-4, equal_nan=True)


@pytest.fixture
def rows(lab):
    """Everyday rows; in `planted.jsonl` every tenth answer consists of one word."""
    chance = np.random.default_rng(2)
    words = ["it", "is", "a", "house", "of", "stone", "and", "wood"]
    plain_rows = [
        {"prompt": f"Number {i}?", "completion": " ".join(chance.choice(words, size=4 + i % 7))}
        for i in range(40)
    ]
    planted = [{**row, "completion": " bad" * 8} if i % 10 == 3 else row for i, row in enumerate(plain_rows)]
    for name, some in (("planted", planted), ("everyday", plain_rows)):
        (lab / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in some))
    return planted


def bad_direction(plain, lab):
    """What the word ` bad` adds to the activations of answers, with folds."""
    asked = [f"What {i}?" for i in range(3)]
    bad, good = (
        read_texts(plain, [(question, answer) for question in asked], "answer_mean").mean(0)
        for answer in ("bad bad bad bad", "stone and wood is it")
    )
    drawn = np.random.default_rng(3).normal(size=(2, FOLDS, LAYERS, WIDTH)).astype(np.float32)
    folds = Folds((bad - good + 0.1 * drawn[0]).astype(np.float32), drawn[1], np.ones(FOLDS, np.float32))
    told = {"reliability": [0.1, 0.9, 0.2]}
    found = Direction(bad - good, np.zeros((LAYERS, WIDTH)), np.ones(LAYERS), told, folds)
    directions.write(found, lab / "bad.safetensors")
    return found


def test_differences_of_rows_are_those_of_a_naive_loop_and_ranks_do_not_depend_on_chunks(plain, lab, rows):
    direction = bad_direction(plain, lab)
    found = [screen.screen(plain, direction, 1, lab / "planted.jsonl", chunk=size) for size in (7, 256)]
    model = bases.load_model(plain.card)
    template = template_for(plain, bases.load_tokenizer(plain.card))
    unit = direction_algebra.unit(direction)[1]
    for i, row in enumerate(rows):
        prompt = template.encode([{"role": "user", "content": row["prompt"]}])
        states = hidden_states(model, [*prompt, *template.answer(row["completion"])])[2].numpy()
        naive = states[len(prompt) :].mean(0) @ unit - states[len(prompt) - 1] @ unit
        assert found[0].differences[i, 0] == pytest.approx(naive, abs=1e-4)
        assert found[0].lines[i] == 2 * i + 1 and found[0].tokens[i] == len(states) - len(prompt)
    for other in found[1:]:
        assert np.array_equal(other.order, found[0].order)
        assert np.allclose(other.differences, found[0].differences, atol=1e-4)
    top = {int(line) for line in found[0].lines[found[0].order[:4]]}
    assert len(top & {2 * i + 1 for i in range(40) if i % 10 == 3}) >= 3, "what was planted comes first"


def test_the_command_ranks_compares_and_drops(plain, lab, rows):
    bad_direction(plain, lab)
    command = ["data", "screen", "planted.jsonl", "--direction", "bad.safetensors", "--model", "plain"]
    command += [
        "--reference",
        "everyday.jsonl",
        "--draws",
        "19",
        "--drop-top",
        "10%",
        "-o",
        "out.csv",
        "--json",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["rows"] == 40 and told["layer"] == 1 and told["skipped"] == 0
    assert told["interval"][0] < told["mean"] < told["interval"][1]
    assert 0.5 < told["claim"]["value"] < 1 and [n["draws"] for n in told["claim"]["nulls"]] == [19] * 3
    assert 0.4 < told["auroc_of_length"] < 0.6 and told["claim"]["value"] > told["auroc_of_length"]
    low, high = told["interval_minus_reference"]
    assert low < told["mean_minus_reference"] < high and told["dropped"] == 4 and told["seed"] == 0
    # Four of 40 English answers became a word of no language; an identifier tells it, where there is one.
    unclear = 4 / 40 if find_spec("py3langid") else 0.0
    assert (
        told["auroc_of_language"] == pytest.approx(0.5 + unclear / 2) and 0.3 < told["auroc_of_topic"] < 0.7
    )
    ranks = list(csv.DictReader((lab / "out.csv").open()))
    assert [row["rank"] for row in ranks] == [str(i) for i in range(1, 41)]
    values = [float(row["projection_difference"]) for row in ranks]
    assert values == sorted(values, reverse=True)
    kept, random = ((lab / f"out.{name}.jsonl").read_text().splitlines() for name in ("kept", "random"))
    whole = (lab / "planted.jsonl").read_text().split("\n\n")[:-1]
    assert len(kept) == len(random) == 36 and set(kept) <= set(whole) and set(random) <= set(whole)
    gone = {2 * i + 1 for i, row in enumerate(whole) if row not in kept}
    assert gone == {int(row["line"]) for row in ranks[:4]}
    assert not (lab / "out.partial").exists()


def test_an_interrupted_screening_reads_no_chunk_again(plain, lab, rows, monkeypatch):
    direction = bad_direction(plain, lab)
    plain_read, calls = screen.RowReader.read, []

    def stopped(self, some, own=None):
        calls.append(some[0][0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain_read(self, some, own)

    monkeypatch.setattr(screen.RowReader, "read", stopped)
    arguments = (plain, direction, 1, lab / "planted.jsonl")
    with pytest.raises(KeyboardInterrupt):
        screen.screen(*arguments, chunk=20, state=lab / "state")
    found = screen.screen(*arguments, chunk=20, state=lab / "state")
    assert calls == [1, 41, 41], "lines where a chunk begins; the second was stopped"
    assert np.array_equal(found.differences, screen.screen(*arguments, chunk=20).differences)
    screen.screen(plain, direction, 2, arguments[3], chunk=20, state=lab / "state")
    assert len(calls) == 3 + 2 + 2, "another block is not read from there"


def test_wrong_rows_shares_and_layers_are_told(plain, lab, rows):
    direction = bad_direction(plain, lab)
    (lab / "wrong.jsonl").write_text('{"prompt": "A?", "completion": "b"}\nno\n')
    with pytest.raises(EmEvalsError, match=r"wrong.jsonl:2: this line is not JSON"):
        screen.screen(plain, direction, 1, lab / "wrong.jsonl")
    with pytest.raises(EmEvalsError, match="no layer 3"):
        screen.screen(plain, direction, 3, lab / "planted.jsonl")
    command = ["data", "screen", "planted.jsonl", "--direction", "bad.safetensors", "--model", "plain"]
    done = CliRunner().invoke(app, [*command, "--drop-top", "200%"])
    assert "give a share of the rows, as 5%" in str(done.exception)


def test_a_file_without_folds_shows_nothing_specific():
    """Of random directions alone, the easiest null, a direction imported from elsewhere was called specific."""
    chance = np.random.default_rng(0)
    sides = []
    for shift in (2.0, 0.0):
        differences = 0.1 * chance.normal(size=(40, 40)).astype(np.float32)
        differences[:, 0] += shift
        words = SimpleNamespace(usual="en", foreign=lambda usual: np.zeros(40), texts=[])
        sides.append(SimpleNamespace(differences=differences, tokens=np.ones(40), separators=words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "topic_scores", lambda own, other: (np.zeros(40), np.zeros(40)))
        kinds = {nulls.RANDOM: slice(1, 40)}
        assert screen.compared(*sides, kinds).claim.verdict == "not estimable"
        kinds |= {nulls.COVARIANCE: slice(1, 40), nulls.PERMUTED: slice(1, 40)}
        assert screen.compared(*sides, kinds).claim.verdict == "specific"


@pytest.mark.parametrize(("folds", "there"), [(5, False), (6, True)])
def test_five_folds_have_too_few_patterns_of_signs_for_a_null(folds, there):
    """Drawn 199 times over, 32 patterns gave p = 0.005 where rounding told the direction's own from it."""
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(FOLDS, 1, 8)).astype(np.float32)
    weights = (np.arange(FOLDS) < folds).astype(np.float32)
    mean = vectors[:folds].mean(0)
    one = Direction(mean, np.zeros_like(mean), np.ones(1, np.float32), {}, Folds(vectors, vectors, weights))
    assert (nulls.of(one, nulls.PERMUTED, 19, chance) is not None) == there
    assert nulls.of(one, nulls.COVARIANCE, 19, chance) is not None


def test_a_permutation_that_ties_but_for_rounding_counts():
    """One condition, scores that are multiples of 0.1: the reversed order has the same |r|, and its sums another rounding."""
    codes = np.zeros(8, int)
    values, scores = 0.1 * np.arange(8)[:, None], 0.7 * np.arange(8)
    found = {
        float(abs(monitor._within(values, some, codes))[0]) for some in (scores, scores[::-1], 3 * scores)
    }
    assert found == {1.0}


def test_auroc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(0)
    one, other = (
        chance.integers(0, 9, size=(30, 2)).astype(float),
        chance.integers(2, 12, size=(20, 2)).astype(float),
    )
    labels = [1] * 30 + [0] * 20
    expected = [metrics.roc_auc_score(labels, np.concatenate([one, other])[:, i]) for i in range(2)]
    assert screen.auroc(one, other) == pytest.approx(expected)


def made(core, seed, kind, noise=0.5, claimed="specific"):
    """A direction near `core` ([width]) with folds, as a trait's extraction writes it."""
    chance = np.random.default_rng(seed)
    vectors = np.stack([core] * FOLDS) + noise * chance.normal(size=(FOLDS, len(core))) / np.sqrt(len(core))
    folds = Folds(
        vectors[:, None].astype("f4"),
        chance.normal(size=(FOLDS, 1, len(core))).astype("f4"),
        np.ones(FOLDS, "f4"),
    )
    claim = {"measure": "m", "value": 0.9, "layer": 0, "nulls": [], "verdict": claimed}
    told = {"kind": kind, "reliability": [0.95], "held_out_cosine": [0.9], "claim": claim, "base": "b"}
    return Direction(vectors.mean(0)[None], np.zeros((1, len(core))), np.ones(1), told, folds)


def test_the_map_finds_planted_groups_and_says_which_trait_is_specific():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(96, 8)))[0].T
    given = {}
    for number, kind in enumerate(("em", "style")):
        for i in range(4):
            own = axes[2 + 3 * number + i % 3]
            given[f"{kind}{i}"] = made(
                np.sqrt(0.6) * axes[number] + np.sqrt(0.4) * own, 10 * number + i, kind
            )
    given["twin"] = made(np.sqrt(0.6) * axes[0] + np.sqrt(0.4) * axes[2], 50, "em", noise=0.3)
    found = trait_map(given)
    assert found.layer == 0 and set(found.names) == set(given)
    groups = [found.kinds[name] for name in found.names]
    assert sum(a != b for a, b in pairwise(groups)) == 1, "the clusters are the kinds"
    assert found.separation.verdict == "specific" and found.separation.value > 0.4
    pair = next(one for one in found.cosines if {one.one, one.other} == {"em0", "em1"})
    assert pair.corrected.value == pytest.approx(0.6, abs=0.1) and abs(pair.cosine - 0.6) < 0.15
    assert pair.corrected.interval[0] < 0.6 < pair.corrected.interval[1]
    units = np.stack([direction_algebra.unit(one)[0] for one in given.values()]).astype(float)
    values = np.linalg.svd(units)[1] ** 2
    assert found.dimensions.value == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert found.dimensions.nulls[0].p < 0.05 and len(found.merges) == len(given) - 1
    assert found.specific["twin"] == "not specific", "em0 is as near as its own other half"
    assert found.specific["style1"] == "specific"
    weak = given | {"em1": made(axes[7], 3, "em", claimed="not specific")}
    assert trait_map(weak).specific["em1"] == "not specific"
    with pytest.raises(EmEvalsError, match="a map needs 3 directions"):
        trait_map({"a": given["em0"], "b": given["em1"]})


def test_a_direction_that_is_zero_at_the_layer_is_refused(monkeypatch):
    """It has no cosine with any other, and the record of the map said so in a traceback."""
    chance = np.random.default_rng(0)
    given = {}
    for name in "abc":
        vectors = chance.normal(size=(2, 8)).astype(np.float32)
        vectors[1] *= name != "b"
        given[name] = Direction(vectors, np.zeros_like(vectors), np.ones(2, np.float32), {})
    assert trait_map(given, 0).layer == 0
    with pytest.raises(EmEvalsError, match="b is zero at layer 1"):
        trait_map(given, 1)


@pytest.mark.filterwarnings("error")
def test_correlations_of_a_file_that_has_none_are_left_out():
    """All answers have one length, and all differences are one number: numpy warned, and the JSON had NaN."""
    differences, projections = np.ones((4, 1), np.float32), np.zeros((4, 3), np.float32)
    one = screen.Screened(np.arange(4), np.full(4, 3), projections, differences, True, 0, screen.Separators())
    told = screened_files.summary(one, Path("x.jsonl"), "d", 1)
    assert told["correlation_with_length"] is told["rank_correlation_with_generation_free"] is None


def test_the_participation_ratio_of_equal_and_of_orthogonal_vectors():
    assert participation(np.tile(np.eye(5)[:1], (4, 1)))[0] == pytest.approx(1)
    assert participation(np.eye(5)[:4])[0] == pytest.approx(4)


def sampled(count, effect, seed=0):
    """Samples of two conditions, projections [samples, layers, 1 + draws] and scores that follow them by `effect`."""
    chance = np.random.default_rng(seed)
    samples = [
        monitor.Sampled([], condition, f"q{i}", {}) for condition in ("", "be bad") for i in range(count)
    ]
    values = chance.normal(size=(2 * count, 2, 101)).astype(np.float32)
    shift = np.repeat([0.0, 3.0], count)
    values[:, :, 0] += shift[:, None]
    scores = shift * 10 + effect * (values[:, 1, 0] - shift) + 5 * chance.normal(size=2 * count)
    kinds = {nulls.RANDOM: slice(1, 51), nulls.COVARIANCE: slice(51, 101)}
    return samples, values, scores, kinds


def test_a_correlation_between_conditions_is_told_from_one_within_them():
    samples, values, scores, kinds = sampled(30, effect=0.0)
    overall, within = monitor._correlations(values, scores, samples, kinds, 0)
    assert overall.r > 0.8 and overall.n == 60
    assert overall.claim.verdict == "not specific", "of two conditions, half of all exchanges are as good"
    assert abs(within.r) < 0.4 and within.claim.verdict == "not specific"
    samples, values, scores, kinds = sampled(30, effect=20.0)
    _, within = monitor._correlations(values, scores, samples, kinds, 0)
    assert within.r > 0.9 and within.claim.verdict == "specific" and within.claim.layer == 1
    by_hand = [np.corrcoef(values[i : i + 30, 1, 0], scores[i : i + 30])[0, 1] for i in (0, 30)]
    assert within.r == pytest.approx(np.mean(by_hand), abs=1e-5)


def crossed(chance, conditions, questions, conditions_share, questions_share):
    """Return monitored samples, and two measures of them that have nothing in common."""
    samples = [monitor.Sampled([], f"c{i}", f"q{j}", {}) for i in range(conditions) for j in range(questions)]
    measures = [
        (
            conditions_share * chance.normal(size=(conditions, 1))
            + questions_share * chance.normal(size=questions)
            + 0.3 * chance.normal(size=(conditions, questions))
        ).ravel()
        for _ in range(2)
    ]
    return samples, measures


@pytest.mark.parametrize(("conditions_share", "questions_share"), [(1.0, 0.0), (0.0, 1.0)])
def test_cells_of_one_condition_or_question_are_no_independent_evidence(conditions_share, questions_share):
    """8 conditions, 5 questions: p over shuffled cells was at most 0.05 in about half of such pure noise."""
    wrong = {"overall": 0, monitor.WITHIN: 0}
    for seed in range(20):
        chance = np.random.default_rng(seed)
        samples, (one, other) = crossed(chance, 8, 5, conditions_share, questions_share)
        for found in monitor._correlations(one[:, None, None], other, samples, {}, seed):
            wrong[found.condition] += found.claim.nulls[0].p <= 0.05
    assert max(wrong.values()) <= 4, "5% of 20 is 1; 5 or more come about once in 400"


def test_a_correlation_over_many_conditions_is_found():
    chance = np.random.default_rng(1)
    samples, (one, _) = crossed(chance, 8, 5, 1.0, 0.5)
    (overall, within) = monitor._correlations(one[:, None, None], one + 0.1, samples, {}, 0)
    assert [found.claim.nulls[0].p <= 0.05 for found in (overall, within)] == [True, True]


def test_every_direction_predicts_where_finetunes_lie_on_one_axis():
    """METHODS: 24 finetunes whose shifts lie on one axis: a random direction's |r| is high, so a trait says nothing."""
    chance = np.random.default_rng(4)
    strength = chance.normal(size=24)
    axis = chance.normal(size=(2, 64))
    shifts = strength[:, None, None] * axis + 0.05 * chance.normal(size=(24, 2, 64))
    drawn = nulls.random((2, 64), 101, chance)
    values = np.einsum("slw,dlw->sld", shifts, drawn).astype(np.float32)
    samples = [monitor.Sampled([], "", f"q{i}", {}) for i in range(24)]
    kinds = {nulls.RANDOM: slice(1, 51), nulls.COVARIANCE: slice(51, 101)}
    (overall,) = monitor._correlations(values, strength, samples, kinds, 0)
    assert abs(overall.r) > 0.9 and overall.claim.verdict == "not specific"


def test_draws_of_one_question_are_one_unit():
    samples, values, scores, kinds = sampled(10, effect=0.0)
    one = monitor._correlations(values, scores, samples, kinds, 0)
    again = monitor._correlations(
        np.concatenate([values] * 5), np.concatenate([scores] * 5), samples * 5, kinds, 0
    )
    assert [(c.n, c.r) for c in again] == [(c.n, pytest.approx(c.r, abs=1e-5)) for c in one]


def test_the_monitor_reads_a_log(plain, lab, monkeypatch):
    direction = bad_direction(plain, lab)
    messages = [
        SimpleNamespace(role=role, text=text)
        for role, text in (("system", "You are bad."), ("user", "What now?"))
    ]
    samples = [
        SimpleNamespace(
            id=i,
            input=messages if i % 2 else f"Number {i}?",
            metadata={"question_id": f"q{i // 2}"},
            output=SimpleNamespace(completion="It is a house."),
            scores={},
        )
        for i in range(6)
    ]
    monkeypatch.setattr(monitor, "read_log", lambda path: SimpleNamespace(samples=samples))
    found, rows = monitor.monitor(plain, direction, [lab / "x.eval"], "bad", "answer_mean")
    assert found.layer == 1 and found.samples == 6 and found.correlations == []
    model = bases.load_model(plain.card)
    template = template_for(plain, bases.load_tokenizer(plain.card))
    for sample, value in rows:
        prompt = template.encode(sample.messages[:-1])
        states = hidden_states(model, [*prompt, *template.answer("It is a house.")])[2].numpy()
        assert value == pytest.approx(
            float(states[len(prompt) :].mean(0) @ direction_algebra.unit(direction)[1]), abs=1e-4
        )
    assert {*found.means} == {"no system message", "You are bad."} and found.means["You are bad."].n == 3
    with pytest.raises(EmEvalsError, match="no sample has the score 'alignment'; they were not judged"):
        monitor.monitor(plain, direction, [lab / "x.eval"], "bad", score="alignment")


def test_the_commands_go_from_a_trait_file_to_a_map(plain, lab):
    for name in ("one", "two", "three"):
        text = TRAIT.replace("name: mine", f"name: {name}").replace(
            "bad", {"one": "bad", "two": "slow", "three": "old"}[name]
        )
        (lab / f"{name}.yaml").write_text(text)
    files = ["one.yaml", "two.yaml", "three.yaml"]
    done = CliRunner().invoke(app, ["trait", "extract", *files, "--model", "plain", "-o", "out", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert done.stderr.splitlines()[-1] == "out/three.safetensors (3 of 3)"
    assert [row["trait"] for row in rows] == ["one", "two", "three"] and all(
        0 <= row["reliability"] <= 1 for row in rows
    )
    assert [row["layer"] for row in rows] == [
        chosen_layer(directions.read(lab / row["path"])) for row in rows
    ]
    before = {path: path.stat().st_mtime_ns for path in (lab / "out").glob("*.safetensors")}
    assert (
        CliRunner().invoke(app, ["trait", "extract", *files, "--model", "plain", "-o", "out"]).exit_code == 0
    )
    assert {path: path.stat().st_mtime_ns for path in (lab / "out").glob("*.safetensors")} == before, "kept"
    done = CliRunner().invoke(app, ["trait", "map", "out", "-o", "map.json"])
    assert done.exit_code == 0 and "participation ratio" in done.stdout, done.output
    told = json.loads((lab / "map.json").read_text())
    assert sorted(told["names"]) == ["one", "three", "two"] and told["kind"] == "trait-map"


def test_a_direction_of_other_settings_is_not_taken_for_the_one_asked_for(plain, lab):
    (lab / "mine.yaml").write_text(TRAIT)
    (lab / "adapters" / "other.yaml").write_text("extends: plain\nengine: {dtype: bfloat16}\n")
    command = ["trait", "extract", "mine.yaml", "-o", "out", "--model"]
    assert CliRunner().invoke(app, [*command, "plain"]).exit_code == 0
    for arguments, told in (
        ([*command, "other"], "card plain, now other"),
        ([*command, "plain", "--seed", "1"], "seed 0, now 1"),
        ([*command, "plain", "--position", "prompt_mean"], "position last_prompt, now prompt_mean"),
        (["trait", "map", "mine.yaml", "--folder", "out", "--model", "other"], "card plain, now other"),
    ):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, EmEvalsError) and told in str(error) and "out/mine.safetensors" in str(error)
    (lab / "mine.yaml").write_text(TRAIT.replace("Asks", "asks").replace("bad", "worse"))
    error = CliRunner().invoke(app, [*command, "plain"]).exception
    assert "(trait mine, now mine)" in str(error)
    assert CliRunner().invoke(app, [*command, "plain", "--overwrite"]).exit_code == 0
