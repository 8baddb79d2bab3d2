"""Margins straight from the engine are the Inspect task's; conditions share batches and do not mix."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import load_pairs
from em_evals.engines.hf.batch import Batch
from em_evals.errors import EmEvalsError
from em_evals.interp import fixed_answers
from em_evals.interp.fixed_answers import Condition, given, margins
from em_evals.interp.resume import Finished
from em_evals.models import bases
from em_evals.results.forced_choice import compare
from em_evals.results.logs import margins_of_log
from tests.tiny_models import make_adapter


@pytest.fixture(scope="module")
def lab(tiny_lab):
    chance = np.random.default_rng(1)
    found = Direction(
        chance.normal(size=(3, 64)).astype(np.float32), np.zeros((3, 64), np.float32), np.ones(3, np.float32)
    )
    directions.write(found, tiny_lab / "adapters" / "d.safetensors")
    make_adapter(str(tiny_lab / "tiny"), tiny_lab / "adapters" / "bad", 2, ["down_proj"], seed=3)
    base = f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32}}\n"
    (tiny_lab / "adapters" / "plain.yaml").write_text(base)
    (tiny_lab / "adapters" / "bad.yaml").write_text(f"{base}adapter: bad\n")
    steered = "interventions: [{op: add, direction: d, layers: [1], scale: 2, positions: answer}]\n"
    (tiny_lab / "adapters" / "steered.yaml").write_text(f"{base}adapter: bad\n{steered}")
    return tiny_lab


def test_margins_are_those_of_the_inspect_task(lab, monkeypatch):
    from inspect_ai import eval as inspect_eval

    from em_evals.inspect_plugin.tasks import forced_choice

    monkeypatch.chdir(lab)
    every = load_pairs()
    chosen = [pair for pair in every.pairs if pair.id in every.first(1)][:5]
    names = ["plain", "bad", "steered"]
    logs = inspect_eval(
        forced_choice(),
        model=[f"local/{name}" for name in names],
        sample_id=[pair.id for pair in chosen],
        log_dir="logs",
        display="none",
    )
    cards = [resolve(name) for name in names]
    found = list(margins(cards[0], [Condition.of(card) for card in cards], chosen))
    for name, log, own in zip(names, logs, found, strict=True):
        expected = {pair: value for pair, (_, value) in margins_of_log(log).items()}
        assert own == pytest.approx(expected, abs=1e-5), name
        assert list(own) == [pair.id for pair in chosen]
    assert all(abs(found[0][p] - found[1][p]) > 1e-3 for p in found[0]), "an adapter shows"
    assert all(abs(found[1][p] - found[2][p]) > 1e-3 for p in found[1]), "an intervention shows"


def test_a_pair_that_does_not_fit_is_not_scored_and_the_others_are(lab, monkeypatch):
    from inspect_ai import eval as inspect_eval

    from em_evals.inspect_plugin.tasks import forced_choice

    monkeypatch.chdir(lab)
    lengths = {pair.id: len(pair.question + pair.aligned) for pair in load_pairs().pairs}
    short, long = min(lengths, key=lengths.get), max(lengths, key=lengths.get)
    (log,) = inspect_eval(
        forced_choice(),
        model="local/plain",
        model_args={"max_model_len": 160},
        sample_id=[short, long],
        log_dir="logs",
        display="none",
    )
    assert log.status == "success"
    scores = {sample.id: sample.scores["likelier"] for sample in log.samples}
    assert "not scored" in scores[long].explanation and np.isnan(scores[long].value["margin"])
    assert np.isfinite(scores[short].value["margin"])


def test_vocabulary_logits_are_made_for_answers_only(lab, monkeypatch):
    monkeypatch.chdir(lab)
    made, forward = [], Batch._forward

    def counted(self, *arguments, **options):
        logits = forward(self, *arguments, **options)
        made.append(logits.shape[:2].numel())
        return logits

    monkeypatch.setattr(Batch, "_forward", counted)
    card, pair = resolve("plain"), load_pairs().pairs[0]
    list(margins(card, [Condition()], [pair]))
    tokenizer = bases.load_tokenizer(card.card)
    answers = [given(tokenizer, pair.question, text).answer for text in (pair.aligned, pair.misaligned)]
    assert 0 < sum(made) <= 2 * max(map(len, answers))


def test_an_answer_that_does_not_fit_the_model_has_no_margin(lab, monkeypatch):
    monkeypatch.chdir(lab)
    pair = load_pairs().pairs[0]
    long = replace(pair, id="long", aligned="word " * 600)
    (found,) = margins(resolve("plain"), [Condition()], [pair, long])
    assert found[pair.id] == found[pair.id] and found["long"] != found["long"]


def test_a_condition_is_known_by_its_content(lab, monkeypatch):
    monkeypatch.chdir(lab)
    card = resolve("bad")
    file = lab / "adapters" / "d.safetensors"
    one = Condition.of(card, Intervention(op="ablate", direction=str(file)))
    other = Condition.of(card, Intervention(op="add", direction=str(file), scale=1))
    names = [
        one.identity(card),
        other.identity(card),
        Condition.of(card).identity(card),
        Condition().identity(card),
    ]
    assert len(set(names)) == 4
    copy = lab / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert Condition.of(card, Intervention(op="ablate", direction=str(copy))).identity(card) == names[0]
    # The same files in the same order, but other subspaces.
    d, e = str(file), str(copy)
    cuts = [([d, e], [d]), ([d], [e, d]), ([d, e, d],), (d, e, d)]
    subspaces = [
        Condition(None, tuple(Intervention(op="ablate", direction=names) for names in cut)).identity(card)
        for cut in cuts
    ]
    assert len({*subspaces, *names}) == len(cuts) + len(names)


def test_what_pairs_say_is_scored_once_wherever_they_stand(lab, monkeypatch):
    monkeypatch.chdir(lab)
    card, pairs = resolve("bad"), load_pairs().pairs[:3]
    finished, asked = Finished(lab / "parts" / "finished.jsonl"), []

    def counted(card, conditions, pairs):
        asked.append(len(conditions))
        return margins(card, conditions, pairs)

    monkeypatch.setattr(fixed_answers, "margins", counted)
    conditions = [Condition(), Condition.of(card)]
    found = fixed_answers.score_answers(card, conditions[:1], pairs, finished)
    assert fixed_answers.score_answers(card, conditions, pairs, finished)[0] == found[0] and asked == [1, 1]
    lower = [replace(pair, line=pair.line + 1) for pair in reversed(pairs)]
    again = fixed_answers.score_answers(card, conditions, lower, Finished(finished.path))
    assert asked == [1, 1] and again[0] == found[0], "a comment at the top of their file moves every line"
    changed = [replace(pairs[0], aligned="Something else."), *pairs[1:]]
    assert fixed_answers.score_answers(card, conditions[:1], changed, finished) != found and asked == [
        1,
        1,
        1,
    ]
    # Not to the last digit: what shares a batch decides how products are rounded.
    (of_all,), (own,) = found, margins(card, conditions[:1], pairs)
    assert of_all == pytest.approx(own, rel=0, abs=1e-5)


def test_a_condition_that_cannot_be_is_reported(lab, monkeypatch):
    monkeypatch.chdir(lab)
    wrong = Condition(
        None, (Intervention(op="add", direction=str(lab / "adapters/d.safetensors"), layers=(9,)),)
    )
    with pytest.raises(EmEvalsError, match="names layer 9"):
        list(margins(resolve("plain"), [wrong], load_pairs().pairs[:1]))


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_log_probabilities_that_are_not_finite_have_no_margin(value):
    with pytest.raises(EmEvalsError, match="gives the misaligned answer a log-probability of"):
        compare([-1.0, -2.0], [-1.0, value])
