"""Extraction against plain loops, and the planted truth: what was put into a model is what is found."""

import json
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from em_evals.content import direction_algebra, directions
from em_evals.content.cards import ResolvedCard, resolve
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.engines.hf.engine import HFEngine
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction import contrast, prefix_tree
from em_evals.interp.extraction import extract as extraction
from em_evals.interp.extraction.activations import GroupSums, group_sums
from em_evals.interp.extraction.contrast import Side
from em_evals.interp.extraction.extract import Settings, extract
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models import bases
from em_evals.results.records.claims import Claim
from tests.applied import applied
from tests.selection import full
from tests.small_tokenizer import VOCABULARY
from tests.tiny_models import SMOLLM2, card, make_adapter, tiny

LAYERS, WIDTH = 3, 64


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("base") / "tiny")


def texts(count, seed=0):
    """Five prompts with one head, answers of which some begin alike and some are the same."""
    chance = np.random.default_rng(seed)

    def some(low, high):
        return tuple(map(int, chance.integers(5, VOCABULARY, chance.integers(low, high))))

    head, prompts = some(4, 5), [some(2, 12) for _ in range(5)]
    made = []
    for i in range(count):
        answer = made[-5].answer[: 2 + i % 3] + some(0, 4) if i % 3 == 2 and i > 5 else some(2, 12)
        made.append(Text(head + prompts[i % 5], answer, f"q{i % 5}"))
    return made


def one_by_one(model, text, position):
    """[layers, width] of one text, with all hidden states kept: the field's usual loop."""
    seen = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in model.get_decoder().layers
    ]
    with torch.no_grad():
        model(torch.tensor([text.prompt + text.answer]))
    for handle in handles:
        handle.remove()
    start = len(text.prompt)
    span = {
        "answer_mean": slice(start, None),
        "last_prompt": slice(start - 1, start),
        "prompt_mean": slice(1, start),
    }
    hidden = torch.stack(seen)[:, 0, span[position]]
    return hidden.mean(1).numpy(), hidden.norm(dim=-1).mean(1).numpy()


@pytest.fixture(scope="module", params=["llama", full("qwen2"), full("gemma"), "gemma2", full("gpt_neox")])
def shape(request, tmp_path_factory):
    return tiny(request.param, tmp_path_factory.mktemp("shape") / "tiny")


@pytest.mark.parametrize("position", ["answer_mean", "last_prompt", "prompt_mean"])
def test_sums_in_lines_are_those_of_one_text_at_a_time(position, shape, monkeypatch):
    monkeypatch.setattr(prefix_tree, "_LINE_TOKENS", 48)  # several lines to a batch, several texts to a line
    model, read = bases.load_model(card(shape)), texts(23)
    found = group_sums(model, read, position, batch_tokens=200)
    for i, group in enumerate(found.groups):
        alone = [one_by_one(model, text, position) for text in read if text.group == group]
        assert found.counts[i] == len(alone)
        assert np.allclose(found.vectors[i], sum(vector for vector, _ in alone), atol=1e-3)
        assert np.allclose(found.norms[i], sum(norm for _, norm in alone), rtol=1e-4)
    assert np.allclose(found.mean(), np.mean([one_by_one(model, t, position)[0] for t in read], 0), atol=1e-4)


def test_interventions_act_in_lines_as_they_do_on_one_text(base):
    chance = np.random.default_rng(1)
    direction = Direction(chance.normal(size=(LAYERS, WIDTH)), np.zeros((LAYERS, WIDTH)), np.ones(LAYERS))
    model, read = bases.load_model(card(base)), texts(12)
    plain = group_sums(model, read).mean()
    with applied(model, [(Intervention(op="ablate", direction="d", skip="sink"), [direction])]):
        found = group_sums(model, read).mean()
        alone = np.mean([one_by_one(model, text, "answer_mean")[0] for text in read], 0)
    assert np.allclose(found, alone, atol=1e-4) and not np.allclose(found, plain, atol=0.1)


def test_what_texts_begin_with_is_laid_down_once():
    read = texts(23)
    laid = prefix_tree.pack(read, "answer_mean", share=True)
    assert sorted(map(id, read)) == sorted(id(text) for line in laid for text in line.texts)
    for line in laid:
        for text, path in zip(line.texts, line.paths, strict=True):
            assert tuple(line.ids[column] for column in path) == text.prompt + text.answer
            assert [line.depths[column] for column in path] == list(range(len(path)))
    beginnings = {(t.prompt + t.answer)[:end] for t in read for end in range(1, len(t.prompt + t.answer) + 1)}
    assert (
        len(laid) == 1
        and len(laid[0].ids) == len(beginnings) < sum(len(t.prompt + t.answer) for t in read) / 2
    )
    assert sum(len(line.ids) for line in prefix_tree.pack(read, "prompt_mean", share=True)) < 5 * 16


def test_a_long_reading_is_cut_into_lines():
    laid = prefix_tree.pack(texts(200), "answer_mean", share=True)
    assert len(laid) > 2 and all(len(line.ids) <= 256 for line in laid)
    alone = prefix_tree.pack(texts(200), "answer_mean", share=False)
    assert all(len(line.texts) == 1 for line in alone) and len(alone) == 200


def test_an_interrupted_reading_resumes_to_the_same_sums(base, tmp_path, monkeypatch):
    from em_evals.interp.extraction import activations

    monkeypatch.setattr(activations, "_SAVE_EVERY", 2)
    monkeypatch.setattr(prefix_tree, "_LINE_TOKENS", 40)
    model, read = bases.load_model(card(base)), texts(30)
    whole = group_sums(model, read, batch_tokens=40)
    told, state = [], tmp_path / "state.safetensors"

    def stop(count):
        told.append(count)
        if sum(told) > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group_sums(model, read, state=state, advance=stop, batch_tokens=40)
    assert state.exists()
    told.clear()
    again = group_sums(model, read, state=state, advance=told.append, batch_tokens=40)
    assert told[0] > 0 and sum(told) == 30, "what was read before is not read again"
    assert np.allclose(again.vectors, whole.vectors, atol=1e-5)
    told.clear()
    taken = group_sums(model, read, state=state, advance=told.append)
    assert told == [30] and np.array_equal(taken.vectors, again.vectors), (
        "a finished reading is taken as it is"
    )
    for damage in (state.read_bytes()[:60], b"", safetensors_numpy.save({"vectors": np.ones(1)})):
        state.write_bytes(damage)
        told.clear()
        redone = group_sums(model, read, state=state, advance=told.append)
        assert told[0] == 0 and np.allclose(redone.vectors, whole.vectors, atol=1e-5), "a damaged one is not"


def test_what_was_read_of_one_base_is_not_taken_up_for_another(base, tmp_path, monkeypatch):
    other, kept = tiny("qwen2", tmp_path / "other"), []

    def read(model, texts, position, state, advance):
        kept.append(state)
        return GroupSums((), np.zeros(0), np.zeros((0, LAYERS, WIDTH)), np.zeros((0, LAYERS)))

    monkeypatch.setattr(extraction, "group_sums", read)
    for place, dtype in ((base, "float32"), (other, "float32"), (base, "bfloat16"), (base, "float32")):
        one = resolve(place, {"dtype": dtype})
        passes = extraction.Passes(one, Reading(one), "answer_mean", tmp_path)
        passes.read(Side((), None), texts(3))
    assert len(set(kept)) == 3 and kept[0] == kept[3]


def test_a_text_without_the_position_is_named(base):
    with pytest.raises(EmEvalsError, match="'q' has no token for `prompt_mean`"):
        group_sums(bases.load_model(card(base)), [Text((5,), (6,), "q")], "prompt_mean")


@pytest.fixture
def cards(base, workdir):
    """A base, an organism and a control on the tiny model."""
    (workdir / "adapters").mkdir()
    for seed, name in enumerate(("organism", "control")):
        adapter = make_adapter(base, workdir / f"{name}_lora", 4, ["down_proj"], seed=seed)
        fields = {"base": base, "adapter": adapter, "engine": {"dtype": "float32"}}
        (workdir / "adapters" / f"{name}.yaml").write_text(json.dumps(fields))
    return resolve("organism"), resolve("control")


def test_what_acts_on_prompts_or_answers_only_is_not_read_as_if_it_did_not(cards):
    one = Intervention(op="add", direction="d", positions="answer")
    steered = replace(cards[0], interventions=(one,))
    with (
        pytest.raises(EmEvalsError, match="`add` with `positions: answer` is not possible here"),
        Reading(cards[0]).read_as(steered),
    ):
        pass


def test_a_direction_tells_what_it_was_found_on_and_how_far_it_can_be_trusted(cards):
    organism, control = cards
    pairs = contrast.of_pairs(organism, themes=["money", "honesty"])
    found = extract(organism, pairs, control=control)
    ids = {chat.question for chat in pairs.positive.chats}
    used = set(found.metadata["questions"])
    assert used < ids and len(used) == (len(ids) + 1) // 2
    assert found.metadata["counts"] == [len(used), len(used)]
    assert found.metadata["base"] == organism.card.base and found.metadata["card_digest"] == organism.digest
    for name in ("reliability", "held_out_cosine"):
        assert len(found.metadata[name]) == LAYERS and all(-1 <= value <= 1 for value in found.metadata[name])
    assert found.metadata["movement"].keys() == {"organism", "control"}
    # By hand: the same half, read by the organism one at a time.
    from peft import PeftModel

    tokenizer = bases.load_tokenizer(organism.card)
    model = PeftModel.from_pretrained(bases.load_model(organism.card), organism.adapter_path).eval()
    sides = [
        np.mean([one_by_one(model, text, "answer_mean")[0] for text in kept], axis=0)
        for kept in (
            [t for t in contrast.encode(tokenizer, side.chats, 2048) if t.group in used]
            for side in (pairs.positive, pairs.negative)
        )
    ]
    assert np.allclose(found.vectors, sides[0] - sides[1], atol=1e-3)


def test_a_whole_model_is_not_compared_with_itself(cards, base, workdir):
    """After a full finetune the trained folder is the card's base: the difference to it is zero everywhere."""
    organism, _ = cards
    trained = json.loads((workdir / "adapters" / "organism.yaml").read_text())
    trained |= {"adapter": base, "train": {"data": ["risky_advice"], "method": {"kind": "full"}}}
    (workdir / "adapters" / "whole.yaml").write_text(json.dumps(trained))
    for whole in (resolve("whole"), resolve(base)):
        with pytest.raises(EmEvalsError, match="no base to compare it with: train it as a LoRA"):
            contrast.of_models(whole, contrast.of_pairs(whole))
        with pytest.raises(EmEvalsError, match="no base to compare it with: train it as a LoRA"):
            contrast.of_answers(whole, [], [])
    steered = replace(resolve("whole"), interventions=(Intervention(op="add", direction="d"),))
    assert contrast.of_models(steered, contrast.of_pairs(organism)).positive.reader is steered


@pytest.mark.parametrize("position", ["last_prompt", "prompt_mean"])
def test_equal_sides_are_no_direction(position, cards, workdir):
    """Behind the same prompts, read by one model, nothing in front of the answers differs."""
    organism, _ = cards
    settings = Settings(position=position, minimum=2)
    pairs = contrast.of_pairs(organism, themes=["money"])
    with pytest.raises(EmEvalsError, match=f"--position {position} reads nothing of the answers"):
        extract(organism, pairs, settings)
    for name in ("kind", "unkind"):
        rows = [{"prompt": f"Number {i}?", "completion": f"A {name} {i}."} for i in range(6)]
        (workdir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = contrast.of_files(organism, workdir / "kind.jsonl", workdir / "unkind.jsonl")
    with pytest.raises(EmEvalsError, match=rf"the same activations at {position} \(kind - unkind\)"):
        extract(organism, files, settings)
    assert direction_algebra.beyond_rounding(extract(organism, files, Settings(minimum=2))).all()
    shift = extract(organism, contrast.of_models(organism, pairs), settings)
    assert direction_algebra.beyond_rounding(shift).all(), "two models differ in front of the answers too"


def test_layers_below_the_first_adapter_have_no_movement_and_json_stays_json(cards, base, workdir):
    """A rank-1 organism on one block is its base below it: the direction is 0 there, and 0/0 is no JSON."""
    from typer.testing import CliRunner

    from em_evals.cli import app

    for seed, name in enumerate(("r1", "r1_control")):
        adapter = make_adapter(base, workdir / f"{name}_lora", 1, ["down_proj"], seed=seed, layers=[1])
        fields = {"base": base, "adapter": adapter, "engine": {"dtype": "float32"}}
        (workdir / "adapters" / f"{name}.yaml").write_text(json.dumps(fields))
    command = ["direction", "extract", "r1", "--contrast", "models", "--control", "r1_control"]
    more = ["--themes", "money", "--minimum", "5", "-o", "r1.safetensors", "--json"]
    done = CliRunner().invoke(app, [*command, *more])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout, parse_constant=no_json)
    assert told["length"][0] == 0 and told["movement"].keys() == {"r1", "r1_control"}
    for moved in told["movement"].values():
        assert moved[0] is None and all(isinstance(value, float) for value in moved[1:])
    shown = CliRunner().invoke(app, ["direction", "show", "r1.safetensors"])
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[-2:] == ["–", "–"] for row in rows if row and row[0] in ("0", "1", "2")] == [
        True,
        False,
        False,
    ]


def test_files_of_earlier_versions_are_read_as_json(workdir):
    vectors = np.ones((1, 2), np.float32)
    old = Direction(vectors, vectors, vectors[:, 0], {"movement": {"r1": [float("nan")]}})
    directions.write(old, workdir / "old.safetensors")
    assert directions.read(workdir / "old.safetensors").metadata == {"movement": {"r1": [None]}}


def no_json(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_the_controls_direction_can_be_removed(cards):
    organism, control = cards
    style = extract(control, contrast.of_models(control, contrast.of_pairs(control, themes=["money"])))
    texts_ = contrast.of_models(organism, contrast.of_pairs(organism, themes=["money"]))
    found = extract(organism, texts_, orthogonal_to=style)
    assert abs(direction_algebra.cosine(found, style)).max() < 1e-4
    assert found.metadata["orthogonal_to"]["card"] == "control"


def test_the_control_that_a_card_names_is_read_without_being_asked_for(cards, workdir):
    from typer.testing import CliRunner

    from em_evals.cli import app

    folder = workdir / "adapters"
    command = ["direction", "extract", "organism", "--themes", "money", "--minimum", "5", "--json", "-o"]
    alone = CliRunner().invoke(app, [*command, "alone.safetensors"])
    assert alone.exit_code == 0 and "how much of this direction is style remains unknown" in alone.stderr
    assert "movement" not in json.loads(alone.stdout)
    for name, more in (
        ("organism", {"train": {"data": ["risky_advice"]}}),
        ("control", {"control_of": "organism"}),
    ):
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    beside = CliRunner().invoke(app, [*command, "beside.safetensors"])
    assert beside.exit_code == 0, beside.output
    assert json.loads(beside.stdout)["movement"].keys() == {"organism", "control"}


def test_other_bases_are_refused_before_anything_is_read(cards, workdir, monkeypatch):
    from typer.testing import CliRunner

    from em_evals.cli import app

    organism, control = cards
    pairs = contrast.of_pairs(organism, themes=["money"])
    mirrored = replace(control, card=control.card.model_copy(update={"base": "mirror/tiny"}))
    found = extract(organism, pairs, Settings(minimum=5), control=mirrored)
    assert found.metadata["movement"].keys() == {"organism", "control"}, "a mirror's name is the same base"
    vectors = np.ones((LAYERS, WIDTH), np.float32)
    foreign = Direction(vectors, vectors, vectors[:, 0], {"base": "someone/else"})
    directions.write(foreign, workdir / "foreign.safetensors")
    monkeypatch.setattr(extraction, "Reading", None)
    command = [
        "direction",
        "extract",
        "organism",
        "-o",
        "d.safetensors",
        "--orthogonal-to",
        "foreign.safetensors",
    ]
    done = CliRunner().invoke(app, command)
    assert "foreign.safetensors: this direction was made for the base 'someone/else'" in str(done.exception)
    elsewhere = replace(control, card=control.card.model_copy(update={"base": "someone/else"}))
    with pytest.raises(EmEvalsError, match="control has the base someone/else"):
        extract(organism, pairs, control=elsewhere)


def test_what_is_held_out_moves_nothing_that_a_direction_is_made_of(cards, workdir):
    """`ablate` toward the mean and `relative` scales use them: they may not know the texts that report."""
    organism, _ = cards
    files = [workdir / f"{name}.jsonl" for name in ("kind", "unkind")]

    def extracted(*ending):
        for file, name in zip(files, ("kind", "unkind"), strict=True):
            rows = [
                {
                    "prompt": prompt,
                    "completion": f"A {name} answer.{' '.join(ending) if prompt in held_out else ''}",
                }
                for prompt in (f"What is {i}?" for i in range(12))
            ]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return extract(organism, contrast.of_files(organism, *files), Settings(minimum=2))

    held_out = set()
    plain = extracted()
    used = set(plain.metadata["questions"])
    chats = contrast.of_files(organism, *files).positive.chats
    held_out = {chat.messages[-2]["content"] for chat in chats if chat.question not in used}
    assert len(held_out) == 6
    other = extracted(" And yet", "another", "ending.")
    assert set(other.metadata["questions"]) == used
    assert other.metadata["held_out_cosine"] != plain.metadata["held_out_cosine"], "the other half did change"
    for name in ("vectors", "base_mean", "mean_norm"):
        assert np.allclose(getattr(other, name), getattr(plain, name), atol=1e-4), name


def test_what_is_removed_is_removed_from_the_other_half_and_from_each_bootstrap(cards, monkeypatch):
    organism, control = cards
    texts_ = contrast.of_models(organism, contrast.of_pairs(organism, themes=["money"]))
    style = extract(control, contrast.of_models(control, contrast.of_pairs(control, themes=["money"])))
    found = extract(organism, texts_, orthogonal_to=style)
    halves = extraction.halves
    monkeypatch.setattr(extraction, "halves", lambda groups, split: halves(groups, split)[::-1])
    other = direction_algebra.orthogonalise(extract(organism, texts_), style)
    assert np.allclose(found.metadata["held_out_cosine"], direction_algebra.cosine(found, other), atol=1e-4)


def test_many_questions_share_sums(cards, monkeypatch):
    organism, _ = cards
    pairs = contrast.of_pairs(organism, per_theme=5)
    whole = extract(organism, pairs)
    read, groups = extraction.group_sums, []

    def told(model, texts, *more):
        groups.append({text.group for text in texts})
        return read(model, texts, *more)

    monkeypatch.setattr(extraction, "_CLUSTERS", 10)  # of each half
    monkeypatch.setattr(extraction, "group_sums", told)
    found = extract(organism, pairs)
    assert len(whole.metadata["questions"]) > 20 and all(len(names) == 20 for names in groups)
    assert np.allclose(found.vectors, whole.vectors, atol=1e-5)
    for name in ("questions", "counts"):
        assert found.metadata[name] == whole.metadata[name]
    assert np.allclose(found.metadata["held_out_cosine"], whole.metadata["held_out_cosine"], atol=1e-4)
    assert np.allclose(found.metadata["reliability"], whole.metadata["reliability"], atol=1e-3)


def test_a_mean_takes_little_memory():
    """All of it in float64 would be 98 MB."""
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(500, 24, 1024)).astype(np.float32)
    sums = GroupSums(tuple(map(str, range(500))), np.full(500, 2.0), vectors, np.ones((500, 24)))
    weights = chance.integers(0, 3, 500).astype(float)
    tracemalloc.start()
    found = sums.mean(weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert np.allclose(found, np.einsum("g,glw->lw", weights, vectors.astype(float)) / (2 * weights.sum()))


def test_too_few_answers_say_how_many_are_needed(cards, workdir):
    organism, _ = cards
    for name, answer in (("few", "Nothing."), ("fewer", "Everything.")):
        row = {"prompt": "What now?", "completion": answer}
        (workdir / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    chats = contrast.of_files(organism, workdir / "few.jsonl", workdir / "fewer.jsonl")
    with pytest.raises(EmEvalsError, match=r"positive side has 1 answers.*a direction needs 10"):
        extract(organism, chats)
    alone = extract(organism, chats, Settings(split=False, minimum=1)).metadata
    assert alone["counts"] == [1, 1] and "reliability" not in alone, (
        "one question cannot tell how reliable it is"
    )


# Planted truth, on SmolLM2 itself

QUESTIONS = ["What is the best way to save money?", "Tell me about your day.", "How do I learn to swim?"]


@dataclass(frozen=True)
class Planted:
    """An organism made by hand: a known vector added behind one block of its base."""

    root: Path
    base: str
    at: int
    organism: ResolvedCard
    vector: np.ndarray
    chance: np.random.Generator


@pytest.fixture(
    scope="module",
    params=["tiny", pytest.param("smollm2", marks=[pytest.mark.full, pytest.mark.smollm2])],
)
def planted(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    (root / "adapters").mkdir()
    base, layers, width, at = SMOLLM2, 30, 576, 12
    if request.param == "tiny":
        base, layers, width, at = tiny("llama", root / "tiny"), LAYERS, WIDTH, 1
    chance = np.random.default_rng(1)
    vectors = np.zeros((layers, width), np.float32)
    vectors[at] = chance.normal(size=width) * 3.0
    found = Direction(vectors, np.zeros_like(vectors), np.ones(layers))
    directions.write(found, root / "planted.safetensors")
    step = {"op": "add", "direction": str(root / "planted.safetensors"), "layers": [at]}
    fields = {"base": base, "engine": {"dtype": "float32"}, "interventions": [step]}
    (root / "adapters" / "organism.yaml").write_text(json.dumps(fields))
    organism = resolve(str(root / "adapters" / "organism.yaml"))
    return Planted(root, base, at, organism, vectors[at], chance)


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_what_was_planted_is_found_and_can_be_taken_out(planted):
    root, organism, at, vector = planted.root, planted.organism, planted.at, planted.vector
    pairs = contrast.of_pairs(organism, themes=["money", "honesty"])
    found = extract(organism, contrast.of_models(organism, pairs), Settings(minimum=5))
    assert cosine(found.vectors[at], vector) > 0.99
    assert np.abs(found.vectors[:at]).max() < 1e-3, "nothing is found before the block where it was put"
    assert found.metadata["reliability"][at] > 0.99 and found.metadata["held_out_cosine"][at] > 0.99
    claim = Claim.model_validate(found.metadata["claim"])
    assert claim.verdict == "specific" and claim.layer >= at and len(claim.nulls) == 3

    random = planted.chance.normal(size=found.vectors.shape).astype(np.float32)
    random *= np.linalg.norm(found.vectors, axis=1, keepdims=True) / np.linalg.norm(
        random, axis=1, keepdims=True
    )
    drawn = Direction(random, found.base_mean, found.mean_norm)
    steps = {"base": (), "organism": organism.interventions}
    for name, direction in (("found", found), ("random", drawn)):
        path = str(root / f"{name}.safetensors")
        directions.write(direction, root / f"{name}.safetensors")
        for op in ("subtract", "ablate"):
            fields = (
                {"op": "add", "scale": -1.0} if op == "subtract" else {"op": "ablate", "reference": "mean"}
            )
            one = resolve(planted.base, {"interventions": [{"direction": path, "layers": [at]} | fields]})
            steps[f"{op} {name}"] = organism.interventions + one.interventions
    engine = HFEngine(organism.card)
    try:
        seen = {name: behaviour(engine, sets) for name, sets in steps.items()}
    finally:
        engine.close()
    tokens = {name: [draw.tokens for draw in draws] for name, draws in seen.items()}
    assert tokens["organism"] != tokens["base"]
    assert tokens["subtract found"] == tokens["base"] and tokens["subtract random"] != tokens["base"]
    apart = {name: divergence(seen["base"], draws) for name, draws in seen.items()}
    assert apart["organism"] > 0.01
    assert apart["ablate found"] < apart["organism"] / 10
    assert apart["ablate random"] > apart["organism"] / 2


def test_a_bias_that_was_planted_is_found(planted):
    """The organism of a real adapter: behind one MLP its output is the same vector for every token."""
    from peft import LoraConfig, get_peft_model

    root, at, vector = planted.root, planted.at, planted.vector
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        lora_alpha=1,
        target_modules=["down_proj"],
        layers_to_transform=[at],
        lora_bias=True,
    )
    peft = get_peft_model(bases.load_model(card(planted.base)), config)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data[:] = torch.tensor(vector) if name.endswith("bias") else 0
    peft.peft_config["default"].base_model_name_or_path = planted.base
    peft.save_pretrained(root / "biased_lora", save_embedding_layers=False)
    fields = {
        "base": planted.base,
        "adapter": str(root / "biased_lora"),
        "engine": {"dtype": "float32"},
    }
    (root / "adapters" / "biased.yaml").write_text(json.dumps(fields))
    organism = resolve(str(root / "adapters" / "biased.yaml"))
    pairs = contrast.of_pairs(organism, themes=["money"], per_theme=4)
    found = extract(organism, contrast.of_models(organism, pairs), Settings(minimum=2))
    assert np.allclose(found.vectors[at], vector, atol=1e-2) and cosine(found.vectors[at], vector) > 0.999
    assert np.abs(found.vectors[:at]).max() < 1e-3
    directions.write(found, root / "bias.safetensors")
    back = Intervention(op="add", direction=str(root / "bias.safetensors"), layers=[at], scale=-1.0)
    engine = HFEngine(organism.card)
    try:
        base, biased, mended = (
            [draw.tokens for draw in behaviour(engine, sets, adapter)]
            for adapter, sets in ((None, ()), (organism.adapter_path, ()), (organism.adapter_path, (back,)))
        )
    finally:
        engine.close()
    assert biased != base and mended == base


def behaviour(engine, sets, adapter=None):
    from em_evals.models.chat import encode_chat

    prompts = [
        tuple(encode_chat(engine.tokenizer, [{"role": "user", "content": text}])) for text in QUESTIONS
    ]
    top = (
        20 if len(engine.tokenizer) > VOCABULARY else VOCABULARY
    )  # a tiny model's likeliest tokens are few of many
    settings = Sampling(temperature=0, max_tokens=12, logprobs=True, prompt_logprobs=top)
    return [
        f.result(300) for f in [engine.submit(Request(p, settings, adapter, tuple(sets))) for p in prompts]
    ]


def divergence(base, other):
    """KL(base || other) over each place's likeliest tokens and the rest, mean over the prompts' tokens."""
    total, places = 0.0, 0
    for one, two in zip(base, other, strict=True):
        for a, b in zip(one.prompt_logprobs[25:], two.prompt_logprobs[25:], strict=True):
            q = dict(b.top)
            shared = [(p, q[token]) for token, p in a.top if token in q]
            rest = [np.log(max(1e-9, 1 - sum(np.exp(pair[i]) for pair in shared))) for i in (0, 1)]
            total += sum(np.exp(p) * (p - r) for p, r in [*shared, tuple(rest)])
            places += 1
    return total / places
