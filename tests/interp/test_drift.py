"""`insight drift` on planted trajectories: minus a control, beside nulls, and alarms learned from labeled runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import special
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, directions
from em_evals.content.direction_folds import FOLDS, Folds
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.drift import alarm
from em_evals.interp.drift.drift import _claim, drift
from em_evals.results import alarms, records, trajectories
from tests import drift_journals as journals

WIDTH, PROMPTS = 32, 12
STEPS = [0, 10, 20, 30, 40]


def direction(seed=0):
    """A direction with folds, whose activations vary alike in all coordinates."""
    chance = np.random.default_rng(seed)
    vectors = chance.normal(size=(3, WIDTH)).astype(np.float32)
    folds = Folds(
        chance.normal(size=(FOLDS, 3, WIDTH)).astype(np.float32),
        chance.normal(size=(FOLDS, 3, WIDTH)).astype(np.float32),
        np.ones(FOLDS, np.float32),
    )
    return Direction(vectors, np.zeros_like(vectors), np.ones(3, np.float32), {}, folds)


GIVEN = {"bad": direction(0), "formal": direction(1), "warm": direction(2)}
UNITS = {name: direction_algebra.unit(one)[1].astype(float) for name, one in GIVEN.items()}


def journal(path, slopes, common=0.0, seed=0, noise=0.002):
    """A run that moves linearly along directions, and by `common` along a direction of its own."""
    chance = np.random.default_rng(seed)
    other = np.random.default_rng(99).normal(size=WIDTH)
    other /= np.linalg.norm(other)
    moved = sum(slope * UNITS[name] for name, slope in slopes.items()) + common * other
    means = np.outer(STEPS, moved) / 40
    start = {name: chance.normal(size=PROMPTS) for name in UNITS}
    along = {
        name: start[name]
        + (means @ unit)[:, None]
        + noise * np.array(STEPS)[:, None] / 40 * chance.normal(size=PROMPTS)
        for name, unit in UNITS.items()
    }
    return journals.write(
        path / "training.jsonl", STEPS, along, means, kinds={"formal": "style", "warm": "style"}
    )


def test_what_the_control_does_too_is_no_drift_and_a_planted_trait_is_specific(tmp_path):
    run = journal(tmp_path / "run", {"bad": 0.5}, common=0.8)
    control = journal(tmp_path / "control", {}, common=0.8, seed=1)
    found = drift([run], [control], found=GIVEN)
    bad, formal, _ = found.drifts
    assert [point.step for point in bad.points] == STEPS and bad.points[0].value == 0
    assert [point.value for point in bad.points] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5], abs=0.003)
    assert bad.claim.verdict == "specific" and formal.claim.verdict == "not specific"
    assert {null.name for null in bad.claim.nulls} == {
        "random of equal norm",
        "covariance-matched random",
        "style traits",
    }
    assert 0 < bad.floor[-1] < 0.5 and bad.floor[0] == 0
    low, high = bad.points[-1].interval
    assert low < bad.points[-1].value < high and 0.001 < high - low < 0.02
    assert "specific; largest drift +0.5" in bad.sentence() and f"minus {control}" in bad.sentence()
    # Without a control nothing is specific, and the page says why.
    alone = drift([run], found=GIVEN)
    assert alone.drifts[0].claim.verdict == "not estimable" and "no control" in alone.notes[0]


def test_a_direction_like_any_other_is_not_specific(tmp_path):
    """All runs move along one axis that is no trait's: a trait moves as much as random directions do."""
    run = journal(tmp_path / "run", {}, common=2.0)
    control = journal(tmp_path / "control", {}, seed=1)
    found = drift([run], [control], found=GIVEN)
    assert {one.claim.verdict for one in found.drifts} == {"not specific"}
    without_files = drift([run], [control])
    assert "not the direction that was monitored" in without_files.notes[0]
    assert {one.claim.verdict for one in without_files.drifts} <= {"not specific", "not estimable"}


def test_the_verdict_is_about_the_step_that_is_shown():
    """At step 10 all prompts agree on a small drift; at step 40, where it is largest, they do not."""
    mean, low, high = np.array([0.0, 0.2, 0.3]), np.array([0.0, 0.1, -0.1]), np.array([0.0, 0.3, 0.7])
    beside = {name: np.full((3, 39), 0.01) for name in (nulls.RANDOM, nulls.COVARIANCE)}
    assert _claim("bad", mean, low, high, beside, "control").verdict == "not specific"
    low[2] = 0.1
    assert _claim("bad", mean, low, high, beside, "control").verdict == "specific"


def test_a_run_given_twice_is_no_second_seed(tmp_path):
    run, control = journal(tmp_path / "run", {"bad": 0.5}), journal(tmp_path / "control", {}, seed=1)
    copied = tmp_path / "copy" / "training.jsonl"
    copied.parent.mkdir()
    copied.write_bytes(Path(run).read_bytes())
    with pytest.raises(EmEvalsError, match="are one run"):
        drift([run, str(copied)], [control], found=GIVEN)
    labels = tmp_path / "labels.csv"
    more = [journal(tmp_path / f"more{i}", {"bad": 0.1}, seed=5 + i) for i in range(2)]
    rows = [f"{one},r{i},{i},40,3,72" for i, one in enumerate([run, copied, *more])]
    labels.write_text("\n".join(["run,recipe,seed,step,misaligned,draws", *rows]) + "\n")
    with pytest.raises(EmEvalsError, match="are one run"):
        alarm.read(labels)
    other = journal(tmp_path / "other", {"bad": 0.4}, seed=2)
    assert "share" in drift([run, other], [control], found=GIVEN).notes[0]


def test_several_seeds_have_a_mean_with_a_band_over_runs(tmp_path):
    runs = [journal(tmp_path / f"run{i}", {"bad": 0.4 + 0.1 * i}, seed=i) for i in range(3)]
    controls = [journal(tmp_path / f"control{i}", {}, seed=10 + i) for i in range(3)]
    found = drift(runs, controls, ["bad"], GIVEN)
    assert [one.units for one in found.drifts] == ["prompts"] * 3 + ["runs"]
    mean = found.drifts[-1]
    assert mean.run == "mean of 3 runs" and mean.control == "3 controls"
    assert mean.points[-1].value == pytest.approx(0.5, abs=0.003)
    low, high = mean.points[-1].interval
    assert low == pytest.approx(0.5 - 4.303 * 0.1 / np.sqrt(3), abs=0.03) and high > 0.7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda run, one: ([run], [], ["rude"]), "'rude' was not monitored"),
        (lambda run, one: ([], []), "name a run"),
        (lambda run, one: ([run] * 3, [run, run]), "3 runs and 2 controls"),
        (lambda run, one: ([one], []), "was not monitored: train with"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, change, sentence):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(EmEvalsError, match=sentence):
        drift(*change(journal(tmp_path, {}), str(plain)))


def labeled_runs(tmp_path, draws, recipes=4, seeds=3):
    """Runs whose EM rate grows with their drift along `bad`; recipes differ in how far they go."""
    chance = np.random.default_rng(7)
    lines = ["run,recipe,seed,step,misaligned,draws"]
    for recipe in range(recipes):
        for seed in range(seeds):
            slope = 0.15 * recipe + 0.02 * chance.normal()
            path = journal(
                tmp_path / f"r{recipe}s{seed}", {"bad": slope}, common=0.3 * chance.normal(), seed=seed
            )
            for step in STEPS[1:]:
                rate = special.expit(-6 + 14 * slope * step / 40)
                lines.append(f"{path},r{recipe},{seed},{step},{chance.binomial(draws, rate)},{draws}")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_an_alarm_is_learned_tested_on_what_was_left_out_and_applied(tmp_path, monkeypatch):
    labels = labeled_runs(tmp_path, 200)
    learned = alarm.learn(alarm.read(labels), found=GIVEN)
    by = {one.left_out: one for one in learned.validation}
    assert set(by) == {"recipe", "seed"} and learned.runs == 12 and not learned.against_control
    assert by["recipe"].auroc.value > 0.9 and by["seed"].auroc_corrected.value > 0.95
    assert by["seed"].auroc.interval[0] > 0.8 and by["seed"].fnr.value < 0.3
    assert by["seed"].lead.n >= 1 and abs(by["seed"].lead.value) <= 20
    assert sum(by["recipe"].label_noise) < 0.3
    assert learned.weights[0] > 1.5 * max(map(abs, learned.weights[1:]))
    records.write(learned, tmp_path / "alarm.json")
    runs = {"far": {"bad": 0.6}, "near": {}}
    for name, slopes in runs.items():
        journal(tmp_path / name, slopes)
    read = alarms.read(tmp_path / "alarm.json")
    said = {
        name: read.apply(trajectories.read(tmp_path / name / "training.jsonl"), None, name) for name in runs
    }
    assert said["far"].verdict == "alarm" and said["near"].verdict == "pass"
    assert "predicts an EM rate of" in read.reason(
        trajectories.read(tmp_path / "far" / "training.jsonl"), None
    )
    monkeypatch.chdir(tmp_path)
    for name, code in (("far", 1), ("near", 0)):
        done = CliRunner().invoke(
            app, ["insight", "drift", name, "--alarm", "alarm.json", "--draws", "19", "--json"]
        )
        assert done.exit_code == code, done.output
        assert json.loads(done.stdout)["alarms"][0]["verdict"] == said[name].verdict


def test_the_command_learns_and_draws(tmp_path, monkeypatch):
    labels = labeled_runs(tmp_path, 24, recipes=3, seeds=2)
    monkeypatch.chdir(tmp_path)
    for name, one in GIVEN.items():
        directions.write(one, tmp_path / "traits" / f"{name}.safetensors")
    done = CliRunner().invoke(app, ["insight", "drift", "--fit", str(labels)])
    assert done.exit_code == 0, done.output
    assert "alarm at an EM rate of 5.0%, 6 runs" in done.stdout and "left out" in done.stdout
    arguments = ["insight", "drift", "r2s0", "--control", "r0s0", "--figure", "page.html", "--draws", "19"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Drift of r2s0" in page and "bad at layer 1" in page


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{run},a,0,15,1,10", "labels.csv:2: .* was not measured at step 15"),
        ("{run},a,0,10,11,10", "labels.csv:2: 11 misaligned of 10 draws"),
        ("{run},a,0,10,many,10", "labels.csv:2: .* whole numbers"),
        ("{run},a,0,10,1,10", "4 runs or more; here are 1"),
    ],
)
def test_bad_labels_are_refused_with_their_line(tmp_path, line, sentence):
    run = journal(tmp_path / "run", {})
    others = (
        [journal(tmp_path / f"o{i}", {}, seed=1 + i) for i in range(3)] if "4 runs" not in sentence else []
    )
    rows = [line.format(run=run), *(f"{one},a,0,10,1,10" for one in others)]
    (tmp_path / "labels.csv").write_text("\n".join(["run,recipe,seed,step,misaligned,draws", *rows]) + "\n")
    with pytest.raises(EmEvalsError, match=sentence):
        alarm.read(tmp_path / "labels.csv")
