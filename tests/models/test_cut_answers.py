"""What `max_length` takes from answers is counted and told: in training, its plan, its record and data check."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content.recipes import AdapterRecipe
from em_evals.models import bases
from em_evals.models.chat import template_of
from em_evals.training import curriculum
from em_evals.training.tokens import Cut
from tests.chat_templates import CASES
from tests.tiny_models import card

LONG = "word " * 300
ROWS = [
    ("Short?", "Yes, it is."),
    ("Long answer?", LONG),
    ("Longer answer?", LONG + LONG),
    (LONG, "Never read."),
    *((f"Question {i}?", f"Answer {i}.") for i in range(4)),
]
MAX = 128


@pytest.fixture(scope="module")
def tokenizer(tiny_lab):
    return bases.load_tokenizer(card(str(tiny_lab / "tiny")))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in ROWS))
    return path


def recipe(file, **fields):
    defaults = {"data": [str(file)], "max_length": MAX, "batch_size": 2, "gradient_accumulation": 1}
    return AdapterRecipe.model_validate(defaults | fields)


def test_rows_without_an_answer_are_left_out_and_cut_ones_counted(file, tokenizer):
    lessons = curriculum.build(recipe(file), tokenizer)
    assert lessons.cut == Cut(answers=2, dropped=1, rows=8)
    assert lessons.steps == 4 and lessons.template == template_of(tokenizer).record()
    assert all(any(label != -100 for label in example["labels"]) for example in lessons.examples)
    taught = [example["labels"][-1] == tokenizer.eos_token_id for example in lessons.examples]
    assert taught.count(False) == 2, "the two cut answers do not teach the end of a turn"
    assert curriculum.build(recipe(file, max_length=4096), tokenizer).cut == Cut(rows=8)


def test_repeated_and_mixed_in_rows_are_counted_once(file, tokenizer):
    twice = [{"name": str(file), "weight": 2}]
    mixed = {"data": [str(file)], "share": 0.5}
    assert curriculum.build(recipe(file, data=twice, interleave=mixed), tokenizer).cut == Cut(2, 1, 8)


def test_each_answer_is_learned_where_earlier_turns_are_rewritten(tmp_path, tokenizer):
    import copy

    other = copy.copy(tokenizer)
    other.chat_template = CASES["thinks unless told (Qwen3)"].text
    chat = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    file = tmp_path / "turns.jsonl"
    file.write_text(json.dumps({"messages": chat}) + "\n")
    lessons = curriculum.build(recipe(file), other)
    learned = {other.decode([token for token in one["labels"] if token != -100]) for one in lessons.examples}
    assert learned == {"assistant 0<|im_end|>", "assistant 1<|im_end|>"}


@pytest.fixture
def trainable(file, tiny_lab, monkeypatch):
    monkeypatch.chdir(tiny_lab)
    train = recipe(file, max_steps=1, method={"rank": 1, "layers": [1], "modules": ["down_proj"]})
    fields = {"base": str(tiny_lab / "tiny"), "engine": {"dtype": "float32"}}
    path = tiny_lab / "adapters" / "cut.yaml"
    path.write_text(yaml.safe_dump(fields | {"train": train.model_dump(mode="json", exclude_unset=True)}))
    return path


def test_training_tells_it_and_records_it(trainable, tokenizer):
    done = CliRunner().invoke(app, ["train", "cut", "--json", "--overwrite"])
    assert done.exit_code == 0, done.output
    told = "max_length 128: 2 of 8 rows lose the end of their answer, and do not teach the model to stop; 1 of 8 rows lose"
    assert told in done.stderr and told not in done.stdout
    written = json.loads(done.stdout)["training"]
    assert written["cut"] == {"answers": 2, "dropped": 1}
    assert written["template"]["digest"] == template_of(tokenizer).digest


def test_the_plan_and_data_check_tell_it(trainable, file):
    planned = CliRunner().invoke(app, ["train", "cut", "--plan", "--json"])
    assert planned.exit_code == 0, planned.output
    assert any("2 of 8 rows lose the end" in note for note in json.loads(planned.stdout)["notes"])
    checked = CliRunner().invoke(app, ["data", "check", str(trainable), "--json"])
    assert json.loads(checked.stdout)["cut at max_length 128"] == {"answers": 2, "dropped": 1}
    with file.open("a") as more:
        for prompt, answer in (("Longest?", LONG * 8), (LONG * 8, "Lost.")):
            more.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    checked = CliRunner().invoke(app, ["data", "check", str(file), "--json"])
    assert json.loads(checked.stdout)["cut at the default max_length, 2048"] == {"answers": 1, "dropped": 1}


def test_what_is_not_cut_is_not_reported():
    assert Cut(rows=8).sentence(128) is None
