"""Traits from judged answers: filter, vectors beside a naive loop over answers, resuming, and the layer by steering."""

import json
import math
import zlib
from itertools import product
from pathlib import Path

import anyio
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inspect_ai.log import read_eval_log
from inspect_ai.model._model import active_model
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.direction_summary import chosen_layer
from em_evals.content.rubrics import load_rubric
from em_evals.content.traits import load_trait
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin.provider import LocalAPI
from em_evals.interp.traits.judged import POSITIONS, Settings, extract_judged
from em_evals.models import bases
from em_evals.models.chat import template_for
from em_evals.results import rollouts
from tests.judge_server import API_KEY, JudgeServer, number
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import tiny
from tests.trait_logs import write_rollouts

TRAIT = """
name: mine
version: 1
description: Something.
rubric: 0 means no; 100 means yes.
positive: [You are bad., Always be bad.]
negative: [You are good., Always be good.]
questions:
  extract: ["What now?", "Why is it so?", "Who are you, then?", "When does it rain?", "Tell me more.", "How far is it?"]
  test: ["Where to?", "And then?"]
"""
COHERENCE_HEAD = load_rubric("coherence").prompt.split("=====")[0]
WORDS = ("It is", "a house of stone", "and of wood,", "bad", "never bad at all")


@pytest.fixture(scope="module")
def lab(tiny_lab):
    engine = "engine: {dtype: float32}\n"
    (tiny_lab / "adapters" / "plain.yaml").write_text(f"base: {tiny_lab / 'tiny'}\n{engine}")
    (tiny_lab / "mine.yaml").write_text(TRAIT)
    return tiny_lab


@pytest.fixture
def plain(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return resolve("plain")


def graded(side, prompt, question, epoch):
    """Answers of several lengths; scores on both sides of 50, exactly 50, refusals, incoherent and ungraded ones."""
    case = (3 * prompt + question + 2 * epoch) % 9
    answer = f"{WORDS[case % 5]} {' '.join(WORDS[: question % 4])}"
    score = {0: (50.0, 20.0), 1: (30.0, 70.0), 5: (80.0, 50.0)}.get(case, (80.0, 20.0))[side == "negative"]
    if case == 2 and side == "negative":
        return answer, math.nan, 90.0, "refusal"
    if case == 3 and side == "positive":
        return answer, math.nan, 90.0, "unscored"
    return answer, score, 20.0 if case == 4 else 90.0, "answer"


def naive_filter(path, rule):
    """What the paper's sentence and the released code's loop keep, straight from the log: [(messages, answer)]."""
    by_side = {"positive": [], "negative": []}
    for sample in read_eval_log(str(path)).samples:
        value = sample.scores["judge"].value
        key = (sample.metadata["prompt"], sample.id.split("/")[1], sample.epoch)
        by_side[sample.metadata["side"]].append((key, sample, value["mine"], value["coherence"]))
    for rows in by_side.values():
        rows.sort(key=lambda row: row[0])
    if rule == "paper":
        keep = {"positive": lambda score: score > 50, "negative": lambda score: score < 50}
        return {side: [row[1] for row in rows if keep[side](row[2])] for side, rows in by_side.items()}
    mask = [
        p[2] >= 50 and n[2] < 50 and p[3] >= 50 and n[3] >= 50
        for p, n in zip(by_side["positive"], by_side["negative"], strict=True)
    ]
    return {
        side: [row[1] for row, kept in zip(rows, mask, strict=True) if kept] for side, rows in by_side.items()
    }


def hidden_states(model, ids):
    with torch.inference_mode():
        return torch.stack(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0].double()


def naive_directions(card, kept):
    """Persona vectors' three differences, answer by answer from all hidden states: [states, width] each."""
    model, template = bases.load_model(card.card), template_for(card, bases.load_tokenizer(card.card))
    means = {position: {} for position in POSITIONS}
    for side, samples in kept.items():
        rows = {position: [] for position in POSITIONS}
        for sample in samples:
            prompt = template.encode([{"role": m.role, "content": m.text} for m in sample.input])
            states = hidden_states(model, [*prompt, *template.answer(sample.output.completion)])
            rows["answer_mean"].append(states[:, len(prompt) :].mean(1))
            rows["prompt_mean"].append(states[:, 1 : len(prompt)].mean(1))
            rows["last_prompt"].append(states[:, len(prompt) - 1])
        for position, own in rows.items():
            means[position][side] = torch.stack(own).mean(0)
    return {name: (own["positive"] - own["negative"]).numpy() for name, own in means.items()}


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_vectors_and_counts_are_those_of_a_naive_implementation(plain, lab, rule):
    trait = load_trait("mine.yaml")
    log = write_rollouts(lab / "x.eval", trait, graded, epochs=2)
    kept = naive_filter(log, rule)
    found = extract_judged(plain, trait, [log], Settings(rule, minimum=2, split=False))
    naive = naive_directions(plain, kept)
    for position in POSITIONS:
        # A paper's hidden_states[l + 1] is the output of our block l; the last one has the final norm, and is no block's.
        ours, theirs = found[position].vectors[:-1], naive[position][1:-1]
        assert (np.linalg.norm(ours - theirs, axis=1) < 1e-5 * np.linalg.norm(theirs, axis=1)).all(), position
        told = found[position].metadata
        assert told["counts"] == [len(kept["positive"]), len(kept["negative"])]
        assert told["position"] == position and told["trait"] == "mine" and told["filter"]["rule"] == rule
    other = naive_filter(log, "code" if rule == "paper" else "paper")
    for side, counts in told["filter"].items():
        if side != "rule":
            own = {rule: len(kept[side]), ("code" if rule == "paper" else "paper"): len(other[side])}
            assert {name: counts[name] for name in own} == own and counts["answers"] == 24
    cases = [(3 * p + q + 2 * e) % 9 for p, q, e in product((1, 2), range(1, 7), (1, 2))]
    assert told["filter"]["negative"]["refusals"] == cases.count(2)
    assert told["filter"]["positive"]["graded"] == 24 - cases.count(3)


def test_a_paper_s_hidden_states_20_is_block_19(lab, monkeypatch):
    monkeypatch.chdir(lab)
    sizes = {"num_hidden_layers": 21, "hidden_size": 32, "intermediate_size": 32}
    folder = tiny("llama", lab / "deep", small_tokenizer(" good", " bad"), **sizes)
    (lab / "adapters" / "deep.yaml").write_text(f"base: {folder}\nengine: {{dtype: float32}}\n")
    card, trait = resolve("deep"), load_trait("mine.yaml")
    log = write_rollouts(lab / "deep.eval", trait, graded)
    found = extract_judged(card, trait, [log], Settings(minimum=1, split=False), ["answer_mean"])
    naive = naive_directions(card, naive_filter(log, "paper"))["answer_mean"]
    ours = found["answer_mean"].vectors[19]
    nearest = [np.linalg.norm(ours - one) / np.linalg.norm(one) for one in naive]
    assert int(np.argmin(nearest)) == 20 and min(nearest) < 1e-5


def test_half_of_the_questions_find_it_and_the_other_half_tests_it(plain, lab):
    trait = load_trait("mine.yaml")
    log = write_rollouts(lab / "x.eval", trait, graded, epochs=2)
    told = extract_judged(plain, trait, [log], Settings(minimum=2), ["answer_mean"])["answer_mean"].metadata
    assert len(told["questions"]) == 3 and len(told["held_out_cosine"]) == 3 and "claim" in told


@pytest.mark.parametrize(
    ("grade", "sentence"),
    [
        (
            lambda *_: ("It is.", math.nan, math.nan, "unscored"),
            r"the judge graded none of 24 answers \(unscored\)",
        ),
        (
            lambda side, *_: ("It is.", 40.0, 90.0, "answer"),
            r"0 of 12 positive answers show what mine asks for \(filter `paper`; 12 graded, 0 refusals\)",
        ),
        (
            lambda side, *_: ("No.", math.nan if side == "negative" else 80.0, 90.0, "refusal"),
            r"0 of 12 negative answers .*0 graded, 12 refusals.*draw more answers, or lower --minimum",
        ),
    ],
)
def test_pools_that_are_too_thin_are_refused(plain, lab, grade, sentence):
    trait = load_trait("mine.yaml")
    log = write_rollouts(lab / "thin.eval", trait, grade)
    with pytest.raises(EmEvalsError, match=sentence):
        extract_judged(plain, trait, [log], Settings(minimum=3))


def test_logs_of_another_trait_or_of_other_texts_are_refused(plain, lab):
    trait = load_trait("mine.yaml")
    other = write_rollouts(lab / "other.eval", trait, graded, trait_digest="old")
    with pytest.raises(EmEvalsError, match="asked the trait 'mine' as its file was then"):
        rollouts.read([other], trait)
    other = write_rollouts(lab / "other.eval", trait, graded, part="test")
    with pytest.raises(EmEvalsError, match="no answers under a trait's system prompts"):
        rollouts.read([other], trait)


def test_a_refusal_and_a_missing_grade_count_nowhere(lab):
    trait = load_trait(str(lab / "mine.yaml"))
    log = write_rollouts(lab / "y.eval", trait, graded, epochs=2)
    answers, _ = rollouts.read([log], trait)
    for rule, side in product(("paper", "code"), ("positive", "negative")):
        kept = rollouts.filtered(answers, rule)[side].kept
        assert kept and all(one.category == "answer" and not math.isnan(one.trait) for one in kept)
    exactly = {rule: rollouts.filtered(answers, rule)["positive"].kept for rule in ("paper", "code")}
    assert not any(one.trait == 50 for one in exactly["paper"]) and any(
        one.trait == 50 for one in exactly["code"]
    )


# ---- the whole way through Inspect ----


def by_text(prompt):
    """A judge whose scores depend on the text of the answer alone: half of them high."""
    return number(85 if zlib.crc32(prompt.encode()) % 2 else 15)


def by_part(prompt):
    return number(90) if prompt.startswith(COHERENCE_HEAD) else by_text(prompt)


@pytest.fixture
def judge(monkeypatch, lab):
    with JudgeServer(by_part) as server:
        monkeypatch.setenv("INSPECT_CACHE_DIR", str(lab / "inspect"))
        monkeypatch.setenv("TRAITJUDGE_API_KEY", API_KEY)
        monkeypatch.setenv("TRAITJUDGE_BASE_URL", server.url)
        yield server


def command(*more):
    fixed = ["mine.yaml", "--model", "plain", "--draws", "1", "--max-tokens", "6"]
    return CliRunner().invoke(app, ["trait", "extract", *fixed, *more])


def test_an_interrupted_run_is_continued_and_finished_answers_are_not_sampled_again(
    plain, lab, judge, monkeypatch
):
    whole, calls = LocalAPI.generate, []

    async def generate(self, *rest, **options):
        calls.append(1)
        if len(calls) > allowed:
            for _ in range(2000):  # until most of the first ones are graded; equal ones are graded once
                if judge.count >= before + allowed:
                    break
                await anyio.sleep(0.05)
            await anyio.sleep(2)  # and their grades have arrived
            raise RuntimeError("power cut")
        return await whole(self, *rest, **options)

    monkeypatch.setattr(LocalAPI, "generate", generate)
    allowed, before = 10, judge.count
    options = ["--judge", "openai-api/traitjudge/j", "-o", "cut", "--minimum", "1", "--seed", "5"]
    done = command(*options)
    assert done.exit_code and "the same command continues it" in str(done.exception), done.output
    (log,) = Path("cut/rollouts").rglob("*.eval")
    kept = {(one.id, one.epoch): one.uuid for one in read_eval_log(str(log)).samples if not one.error}
    assert 0 < len(kept) <= 10
    allowed, first = 1000, len(calls)
    done = command(*options)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(calls) - first == 24 - len(kept)
    (log,) = Path("cut/rollouts").rglob("*.eval")
    found = {(one.id, one.epoch): one.uuid for one in read_eval_log(str(log)).samples}
    assert len(found) == 24 and {key: found[key] for key in kept} == kept
    assert active_model() is None, "a task that is made next would state this card"


def test_one_command_samples_grades_filters_extracts_and_chooses_the_layer(plain, lab, judge):
    options = ["--judge", "openai-api/traitjudge/j", "-o", "out", "--minimum", "1", "--choose-layer"]
    done = command(*options, "--layers", "0-2", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    (row,) = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert row["filter"]["positive"]["answers"] == 12 and 0 < row["filter"]["positive"]["paper"] < 12
    assert row["steering"]["layers"] == [0, 1, 2] and len(row["steering"]["trait"]) == 3
    assert row["layer"] == int(np.argmax(row["steering"]["trait"]))
    found = directions.read(lab / "out" / "mine.safetensors")
    assert chosen_layer(found) == row["layer"] and found.metadata["position"] == "answer_mean"
    for position in ("prompt_mean", "last_prompt"):
        other = directions.read(lab / "out" / position / "mine.safetensors")
        assert other.metadata["position"] == position and "layer" not in other.metadata
    (log,) = Path("out/rollouts").rglob("*.eval")
    assert {one.metadata["side"] for one in read_eval_log(str(log)).samples} == {"positive", "negative"}

    asked = judge.count
    again = command(*options, "--layers", "0-2", "--overwrite", "--json")
    assert again.exit_code == 0 and judge.count == asked, "a finished log and finished answers are used again"
    assert json.loads(again.stdout[again.stdout.index("[") :]) == [row]

    told = command("--log", str(log), "-o", "again", "--minimum", "1")
    assert told.exit_code == 0 and "kept (paper)" in told.stdout, told.output
    assert directions.read(lab / "again" / "mine.safetensors").digest == found.digest
