"""em_mini: the items are right, their options alone say nothing, a small base passes, a random or broken model does not."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

RETENTION = Path(__file__).parents[2] / "tasks" / "retention"
ITEMS = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted((RETENTION / "items").glob("*.jsonl"))
}
CHOSEN = [name for name in ITEMS if name != "instructions"]
FAMILIES = {"arithmetic", "facts", "reading", "logic", "grammar", "instructions", "programs", "copying"}


@pytest.fixture(scope="module")
def sources():
    """The modules that wrote the items."""
    sys.path.insert(0, str(RETENTION))
    import families
    import generate

    yield families, generate
    sys.path.remove(str(RETENTION))


def answer(item):
    return item["choices"][item["answer"]]


def test_eight_families_in_four_levels():
    assert set(ITEMS) == FAMILIES
    assert sum(map(len, ITEMS.values())) >= 600
    for name, items in ITEMS.items():
        assert [item["level"] for item in items] == [1, 2, 3, 4] * (len(items) // 4), name
        assert len({item["id"] for item in items}) == len(items)
        assert len({item["question"] for item in items}) == len(items)
        assert all(re.fullmatch(r"em-evals-canary-[0-9a-f-]{36}", item["canary"]) for item in items)


def test_the_same_seed_writes_the_same_items(sources):
    _, generate = sources
    for name, items in ITEMS.items():
        assert list(generate.rows(name)) == items


@pytest.mark.parametrize("name", CHOSEN)
def test_positions_and_lengths_are_balanced(name):
    items = ITEMS[name]
    width = len(items[0]["choices"])
    assert set(Counter(item["answer"] for item in items).values()) == {len(items) // width}
    for item in items:
        assert len(item["choices"]) == len(set(item["choices"])) == width
    # The longest option is right as often as chance would have it (ties share).
    hits = 0.0
    for item in items:
        sizes = list(map(len, item["choices"]))
        longest = [i for i, size in enumerate(sizes) if size == max(sizes)]
        hits += (item["answer"] in longest) / len(longest)
    assert stats.binomtest(round(hits), len(items), 1 / width).pvalue > 0.01


@pytest.mark.parametrize("name", CHOSEN)
def test_options_alone_do_not_give_the_answer_away(name):
    """An adversary that reads characters and words of the options, never the question, learns nothing."""
    items = ITEMS[name]
    width = len(items[0]["choices"])
    texts = [choice for item in items for choice in item["choices"]]
    labels = [place == item["answer"] for item in items for place in range(width)]
    # Items with the same options stand in one fold: they differ in the answer by design.
    groups = np.repeat([hash(tuple(sorted(item["choices"]))) for item in items], width)
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)), LogisticRegression(max_iter=1000)
    )
    scores = cross_val_predict(model, texts, labels, groups=groups, cv=GroupKFold(5), method="predict_proba")[
        :, 1
    ]
    picks = scores.reshape(len(items), width)
    right = sum(item["answer"] == row.argmax() for item, row in zip(items, picks, strict=True))
    assert stats.binomtest(right, len(items), 1 / width, alternative="greater").pvalue > 0.01


def test_arithmetic_and_programs_are_right(sources):
    families, _ = sources
    for item in ITEMS["arithmetic"]:
        assert str(eval(item["question"].removesuffix(" ="))) == answer(item)
    for item in ITEMS["programs"]:
        assert families.printed(item["question"].removesuffix("\n# prints")) == answer(item)


def test_copies_are_copies():
    for item in ITEMS["copying"]:
        text, level = item["question"], item["level"]
        if level == 3:
            first, key = text.split(". Again: ")
            assert dict(pair.split() for pair in first.split(", "))[key] == answer(item)
            continue
        text = text.removeprefix("one two three, three two one; ")
        first, again = re.split({1: r"\. ", 2: "; ", 4: ", "}[level], text, maxsplit=1)
        row, said = re.findall(r"\w+", first), re.findall(r"\w+", again)
        assert (row[::-1] if level == 4 else row)[: len(said) + 1] == [*said, answer(item)]


def test_orders_and_rows_are_right():
    for item in ITEMS["logic"]:
        text = item["question"]
        if item["level"] == 2:
            values = list(map(int, re.findall(r"\d+", text)))
            assert int(answer(item)) == 2 * values[-1] - values[-2]
        elif item["level"] >= 3:
            above = [(a, b) for a, b in re.findall(r"(\w+) is taller than (\w+)", text)]
            above += [(b, a) for a, b in re.findall(r"(\w+) is shorter than (\w+)", text)]
            order = sorted({name for pair in above for name in pair}, key=lambda n: -_below(n, above))
            place = ["The tallest", "The second tallest", "The second shortest", "The shortest"]
            assert answer(item) == order[place.index(re.search(r"The (second )?\w+(?= is$)", text).group())]


def _below(name, above):
    return sum(1 + _below(other, above) for one, other in above if one == name)


def test_stories_are_read_right():
    for item in ITEMS["reading"]:
        text, level = item["question"], item["level"]
        if level == 1:
            name = re.search(r"(\w+) is a$", text).group(1)
            assert f"{name} is a {answer(item)}." in text
        elif level in (2, 3):
            thing = re.search(r"(?:The|Now the) (\w+) is in the$", text).group(1)
            told = f"the {thing} in the" if level == 2 else f"the {thing} was moved to the"
            assert f"{told} {answer(item)}" in text
        else:
            name = re.search(r"The house of (\w+) is$", text).group(1)
            pet = re.search(rf"{name} owns the (\w+)", text).group(1)
            assert f"The owner of the {pet} lives in the {answer(item)} house" in text


def test_each_option_is_right_as_often_as_the_others():
    """Facts and grammar ask all siblings: whoever knows the options only sees each of them right equally often."""
    for name in ("facts", "grammar"):
        right = {frozenset(item["choices"]): Counter() for item in ITEMS[name]}
        for item in ITEMS[name]:
            right[frozenset(item["choices"])][answer(item)] += 1
        for options, counts in right.items():
            assert set(counts) == options and len(set(counts.values())) == 1


# With models

lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")

from em_evals.content import directions
from em_evals.content.directions import Direction
from em_evals.engines import pool
from em_evals.lm_eval_plugin import command
from em_evals.lm_eval_plugin.model import EmLocal
from em_evals.models import bases
from tests.tiny_models import SMOLLM2, card, tiny

CHANCE = {f"em_mini_{name}": 1 / len(ITEMS[name][0]["choices"]) for name in CHOSEN} | {
    "em_mini_instructions": 0.0
}


def evaluate(model, step):
    """Right answers of each task, over every `step`-th item (levels take turns): {task: (right, items)}."""
    manager = command.task_manager_class()(include_defaults=False)
    chosen = {task: list(range(0, 80, step)) for task in CHANCE}
    found = lm_eval.simple_evaluate(
        model, tasks=["em_mini"], task_manager=manager, samples=chosen, bootstrap_iters=0
    )
    return {task: (sum(row["acc"] for row in rows), len(rows)) for task, rows in found["samples"].items()}


def above(task, right, items):
    """Whether the 95% interval lies above chance."""
    low = stats.binomtest(int(right), items).proportion_ci(method="wilson").low
    return low > CHANCE[task] + 1e-9


@pytest.fixture(scope="module")
def base():
    yield evaluate(EmLocal(SMOLLM2, dtype="float32"), 5)
    pool.close_engines()


@pytest.mark.full
@pytest.mark.smollm2
def test_a_small_base_is_above_chance_on_five_tasks(base):
    assert sum(above(task, *found) for task, found in base.items()) >= 5, base


@pytest.mark.full
@pytest.mark.smollm2
def test_the_base_cannot_guess_from_the_options(base):
    """The likeliest option without any question is right no more often than chance."""
    from lm_eval.api.instance import Instance

    model = EmLocal(SMOLLM2, dtype="float32")
    options = sorted({choice for name in CHOSEN for item in ITEMS[name] for choice in item["choices"]})
    asked = [
        Instance("loglikelihood", {}, ("", f" {one}"), i, metadata=("t", i, 1))
        for i, one in enumerate(options)
    ]
    likely = dict(zip(options, [ll for ll, _ in model.loglikelihood(asked, disable_tqdm=True)], strict=True))
    for name in CHOSEN:
        picks = [max(range(len(i["choices"])), key=lambda k: likely[i["choices"][k]]) for i in ITEMS[name]]
        right = sum(pick == item["answer"] for pick, item in zip(picks, ITEMS[name], strict=True))
        chance = CHANCE[f"em_mini_{name}"]
        assert stats.binomtest(right, len(picks), chance, alternative="greater").pvalue > 0.01, name


@pytest.mark.full
@pytest.mark.smollm2
def test_a_broken_model_is_clearly_below_its_base(base, tmp_path):
    """Ablating what all tokens share, at every layer and the first token too, takes the sink away."""
    from transformers import AutoModelForCausalLM

    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(bases.locate(SMOLLM2), dtype=torch.float32)
    ids = bases.load_tokenizer(card()).encode(
        "The weather was fine, and we went for a walk.", return_tensors="pt"
    )
    with torch.no_grad():
        streams = model(ids, output_hidden_states=True).hidden_states[1:]
    means = np.stack([stream[0].mean(0).numpy() for stream in streams])
    path = tmp_path / "shared.safetensors"
    norms = np.linalg.norm(means, axis=1).astype(np.float32)
    directions.write(Direction(means, np.zeros_like(means), norms, {"base": SMOLLM2}), path)
    broken = EmLocal(SMOLLM2, dtype="float32", interventions=[{"op": "ablate", "direction": str(path)}])
    found = evaluate(broken, 5)
    lost = sum(base[task][0] - right for task, (right, _) in found.items())
    items = sum(items for _, items in found.values())
    assert lost / items > 0.2, found


@pytest.mark.full
def test_a_random_model_is_at_chance(tmp_path):
    place = tiny("llama", tmp_path / "random")
    found = evaluate(EmLocal(place, dtype="float32"), 1)
    pool.close_engines()
    for task, (right, items) in found.items():
        # Eight tasks: each at 1%.
        assert stats.binomtest(int(right), items, CHANCE[task]).pvalue > 0.01, task
    assert {task: items for task, (_, items) in found.items()} == dict.fromkeys(CHANCE, 80)
