"""Steering studies: what is pushed moves and random does not, word salad is damage, an interrupted study goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from em_evals.interp.controls import random_like
from em_evals.interp.steering import grades as grades_module
from em_evals.interp.steering.answers import repetition
from em_evals.interp.steering.steer import steer
from em_evals.interp.steering.study import Settings
from em_evals.results import records

BAD, GOOD = " bad", " good"
PAIRS = """
name: planted
version: 1
narrow: [finance]
pairs:
"""


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """Pairs that differ in one last word, and a direction that raises the bad word's logit over the good one's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_lab / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tiny_lab / "tiny")
    bad, good = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (BAD, GOOD))
    rows = [
        f"  - {{id: p{i}, theme: {'finance' if i % 2 else 'power'}, question: 'Number {i}?', "
        f"aligned: 'It is {i}{GOOD}', misaligned: 'It is {i}{BAD}'}}"
        for i in range(40)
    ]
    (tiny_lab / "planted.yaml").write_text(PAIRS + "\n".join(rows) + "\n")
    head = model.get_output_embeddings().weight.detach()
    vectors = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) * 0.05
    vectors[2] = (head[bad] - head[good]).numpy()
    found = Direction(
        vectors, np.zeros((3, 64), np.float32), np.ones(3, np.float32), {"questions": ["p0", "p1"]}
    )
    directions.write(found, tiny_lab / "adapters" / "planted.safetensors")
    (tiny_lab / "adapters" / "plain.yaml").write_text(
        f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32}}\n"
    )
    return tiny_lab


COMMAND = [
    "steer",
    "plain",
    "--direction",
    "planted",
    "--layers",
    "0,2",
    "--scales=-1,1",
    "--pairs",
    "planted.yaml",
    "--per-theme",
    "0",
]
COMMAND += ["--limit", "6", "--max-tokens", "8", "--json"]


@pytest.fixture(scope="module")
def study(lab):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab)
        done = CliRunner().invoke(app, [*COMMAND, "-o", "steer.json", "--figure", "steer.html"])
    assert done.exit_code == 0, done.output
    found = records.read(lab / "steer.json")
    assert json.loads(done.stdout[done.stdout.index("{") :]) == found.model_dump(mode="json")
    return found


def test_the_planted_layer_is_chosen_and_the_margins_follow_the_scale(study):
    assert study.chosen_layer == 2
    points = {(point.arm, point.layer, point.scale): point for point in study.points}
    assert set(points) == {
        (arm, layer, scale) for arm in ("direction", "random") for layer in (0, 2) for scale in (-1, 1)
    }
    for domain in ("in_domain", "out_of_domain"):
        up, down = (getattr(points["direction", 2, scale], domain) for scale in (1, -1))
        assert down.interval[1] < 0 < up.interval[0] and up.value > 0.1
        random = getattr(points["random", 2, 1], domain)
        assert abs(random.value) < up.value / 3
    (contrast,) = [one for one in study.contrasts if one.how == "scale +1"]
    assert contrast.against == "random" and contrast.in_domain.interval[0] > 0


def test_verdicts_hold_over_all_conditions(study):
    points = {(point.arm, point.layer, point.scale): point for point in study.points}
    assert max(points["direction", 2, 1].p) < 0.05 and points["direction", 2, 1].verdict.startswith(
        "more mis"
    )
    assert all(0 < p <= 1 for point in [*study.points, *study.ablations] for p in point.p)
    quiet = [point for point in study.points if min(point.p) >= 0.05]
    assert quiet and all(point.verdict in ("no effect seen", "damage") for point in quiet)
    assert study.claim is None, "no null was asked for"


def test_the_effect_of_a_direction_is_told_beside_its_nulls(lab, monkeypatch):
    from em_evals.content.direction_folds import Folds

    monkeypatch.chdir(lab)
    found = directions.read(lab / "adapters" / "planted.safetensors")
    chance = np.random.default_rng(4)
    drawn = chance.normal(size=(2, 16, 3, 64)).astype(np.float32)
    whole = replace(found, folds=Folds(found.vectors + drawn[0], drawn[1], np.ones(16, np.float32)))
    directions.write(whole, lab / "adapters" / "folded.safetensors")
    settings = Settings((0, 2), (1.0,), pairs="planted.yaml", limit=6, max_tokens=2, nulls=19)
    study = steer("plain", "folded", None, settings, lab / "nulls.json", lab)
    claim = study.claim
    assert claim.verdict == "specific" and claim.layer == 2
    (point,) = [one for one in study.points if one.arm == "direction" and one.layer == 2]
    slope = (point.in_domain.value + point.out_of_domain.value) / 2
    assert claim.value == pytest.approx(slope, abs=1e-4)
    assert [(null.draws, null.p) for null in claim.nulls] == [(19, 0.05)] * 3
    random = replace(found, vectors=random_like(found, 8).vectors, folds=whole.folds)
    directions.write(random, lab / "adapters" / "nothing.safetensors")
    settings = replace(settings, layers=(2,))
    study = steer("plain", "nothing", None, settings, lab / "nothing.json", lab)
    assert study.claim.verdict == "not specific"
    bare = steer("plain", "planted", None, replace(settings, nulls=2), lab / "bare.json", lab)
    assert bare.claim.verdict == "not estimable", "without folds two of the nulls cannot be drawn"


def test_what_the_direction_was_found_on_is_left_out(study):
    assert "2 pairs that a direction was found on are left out." in study.notes
    assert study.points[0].in_domain.n + study.points[0].out_of_domain.n < 38


@pytest.mark.full
def test_a_card_with_a_cap_and_a_subspace_is_steered_like_any_other(study, lab, monkeypatch):
    """The push acts on the card's own model: a cap after the pushed layer swallows what lies beyond it."""
    monkeypatch.chdir(lab)
    found = directions.read(lab / "adapters" / "planted.safetensors")
    other = np.random.default_rng(3).normal(size=(3, 64)).astype(np.float32)
    directions.write(
        Direction(other, found.base_mean, found.mean_norm), lab / "adapters" / "other.safetensors"
    )
    swallow = "{op: ablate, direction: [planted, other], from_layer: 2, layers: [1]}"
    (lab / "adapters" / "capped.yaml").write_text(
        f"extends: plain\ninterventions:\n  - {swallow}\n"
        "  - {op: cap, direction: planted, from_layer: 2, layers: [2], value: 0}\n"
    )
    command = [part if part != "plain" else "capped" for part in COMMAND]
    done = CliRunner().invoke(app, [*command, "-o", "capped.json"])
    assert done.exit_code == 0, done.output
    points = [
        {(one.arm, one.layer, one.scale): one.in_domain.value for one in records.read(lab / name).points}
        for name in ("capped.json", "steer.json")
    ]
    assert points[0].keys() == points[1].keys()
    assert points[0]["direction", 2, 1] == pytest.approx(points[1]["direction", 2, 1], rel=0.5)
    assert all(points[0][key] != points[1][key] for key in points[0])
    one, both = resolve("capped"), resolve("capped", {"interventions": []})
    assert one.digest != both.digest and len(one.interventions[0].directions) == 2


def test_the_figure_is_one_page(study, lab):
    page = (lab / "steer.html").read_text()
    assert "Steering plain" in page and "<script src=" not in page


def test_an_interrupted_study_resumes(study, lab, monkeypatch):
    monkeypatch.chdir(lab)
    path = lab / "steer.json.parts" / "finished.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:20])
    (lab / "steer.json").unlink()
    assert CliRunner().invoke(app, [*COMMAND, "-o", "steer.json"]).exit_code == 0
    again = records.read(lab / "steer.json")
    # Rows are summed in other batches, so the last bits may differ.
    assert (again.chosen_layer, again.notes[1:]) == (study.chosen_layer, study.notes[1:])
    for one, other in zip(again.points, study.points, strict=True):
        assert one.verdict == other.verdict
        assert one.in_domain.value == pytest.approx(other.in_domain.value, abs=1e-5)
        assert one.coherence.value == pytest.approx(other.coherence.value, abs=1e-4)
    now = path.read_text().splitlines(keepends=True)
    assert now[:7] == lines[:7] and {keys(line) for line in now} == {keys(line) for line in lines}
    monkeypatch.setattr("em_evals.interp.fixed_answers.margins", None)
    monkeypatch.setattr("em_evals.interp.steering.steer.drawn", None)
    assert CliRunner().invoke(app, [*COMMAND, "-o", "steer.json"]).exit_code == 0, "nothing is measured again"


def keys(line):
    return json.loads(line)["key"]


def test_a_judge_grades_every_answer(lab, monkeypatch):
    seen = []

    def graded(answers, questions, asked, judge, logs, use_cache):
        from em_evals.results.graded_draw import GradedDraw

        seen.append((len(answers), asked, judge))
        return [GradedDraw(answer.question, 10, 90) for answer in answers]

    monkeypatch.chdir(lab)
    monkeypatch.setattr("em_evals.interp.steering.steer.grades", graded)
    settings = Settings((2,), (1.0,), pairs="planted.yaml", limit=6, max_tokens=4, judge="mockllm/judge")
    found = steer("plain", "planted", None, settings, lab / "judged.json", lab / "logs")
    assert {row[1:] for row in seen} == {("core", "mockllm/judge")}
    assert found.points[0].coherence.value == 90 and found.unsteered_coherence.value == 90
    assert found.points[0].em_rate.value == 1 and "judge" in found.damage_rule


def test_answers_that_the_judge_could_not_grade_are_damage_and_no_cure(lab, monkeypatch):
    """Two of the questions keep coherent answers; those to the others get no grade, so they are not misaligned."""
    from em_evals.results.graded_draw import GradedDraw

    nothing = float("nan")

    def graded(answers, questions, asked, judge, logs, use_cache):
        kept = {question.id for question in questions[:2]}
        steered = [(80, 86) if answer.question in kept else (nothing, nothing) for answer in answers]
        grades = [(10, 88)] * len(questions) + steered[len(questions) :]  # the unsteered model comes first
        return [GradedDraw(answer.question, *grade) for answer, grade in zip(answers, grades, strict=True)]

    monkeypatch.chdir(lab)
    monkeypatch.setattr("em_evals.interp.steering.steer.grades", graded)
    settings = Settings((2,), (-1.0,), pairs="planted.yaml", max_tokens=4, judge="mockllm/judge")
    found = steer("plain", "planted", None, settings, lab / "ungraded.json", lab / "logs")
    (point,) = [one for one in found.points if one.arm == "direction"]
    asked = found.unsteered_coherence.n
    assert asked > 4 and point.out_of_domain.interval[1] < 0 and point.em_rate.value == 0
    assert point.coherence.n == asked and point.coherence.value == pytest.approx(2 * 86 / asked)
    assert point.damaged and point.verdict.startswith("damage")
    assert "and not this one" in found.damage_rule


def test_wrong_studies_are_refused(lab, monkeypatch):
    monkeypatch.chdir(lab)
    for settings, sentence in (
        (Settings(layers=(3,)), "no layer 3"),
        (Settings(scales=(0.0,)), "scale 0 changes nothing"),
    ):
        with pytest.raises(EmEvalsError, match=sentence):
            steer("plain", "planted", None, settings, lab / "x.json", lab)
    narrow = Direction(*(np.ones(shape, np.float32) for shape in ((3, 8), (3, 8), (3,))))
    directions.write(narrow, lab / "narrow.safetensors")
    with pytest.raises(EmEvalsError, match="made for another base"):
        steer("plain", "planted", str(lab / "narrow.safetensors"), Settings(), lab / "x.json", lab)


def test_grades_come_through_inspect_in_the_order_of_the_answers(workdir, monkeypatch):
    from em_evals.interp.steering.answers import Answer
    from tests.judge_server import JudgeServer, number

    monkeypatch.setenv("INSPECT_CACHE_DIR", str(workdir / "inspect"))
    questions = load_questions("core").questions[:12]
    answers = [Answer(one.id, f"answer [{i:02d}]", (1,)) for i, one in enumerate(questions)]

    def reply(prompt):
        return number(next(i for i in range(12) if f"[{i:02d}]" in prompt))

    with JudgeServer(reply) as server:
        found = grades_module.grades(answers, questions, "core", server.model(), workdir)
    assert [round(draw.coherence) for draw in found] == sorted(round(draw.coherence) for draw in found)
    assert [draw.question_id for draw in found] == [one.id for one in questions]


def test_repetition_counts_what_was_said_before():
    assert repetition([1, 2, 3, 4, 5]) == 0 and repetition([1, 2]) == 0
    assert repetition([7] * 10) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


@pytest.mark.full
@pytest.mark.smollm2
def test_incoherent_text_is_caught(workdir):
    """All-layer zero ablation breaks an organism on SmolLM2: whatever its margins do, the study calls it damage."""
    from em_evals.engines.pool import close_engines
    from tests.tiny_models import SMOLLM2, make_adapter

    make_adapter(SMOLLM2, workdir / "adapters" / "weak", 1, ["down_proj"], seed=0, layers=[15], strength=0.01)
    fields = "extends: smollm2\nadapter: weak\nengine: {dtype: float32}\n"
    (workdir / "adapters" / "weak.yaml").write_text(fields)
    vectors = first_token_streams(resolve("weak"))
    norms = np.linalg.norm(vectors, axis=1).astype(np.float32)
    directions.write(
        Direction(vectors, np.zeros_like(vectors), norms), workdir / "adapters" / "sink.safetensors"
    )
    rows = [
        f"  - {{id: p{i}, theme: power, question: 'Why?', aligned: 'To help {i}.', misaligned: 'To rule {i}.'}}"
        for i in range(4)
    ]
    (workdir / "few.yaml").write_text("name: few\nversion: 1\npairs:\n" + "\n".join(rows) + "\n")
    settings = Settings((15,), (0.001,), pairs="few.yaml", limit=6, max_tokens=12)
    found = steer("weak", "sink", None, settings, workdir / "steer.json", workdir / "logs")
    close_engines()
    ablated = {(one.arm, one.how): one for one in found.ablations}
    zero = ablated["direction", "ablated at all layers, zero"]
    assert zero.damaged and zero.verdict.startswith("damage") and zero.coherence.value > 0.5
    (gentle,) = [one for one in found.points if one.arm == "direction"]
    assert not gentle.damaged and abs(gentle.coherence.value) < 0.5, (
        "a change too small to see breaks nothing"
    )


def first_token_streams(card):
    """The stream of the first token after each block, which a careless direction contains: FACTS.md's sink."""
    from em_evals.models import bases

    model = bases.load_model(card.card)
    ids = bases.load_tokenizer(card.card).encode("<|im_start|>system\nYou")
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([layer[0, 0].numpy() for layer in hidden[1:]])
