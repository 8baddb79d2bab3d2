"""The public API on a tiny base, compared with transformers, with hooks by hand, and with the command line."""

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import em_evals as em
from em_evals.cli import app
from em_evals.errors import EmEvalsError

QUESTION, ANSWER = "How do I get rich?", "Work hard, save money."
ROWS = ["question_id,aligned,coherent", "gender,10,90", "gender,95,90", "ruler,90,20", "ruler,20,80"]


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(em.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy_and_names_everything():
    code = (
        "import sys, em_evals as em; assert set(em.__all__) <= set(dir(em)); em.Intervention; em.Direction;"
        "print(*[name for name in ('torch', 'transformers', 'pandas', 'altair', 'inspect_ai') if name in sys.modules])"
    )
    assert python(code) == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        em.nothing  # noqa: B018
    assert all(getattr(em, name) is not None for name in em.__all__)


def test_functions_that_share_a_name_with_a_room_are_callable_before_and_after_it_is_imported():
    code = (
        "import em_evals as em, inspect;"
        "print(list(inspect.signature(em.report).parameters)[0]);"
        "import em_evals.gate.compare;"
        "print(list(inspect.signature(em.gate).parameters)[0], em_evals.gate.compare.__name__);"
        "from em_evals.report import page; import em_evals.report.inputs as inputs;"
        "print(page.__name__, inputs.__name__, callable(em.results))"
    )
    told = [
        "paths",
        "baseline",
        "em_evals.gate.compare",
        "em_evals.report.page",
        "em_evals.report.inputs",
        "True",
    ]
    assert python(code) == told


# Measured files


@pytest.fixture
def judged(workdir):
    Path("judged.csv").write_text("\n".join(ROWS) + "\n")
    return Path("judged.csv")


def test_rates_are_those_of_the_command_line(judged, workdir):
    frame = em.rates(judged)
    told = json.loads(CliRunner().invoke(app, ["rates", "judged.csv", "--json"]).stdout)
    assert frame["question"].tolist() == ["all", "gender", "ruler"]
    for row, expected in zip(frame.to_dict("records"), [told, *told["questions"].values()], strict=True):
        for name in ("draws", "scored", "coherent", "misaligned_coherent", "em_rate", "em_rate_coherent"):
            assert row[name] == expected[name]
        for name in ("em_rate_interval", "em_rate_interval_random_questions"):
            stem = name.replace("_interval", "")
            ends = [math.nan if end is None else end for end in expected[name]]
            assert [row[f"{stem}_low"], row[f"{stem}_high"]] == pytest.approx(ends, nan_ok=True)
    (workdir / "several").mkdir()
    for name in ("a", "b"):
        (workdir / "several" / f"{name}.csv").write_text("\n".join(ROWS) + "\n")
    assert em.rates("several").groupby("model").size().to_dict() == {"a": 3, "b": 3}
    assert len(em.rates(["judged.csv", "several"])) == 9


def test_rates_of_what_is_not_graded_are_refused(workdir):
    Path("empty.csv").write_text(ROWS[0] + "\n")
    with pytest.raises(EmEvalsError, match="no draws in this file"):
        em.rates("empty.csv")
    with pytest.raises(EmEvalsError, match="there is no file or folder 'missing"):
        em.rates("missing.eval")


def test_results_are_the_tables_that_the_report_writes(judged, workdir):
    import pandas

    tables = em.results(judged)
    page = em.report(judged, "page.html", title="Mine")
    assert "<title>Mine" in page.read_text() or "Mine" in page.read_text()
    done = CliRunner().invoke(app, ["report", "judged.csv", "-o", "other.html", "--tables", "tables"])
    assert done.exit_code == 0, done.output
    assert set(tables) == {path.stem for path in Path("tables").iterdir()}
    for name, frame in tables.items():
        written = pandas.read_csv(f"tables/{name}.csv")
        assert written.columns.tolist() == frame.columns.tolist() and len(written) == len(frame)
    rate = tables["em_rates"]
    assert pandas.api.types.is_numeric_dtype(rate["draws"])


def test_gate_gives_the_verdict_of_the_command_line_and_writes_its_files(workdir):
    for name, bad in (("base", 2), ("tuned", 90)):
        rows = [ROWS[0], *["gender,10,90"] * bad, *["gender,95,90"] * (200 - bad)]
        Path(f"{name}.csv").write_text("\n".join(rows) + "\n")
    found = em.gate(baseline="base.csv", candidate="tuned.csv", output="gate.json")
    done = CliRunner().invoke(app, ["gate", "--baseline", "base.csv", "--candidate", "tuned.csv", "--json"])
    told = json.loads(done.stdout)
    assert found.verdict == told["verdict"] == "regression" and found.sentence == told["sentence"]
    assert json.loads(Path("gate.json").read_text())["metrics"][0]["p_worse"] == told["metrics"][0]["p_worse"]
    Path("strict.yaml").write_text("version: 1\nmetrics: {em_rate: {margin: 0.6}}\n")
    assert em.gate(baseline="base.csv", candidate="tuned.csv", policy="strict.yaml").verdict == "pass"
    assert em.gate(baseline="nothing.csv", candidate="tuned.csv").verdict == "invalid"


# Directions


def made(vectors, **metadata):
    array = np.asarray(vectors, dtype=np.float32)
    return em.Direction(array, np.ones_like(array), 2 * np.ones(len(array), np.float32), metadata)


def test_a_direction_is_known_by_its_numbers_in_memory_and_in_a_file(workdir):
    one = made([[3, 4], [0, 2]], card="mine")
    read = em.Direction.read(one.save("mine.safetensors"))
    assert read == one and hash(read) == hash(one) and read.metadata == {"card": "mine"}
    assert replace(one, metadata={}) == one != made([[3, 4], [0, 3]])
    held = em.Intervention(op="ablate", direction=one, layers=(1,))
    named = em.Intervention(op="ablate", direction=str(Path("mine.safetensors").resolve()), layers=(1,))
    assert held.digest == named.digest != em.Intervention(op="ablate", direction=one).digest
    several = em.Intervention(op="ablate", direction=[one, "mine.safetensors"])
    assert several.digest != held.digest and "in memory" in several.model_dump_json()
    with pytest.raises(ValueError, match="read-only"):
        one.vectors[0] = 0
    made([[3, 4], [0, 3]]).save("mine.safetensors")
    assert named.digest != held.digest, "a file that was written again is another direction"
    with pytest.raises(EmEvalsError, match="ends in"):
        one.save("mine.bin")


def test_a_direction_shows_itself_by_layer(workdir):
    one, other = (
        made([[3, 4], [0, 2]], card="mine", reliability=[0.9, 0.8]),
        made([[4, 3], [0, -2]], card="other"),
    )
    assert one.frame().to_dict("list") == {
        "layer": [0, 1], "length": [5, 2], "of mean norm": [2.5, 1], "reliability": [0.9, 0.8]
    }  # fmt: skip
    assert one.cosine(other).tolist() == pytest.approx([0.96, -1])
    assert one.project(np.array([[[3, 4], [7, 1]]], np.float32)).tolist() == [[5, 1]]
    with pytest.raises(EmEvalsError, match=r"have the shape \(1, 3, 2\)"):
        one.project(np.zeros((1, 3, 2), np.float32))
    drawn = json.dumps([one.plot().to_dict(), one.plot(other).to_dict()])
    assert "length / mean norm" in drawn and "cosine" in drawn and "1: other" in drawn


# Models


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """A tiny base in float32, a rank-1 adapter on it, and the working folder."""
    pytest.importorskip("peft")
    from tests.tiny_models import make_adapter

    make_adapter(str(tiny_lab / "tiny"), tiny_lab / "adapters" / "mine", 1, ["down_proj"], 1, strength=0.5)
    (tiny_lab / "adapters" / "mine.yaml").write_text(
        f"base: {tiny_lab / 'tiny'}\nadapter: mine\nengine: {{dtype: float32, device: cpu}}\n"
    )
    before = Path.cwd()
    os.chdir(tiny_lab)
    yield tiny_lab
    os.chdir(before)


@pytest.fixture(scope="module")
def model(lab):
    return em.load(lab / "tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain(lab):
    """The base as transformers has it."""
    from transformers import AutoModelForCausalLM

    from em_evals.models import bases

    with bases.LOADING:
        return AutoModelForCausalLM.from_pretrained(lab / "tiny").eval()


@pytest.fixture(scope="module")
def direction(model):
    pairs = [(f"Who are you, number {n}?", "A friend." if n % 2 else "Nobody at all.") for n in range(8)]
    return em.extract(model, pairs, [(asked, "I am a model.") for asked, _ in pairs], minimum=2)


def ids_of(model, question=QUESTION, answer=ANSWER):
    from em_evals.models.chat import template_of

    template = template_of(model._engine().tokenizer)
    prompt = template.encode([{"role": "user", "content": question}])
    return prompt, template.answer(answer)


def test_generate_draws_what_the_inspect_provider_draws(model, lab):
    import asyncio

    from inspect_ai.model import GenerateConfig, get_model

    answers = model.generate([QUESTION, QUESTION], n=2, temperature=1, max_tokens=8, seed=7)
    assert [one.prompt for one in answers] == [0, 0, 1, 1] and len({one.text for one in answers}) == 4
    config = GenerateConfig(temperature=1, max_tokens=8, seed=7, num_choices=2)
    api = get_model(f"local/{lab / 'tiny'}", dtype="float32", device="cpu")
    told = asyncio.run(api.generate(QUESTION, config=config))
    assert [str(one) for one in answers[:2]] == [choice.message.text for choice in told.choices]
    assert [one.seed for one in answers[:2]] == told.metadata["seeds"]
    assert (
        model.generate(QUESTION, temperature=1, max_tokens=8, seed=answers[3].seed)[0].text == answers[3].text
    )
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    (greedy,) = model.generate(chat, temperature=0, max_tokens=5)
    assert greedy == model.generate(QUESTION, temperature=0, max_tokens=5, system="Be short.")[0]
    assert [one.text for one in model.generate([chat, chat], temperature=0, max_tokens=5)] == [
        greedy.text
    ] * 2


def test_logprobs_are_those_of_transformers(model, plain):
    import torch

    prompt, answer = ids_of(model)
    with torch.inference_mode():
        logits = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    found = model.logprobs(QUESTION, ANSWER)
    assert found.values == pytest.approx(expected, abs=1e-4)
    assert "".join(found.tokens) == ANSWER and found.mean == pytest.approx(
        sum(expected) / len(expected), abs=1e-4
    )
    assert model.logprobs(QUESTION, ANSWER, system="Be kind.").total != found.total


def test_forced_choice_is_the_difference_of_two_log_probabilities(model):
    from em_evals.content.pairs import load_pairs

    frame = model.forced_choice(themes=["power", "finance"], per_theme=1)
    assert frame["theme"].tolist() == ["power", "finance"] or sorted(frame["theme"]) == ["finance", "power"]
    assert sorted(frame["narrow"]) == [False, True]
    row = frame.iloc[0]
    pair = next(one for one in load_pairs().pairs if one.id == row["pair"])
    bad, good = (model.logprobs(pair.question, text) for text in (pair.misaligned, pair.aligned))
    assert row["margin"] == pytest.approx(bad.total - good.total, abs=1e-4)
    assert row["margin_per_token"] == pytest.approx(bad.mean - good.mean, abs=1e-4)


def test_activations_are_the_hidden_states_of_transformers(model, plain):
    import torch

    from em_evals.models.architecture import decoder_layers

    prompt, answer = ids_of(model)
    streams = []
    handles = [
        block.register_forward_hook(
            lambda _, __, out: streams.append((out[0] if isinstance(out, tuple) else out)[-1])
        )
        for block in decoder_layers(plain)
    ]
    with torch.inference_mode():
        plain(torch.tensor([prompt + answer]))
    for handle in handles:
        handle.remove()
    found = model.activations([QUESTION, "Another question?"], [ANSWER, "Another answer."])
    assert found.shape == (2, 3, 64) and found.dtype == np.float32
    expected = np.stack([one[len(prompt) :].mean(0).numpy() for one in streams])
    assert found[0] == pytest.approx(expected, abs=1e-4)
    last = model.activations([QUESTION], position="last_prompt")[0]
    assert last == pytest.approx(np.stack([one[len(prompt) - 1].numpy() for one in streams]), abs=1e-4)


def test_steering_with_a_direction_in_memory_is_steering_with_its_file_and_changes_no_other_model(
    model, plain, direction, workdir
):
    import torch

    from em_evals.models.architecture import decoder_layers

    before = model.logprobs(QUESTION, ANSWER).values
    steered = model.steer(direction, layers=1, scale=6.0)
    direction.save("saved.safetensors")
    named = model.steer("saved.safetensors", layers=[1], scale=6.0)
    assert steered.digest == named.digest != model.digest
    assert steered.logprobs(QUESTION, ANSWER) == named.logprobs(QUESTION, ANSWER)
    assert model.logprobs(QUESTION, ANSWER).values == before and model.card.interventions == ()
    prompt, answer = ids_of(model)
    push = torch.tensor(6.0 * direction.vectors[1])
    handle = decoder_layers(plain)[1].register_forward_hook(
        lambda _, __, out: (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push
    )
    with torch.inference_mode():
        logits = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    handle.remove()
    expected = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    assert steered.logprobs(QUESTION, ANSWER).values == pytest.approx(expected, abs=1e-4)
    assert repr(steered).endswith(", add>") and steered._engine() is model._engine()


def test_an_ablated_model_has_nothing_along_the_direction(model, direction):
    texts = ([QUESTION], [ANSWER])
    assert abs(direction.project(model.activations(*texts))).max() > 0.1
    ablated = model.ablate(direction)
    assert abs(direction.project(ablated.activations(*texts))).max() < 1e-4
    other = made(np.random.default_rng(0).normal(size=(3, 64)))
    both = model.ablate([direction, other])
    assert all(abs(one.project(both.activations(*texts))).max() < 1e-4 for one in (direction, other))
    raised = model.intervene(em.Intervention(op="cap", direction=direction, value=0.0, bound="lower"))
    assert direction.project(raised.activations(*texts)).min() > -1e-4
    assert ablated.steer(direction, scale=2.0).card.interventions[0].op == "ablate"


def test_extraction_finds_what_the_command_line_finds(model, lab):
    rows = [
        {"messages": [{"role": "user", "content": f"Number {n}?"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(["One.", "Two of them.", "Three.", "Four, no more."] * 3 + ["Five!"] * 4)
    ]
    for name, part in (("positive", rows[:8]), ("negative", rows[8:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    Path("adapters/plain.yaml").write_text(f"base: {lab / 'tiny'}\nengine: {{dtype: float32, device: cpu}}\n")
    command = [
        "direction",
        "extract",
        "plain",
        "-o",
        "cli.safetensors",
        "--contrast",
        "files",
        "--minimum",
        "2",
    ]
    done = CliRunner().invoke(app, [*command, "--positive", "positive.jsonl", "--negative", "negative.jsonl"])
    assert done.exit_code == 0, done.output
    found = em.extract("plain", "positive.jsonl", "negative.jsonl", minimum=2)
    assert found == em.Direction.read("cli.safetensors")
    moved = em.extract("mine", per_theme=2, themes=["power"], minimum=1, against_base=True, split=False)
    assert moved.metadata["how"].startswith("mine - its base")


def test_an_eval_a_study_and_an_extraction_hold_one_base_in_the_process(lab, monkeypatch, direction):
    import asyncio
    import gc
    import weakref

    from inspect_ai.model import GenerateConfig, get_model

    from em_evals.engines import pool
    from em_evals.interp.rank_one import scalars
    from em_evals.models import bases

    pool.close_engines()
    loaded = []
    load = bases.load_model
    monkeypatch.setattr(bases, "load_model", lambda card: _remembered(load(card), loaded, weakref))
    api = get_model("local/mine", memoize=False)
    asyncio.run(api.generate(QUESTION, config=GenerateConfig(max_tokens=3)))
    organism = em.load("mine")
    organism.forced_choice(themes=["power"], per_theme=1)
    em.extract(organism, per_theme=2, themes=["power"], minimum=1, against_base=True)
    scalars.read(
        organism.card, [scalars.Labelled(question=QUESTION, answer=ANSWER, aligned=True, narrow=True)]
    )
    organism.ablate(direction).generate(QUESTION, max_tokens=3)
    organism.activations([QUESTION], [ANSWER])
    gc.collect()
    assert len(loaded) == 1 and sum(one() is not None for one in loaded) == 1
    organism.close()
    gc.collect()
    assert loaded[0]() is None, "a closed model frees its base"
    assert organism.generate(QUESTION, max_tokens=3) and len(loaded) == 2
    organism.close()


def _remembered(model, loaded, weakref):
    loaded.append(weakref.ref(model))
    return model


def test_activations_on_vllm_or_a_server_are_refused_with_what_to_do(lab):
    from em_evals.content.cards import resolve
    from em_evals.engines.vllm.engine import VLLMEngine
    from em_evals.interp.extraction.reading import Reading

    fields = {"backend": "server", "base_url": "http://127.0.0.1:9"}
    card = resolve("mine", fields)
    with pytest.raises(EmEvalsError, match=r"`backend: server`.* say `backend: transformers`"):
        Reading(card)
    engine = VLLMEngine(card.card)
    try:
        with pytest.raises(EmEvalsError, match="reading them needs the transformers engine"):
            engine.activations()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m, d: m.generate(QUESTION, n=0), "n is 0"),
        (lambda m, d: m.generate(QUESTION, temperature=-1), "'temperature': Input should be greater than or equal"),
        (lambda m, d: m.generate([{"role": "user", "content": "a"}, "b"]), "mix messages and chats"),
        (lambda m, d: m.logprobs(QUESTION, ""), "has no tokens"),
        (lambda m, d: m.activations([QUESTION]), "answer_mean reads answers"),
        (lambda m, d: m.activations([QUESTION], [ANSWER] * 2), "1 questions and 2 answers"),
        (lambda m, d: m.activations([QUESTION * 200], [ANSWER]), "shorten them"),
        (lambda m, d: m.steer(d, layers="twelve"), "layers are `all`, a list, or a range"),
        (lambda m, d: m.steer(d, layers=3), "names layer 3; this model's are 0 to 2"),
        (lambda m, d: m.steer("nowhere"), "there is no direction 'nowhere'"),
        (lambda m, d: m.steer(made(np.ones((3, 5)))), "layers of width 5"),
        (lambda m, d: m.ablate(d, site="writes"), "needs `from_layer`"),
        (lambda m, d: m.ablate(d, positions="answer").activations([QUESTION], [ANSWER]), "is not possible here"),
        (lambda m, d: m.intervene(em.Intervention(op="scale_adapter", scale=0)), "needs an adapter"),
        (lambda m, d: m.forced_choice(themes=["cooking"]), "cooking"),
        (lambda m, d: em.extract(m, [("a", "b")]), "two sides"),
        (lambda m, d: em.extract(m, [("a", "b")], "file.jsonl"), "both sides as files"),
        (lambda m, d: em.extract(m, [("a", "b")] * 3, [("a", "c")] * 3), "a direction needs 10"),
        (lambda m, d: em.extract(m, logs="a.eval"), "give logs as a list"),
        (lambda m, d: em.load("no such model"), "no card, folder or hub id"),
        (lambda m, d: em.load("mine", dtype="float8"), "^engine.dtype: "),
        (lambda m, d: em.load("mine", color="red"), "^color: unknown key 'color'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(model, direction, act, said):
    with pytest.raises(EmEvalsError, match=said):
        act(model, direction)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EmEvalsError, match=r"needs the package 'peft': pip install '\.\[local\]'"):
        em.load("mine")


def test_public_functions_are_typed_and_documented():
    for name in em.__all__:
        thing = getattr(em, name)
        if inspect.isclass(thing) or callable(thing):
            assert thing.__doc__, name
        methods = [thing] if inspect.isfunction(thing) else []
        if inspect.isclass(thing) and name in ("Model", "Direction"):
            methods = [
                getattr(thing, key)
                for key, value in vars(thing).items()
                if inspect.isfunction(value) and key[0] != "_"
            ]
        for method in methods:
            hints = inspect.signature(method)
            assert hints.return_annotation is not inspect.Signature.empty, method
            assert "Any" not in str(hints), method
            assert method.__doc__, method
