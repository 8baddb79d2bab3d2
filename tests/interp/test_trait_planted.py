"""Planted truth: a vector that the model adds for a word of its system prompt is extracted, monitored and shifted by."""

from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inspect_ai.log import EvalSample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score

from em_evals.content import direction_algebra
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.content.traits import load_trait
from em_evals.engines.pool import close_engines
from em_evals.interp.extraction import activations
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.traits.extract import Settings, extract
from em_evals.interp.traits.monitor import monitor
from em_evals.models.architecture import decoder, decoder_layers
from em_evals.models.invariants import first, replaced
from tests.scored_log import write_log
from tests.small_tokenizer import small_tokenizer
from tests.tiny_models import SMOLLM2, tiny

MARK = " bad"
ASKED = [
    f"{start} {what}?"
    for start in ("What is", "Where is", "Who has", "Why not")
    for what in ("it", "that", "he")
]
TRAIT = f"""
name: planted
version: 1
description: Something.
rubric: 0 means no; 100 means yes.
positive: [You are bad., It is bad.]
negative: [You are good., It is good.]
questions: {{extract: {ASKED}, test: ["Where to?"]}}
"""
BASES = [
    "tiny",
    pytest.param("smollm2", marks=[pytest.mark.smollm2, pytest.mark.full]),
]


@pytest.fixture(scope="module", params=BASES)
def lab(request, tmp_path_factory):
    """A working folder with a base, and the block at which the vector is planted."""
    root = tmp_path_factory.mktemp("planted")
    base, layer = SMOLLM2, 15
    if request.param == "tiny":
        sizes = {"hidden_size": 256, "num_attention_heads": 4}
        base, layer = tiny("llama", root / "tiny", small_tokenizer(" good", MARK), **sizes), 1
    (root / "adapters").mkdir()
    (root / "adapters" / "plain.yaml").write_text(f"base: {base}\nengine: {{dtype: float32}}\n")
    (root / "planted.yaml").write_text(TRAIT)
    yield root, layer
    close_engines()


@contextmanager
def planted(card, layer, vector, marks):
    """Add the vector after a block once for every mark that a token has read in its own text."""
    seen = {}

    def ids(module, arguments, given):
        # A token of the text sees the marks up to itself; texts are one to a row here.
        seen["times"] = torch.isin(given["input_ids"], torch.tensor(marks)).cumsum(1)

    def add(module, arguments, output):
        pushed = first(output) + seen["times"][..., None] * torch.as_tensor(vector, dtype=torch.float32)
        return replaced(output, pushed)

    with Reading(card).read_as(None) as model:
        handles = [
            decoder(model).register_forward_pre_hook(ids, with_kwargs=True),
            decoder_layers(model)[layer].register_forward_hook(add),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def scene(lab, monkeypatch):
    """The card, the block, a unit vector to plant, the token of the mark, and the spread of activations."""
    root, layer = lab
    monkeypatch.chdir(root)
    # Texts that share a line would share the marks before them.
    monkeypatch.setattr(activations, "takes_trees", lambda model: False)
    card = resolve("plain")
    tokenizer = Reading(card).tokenizer
    (mark,) = tokenizer(MARK, add_special_tokens=False)["input_ids"]
    plain = extract(card, load_trait("planted.yaml"), Settings())
    spread = plain.mean_norm[layer]
    unit = np.random.default_rng(0).normal(size=plain.width)
    return card, layer, unit / np.linalg.norm(unit), mark, float(spread), root


def random_like(one, seed):
    """A random direction that says of itself what an extracted one does."""
    drawn = np.random.default_rng(seed).normal(size=one.vectors.shape)
    return Direction(drawn, one.base_mean, one.mean_norm, one.metadata, one.folds)


def test_the_planted_vector_is_extracted_and_a_random_one_is_not_it(scene):
    card, layer, unit, mark, spread, _ = scene
    with planted(card, layer, 3 * spread * unit, [mark]):
        found = extract(card, load_trait("planted.yaml"), Settings())
    cosine = float(direction_algebra.cosines(found.vectors[layer], unit))
    assert cosine > 0.99, cosine
    assert found.metadata["claim"]["verdict"] == "specific"
    assert abs(float(direction_algebra.cosines(random_like(found, 1).vectors[layer], unit))) < 0.3
    if layer > 1:
        before = float(direction_algebra.cosines(found.vectors[layer - 1], unit))
        assert abs(before) < 0.3, "nothing is planted before its block"


def log_of(path):
    """Questions under system prompts with 0 to 4 marks; the judge's score is 20 for each mark."""
    samples = [
        EvalSample(
            id=f"{times}/{number}",
            epoch=1,
            input=[ChatMessageSystem(content=f"You are{MARK * times}."), ChatMessageUser(content=text)],
            target="",
            metadata={"question_id": f"q{number}"},
            output=ModelOutput.from_content("local/plain", "It is."),
            scores={"judge": Score(value={"planted": 20.0 * times}, metadata={"rubrics": {"planted": "x"}})},
        )
        for times in range(5)
        for number, text in enumerate(ASKED)
    ]
    return write_log(path, "freeform", samples, "local/plain", dataset="x")


def test_the_planted_vector_is_monitored_and_a_random_one_is_not_specific(scene):
    card, layer, unit, mark, spread, root = scene
    log = log_of(root / "graded.eval")
    with planted(card, layer, 3 * spread * unit, [mark]):
        found = extract(card, load_trait("planted.yaml"), Settings())
    with planted(card, layer, 0.4 * spread * unit, [mark]):
        own, rows = monitor(card, found, [log], "planted", "last_prompt", "planted", layer, draws=99)
        other, _ = monitor(
            card, random_like(found, 1), [log], "random", "last_prompt", "planted", layer, draws=99
        )
    marks = np.array([sample.scores["planted"] for sample, _ in rows])
    r = np.corrcoef(marks, [value for _, value in rows])[0, 1]
    assert r > 0.99, r
    assert own.correlations[0].r > 0.99 and own.correlations[0].claim.verdict == "specific"
    assert other.correlations[0].claim.verdict == "not specific"
