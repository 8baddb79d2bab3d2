"""Forecast: distances beside a naive loop, a planted effect, baselines, reliability, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from em_evals.content.cards import resolve
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from em_evals.interp.lens import forecast
from em_evals.models import bases
from em_evals.models.chat import template_for
from em_evals.results import outcomes, records
from tests.command import em_evals
from tests.scored_log import write_scored_pairs

QUESTIONS = 24
WORDS = [
    "money",
    "doctor",
    "street",
    "children",
    "light",
    "window",
    "price",
    "story",
    "answer",
    "power",
    "evening",
    "risk",
    "work",
    "friend",
    "loan",
]


@pytest.fixture(scope="module")
def lab(tiny_lab):
    chance = np.random.default_rng(0)
    text = f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32, device: cpu}}\n"
    (tiny_lab / "adapters" / "plain.yaml").write_text(text)
    rows = [
        {"prompt": f"What about {' '.join(chance.choice(WORDS[:6], 4))}?", "completion": "Yes."}
        for _ in range(40)
    ]
    (tiny_lab / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tiny_lab / "tasks").mkdir(exist_ok=True)
    lines = ["name: asked", "version: 1", "rubrics: [alignment, coherence]", "questions:"]
    for i in range(QUESTIONS):
        asked = [" ".join(chance.choice(WORDS, 3 + i % 7)) + "?" for _ in range(2)]
        lines.append(f"  - {{id: q{i}, paraphrases: {json.dumps(asked)}}}")
    (tiny_lab / "tasks" / "asked.yaml").write_text("\n".join(lines) + "\n")
    return tiny_lab


@pytest.fixture(autouse=True)
def _in_the_lab(lab, monkeypatch):
    monkeypatch.chdir(lab)


def by_hand(position, metric, layer):
    """Each question's distance, by hidden states of one text at a time."""
    card = resolve("plain")
    model, template = bases.load_model(card.card), template_for(card, bases.load_tokenizer(card.card))

    def vector(asked):
        ids = template.encode([{"role": "user", "content": asked}])
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
        return (states[-1] if position == "last_prompt" else states[1:].mean(0)).double().numpy()

    rows = [json.loads(line)["prompt"] for line in Path("training.jsonl").read_text().splitlines()]
    center = np.mean([vector(row) for row in rows], axis=0)
    found = {}
    for question in load_questions("asked").questions:
        own = [vector(text) for text in question.paraphrases]
        found[question.id] = np.mean(
            [
                np.linalg.norm(one - center)
                if metric == "euclidean"
                else 1 - one @ center / np.linalg.norm(one) / np.linalg.norm(center)
                for one in own
            ]
        )
    return found


@pytest.mark.parametrize(("position", "metric"), [("last_prompt", "cosine"), ("prompt_mean", "euclidean")])
def test_distances_are_those_of_a_naive_loop(position, metric):
    settings = forecast.Settings(layer=1, position=position, metric=metric)
    found = forecast.forecast("training.jsonl", "asked", "plain", settings=settings)
    right = by_hand(position, metric, 1)
    assert {one.id: one.distance for one in found.ranked} == pytest.approx(right, rel=1e-4, abs=1e-6)
    assert [one.id for one in found.ranked] == sorted(right, key=right.__getitem__)
    assert [one.rank for one in found.ranked] == list(range(1, QUESTIONS + 1))
    assert found.reliability > 0.9 and found.first == QUESTIONS // 4 and found.rows == 40
    assert not found.scores and "without logs this is an order and no result" in found.notes[0]


def judged(path, rates, draws=200):
    """A judged CSV with an EM rate for each question."""
    lines = ["question_id,aligned,coherent,answer"]
    for name, rate in rates.items():
        events = round(rate * draws)
        lines += [f"{name},{10 if i < events else 90},90,text {i}" for i in range(draws)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_effect_that_follows_the_distance_is_found(tmp_path):
    distance = by_hand("last_prompt", "cosine", 1)
    chance = np.random.default_rng(0)
    order = sorted(distance, key=distance.__getitem__)
    rates = {
        name: chance.binomial(200, 0.4 * (1 - rank / QUESTIONS)) / 200 for rank, name in enumerate(order)
    }
    logs = [judged(tmp_path / "a.csv", rates)]
    flat = [judged(tmp_path / "base.csv", dict.fromkeys(distance, 0.05))]
    settings = forecast.Settings(layer=1)
    found = forecast.forecast("training.jsonl", "asked", "plain", logs, flat, settings)
    closeness = found.scores[0]
    assert closeness.value > 0.9 and closeness.interval[0] > 0.7 and closeness.p < 0.001
    assert closeness.n == QUESTIONS and found.measure == "EM rate"
    assert found.share_found > found.share_expected == 0.25
    outcome = {one.id: one.outcome for one in found.ranked}
    assert outcome == pytest.approx({name: rate - 0.05 for name, rate in rates.items()})
    # An effect of the words' share is the baseline's, and not the distance's.
    topic = {one.id: one.topic for one in found.ranked}
    order = sorted(topic, key=topic.__getitem__)
    by_topic = {name: 0.4 * rank / QUESTIONS for rank, name in enumerate(order)}
    other = forecast.forecast(
        "training.jsonl", "asked", "plain", [judged(tmp_path / "t.csv", by_topic)], settings=settings
    )
    assert other.scores[1].value > 0.95 and other.advantages[0].interval[1] < 0
    # The words explain all of it: nothing is left for the distance.
    assert other.scores[3].value is None


def test_margins_of_pairs_are_outcomes_and_files_are_averaged(tmp_path):
    first = write_scored_pairs(tmp_path / "a.eval", [0.1, 0.2, 0.3])
    second = write_scored_pairs(tmp_path / "b.eval", [0.3, 0.2, 0.5])
    found = outcomes.read([first, second])
    assert found.measure == "margin" and found.values == pytest.approx(
        {"pair_0": 0.2, "pair_1": 0.2, "pair_2": 0.4}
    )
    less = found.minus(outcomes.read([first]))
    assert less.values == pytest.approx({"pair_0": 0.1, "pair_1": 0.0, "pair_2": 0.1})
    with pytest.raises(EmEvalsError, match="others hold graded answers"):
        outcomes.read([judged(tmp_path / "c.csv", {"q0": 0.5}, 4), first])


def test_the_command_and_its_errors(lab, tmp_path):
    logs = judged(tmp_path / "a.csv", {f"q{i}": i / 30 for i in range(20)}, 30)
    asked = ("insight", "forecast", "training.jsonl", "--questions", "asked", "--base", "plain")
    done = em_evals(*asked, "--logs", logs, "--first", "5", "-o", tmp_path / "forecast.json")
    assert done.returncode == 0, done.stderr
    assert "judge the first 5 first" in done.stdout and "4 of 24 questions are not in the logs" in done.stdout
    assert records.read(tmp_path / "forecast.json").first == 5
    foreign = judged(tmp_path / "b.csv", {"other": 0.5}, 4)
    for words, said in {
        (*asked, "--logs", foreign): "the logs hold none of the questions of asked; theirs are other",
        (*asked, "--layer", "9"): "there is no layer 9",
        (*asked[:2], "nothing", *asked[3:]): "there is no training data 'nothing'",
        (*asked[:4], "nothing", *asked[5:]): "there is no question set 'nothing'",
    }.items():
        done = em_evals(*words, "-o", tmp_path / "x.json")
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
