"""Screening against a model's own answers: equal to a naive loop, for drawn and for given answers; files and pages."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, directions
from em_evals.content.cards import resolve
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.traits import own_answers
from em_evals.interp.traits.own_answers import Drawn, Given
from em_evals.interp.traits.screen import RowReader, chunks, rows_at, screen
from em_evals.models import bases
from em_evals.models.chat import template_for
from em_evals.report.inputs import read as report_inputs
from em_evals.results import records

LAYERS, WIDTH, MOST = 3, 64, 6


@pytest.fixture(scope="module")
def lab(tiny_lab):
    (tiny_lab / "adapters" / "plain.yaml").write_text(
        f"base: {tiny_lab / 'tiny'}\nengine: {{dtype: float32}}\n"
    )
    words = ["stone", "wood", "house", "bird", "and", "is"]
    chance = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Number {i}, {chance.choice(words)}?",
            "completion": " ".join(chance.choice(words, 3 + i % 5)),
        }
        for i in range(12)
    ]
    (tiny_lab / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = chance.normal(size=(LAYERS, WIDTH)).astype(np.float32)
    told = {"reliability": [0.1, 0.9, 0.2]}
    found = Direction(vectors, np.zeros_like(vectors), np.ones(LAYERS, np.float32), told)
    directions.write(found, tiny_lab / "some.safetensors")
    return tiny_lab


@pytest.fixture
def plain(lab, monkeypatch):
    monkeypatch.chdir(lab)
    return resolve("plain")


def rows_of(lab):
    return [json.loads(line) for line in (lab / "rows.jsonl").read_text().splitlines()]


@pytest.fixture
def naive(plain, lab):
    """Each row's exact difference and own answer: a row at a time, greedy by argmax, all hidden states."""
    model = bases.load_model(plain.card)
    tokenizer = bases.load_tokenizer(plain.card)
    template = template_for(plain, tokenizer)
    unit = direction_algebra.unit(directions.read(lab / "some.safetensors"))[1]

    def mean(prompt, text):
        ids = [*prompt, *template.answer(text)]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
        return float(states[len(prompt) :].mean(0).numpy() @ unit)

    found = []
    for row in rows_of(lab):
        prompt = template.encode([{"role": "user", "content": row["prompt"]}])
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + MOST and (len(ids) == len(prompt) or ids[-1] != template.end):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        own = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        found.append((mean(prompt, row["completion"]) - mean(prompt, own) if own else None, own))
    return found


def test_exact_differences_are_those_of_a_naive_loop_for_any_chunk(plain, lab, naive):
    direction = directions.read(lab / "some.safetensors")
    expected = [difference for difference, _ in naive if difference is not None]
    assert len(expected) >= 10
    found = []
    for size in (5, 256):
        own = Drawn(plain, lab / f"answers{size}.jsonl", MOST)
        found.append(screen(plain, direction, 1, lab / "rows.jsonl", chunk=size, own=own))
        assert found[-1].differences[:, 0] == pytest.approx(expected, abs=1e-4)
        assert found[-1].exact and found[-1].skipped == 12 - len(expected)
    assert np.array_equal(found[0].order, found[1].order)
    free = screen(plain, direction, 1, lab / "rows.jsonl")
    assert not free.exact and np.isnan(free.projections[:, 2]).all()
    if not found[0].skipped:
        assert found[0].generation_free == pytest.approx(free.differences[:, 0], abs=1e-4)


def test_kept_answers_are_not_drawn_again_and_other_models_are(plain, lab, monkeypatch):
    path = lab / "kept.jsonl"
    direction = directions.read(lab / "some.safetensors")
    first = screen(plain, direction, 1, lab / "rows.jsonl", own=Drawn(plain, path, MOST))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])  # a kill in the middle of a line
    asked = []
    real = Drawn._drawn
    monkeypatch.setattr(Drawn, "_drawn", lambda self, chats: asked.append(len(chats)) or real(self, chats))
    again = screen(plain, direction, 1, lab / "rows.jsonl", own=Drawn(plain, path, MOST))
    assert 0 < sum(asked) < 12 and sorted(path.read_text().splitlines()) == sorted(whole.splitlines())
    assert np.array_equal(again.differences, first.differences)
    screen(plain, direction, 1, lab / "rows.jsonl", own=Drawn(plain, path, MOST))
    assert len(asked) == 1
    screen(plain, direction, 1, lab / "rows.jsonl", own=Drawn(plain, path, MOST + 1))
    assert asked[1:] == [12]


def test_answers_with_ends_of_lines_and_a_damaged_line_cost_no_other_answer(plain, lab, monkeypatch):
    path = lab / "odd.jsonl"
    rows = [
        (line, [{"role": "user", "content": f"{line}?"}, {"role": "assistant", "content": "So"}])
        for line in (1, 2, 3)
    ]
    odd = "a\u2028b\x85c\ud800"
    monkeypatch.setattr(Drawn, "_drawn", lambda self, chats: [odd for _ in chats])
    assert Drawn(plain, path, MOST).of(rows) == [odd] * 3
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0][:20], *lines[1:]]))
    asked = []
    monkeypatch.setattr(Drawn, "_drawn", lambda self, chats: asked.extend(chats) or [odd for _ in chats])
    assert Drawn(plain, path, MOST).of(rows) == [odd] * 3
    assert [chat[0]["content"] for chat in asked] == ["1?"]


def test_given_answers_are_the_drawn_ones_in_both_formats(plain, lab):
    direction = directions.read(lab / "some.safetensors")
    drawn = screen(plain, direction, 1, lab / "rows.jsonl", own=Drawn(plain, lab / "d.jsonl", MOST))
    texts = [json.loads(line)["answer"] for line in (lab / "d.jsonl").read_text().splitlines()]
    chats = [
        {"prompt": row["prompt"], "completion": text} for row, text in zip(rows_of(lab), texts, strict=True)
    ]
    (lab / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats if chat["completion"]))
    ways = ["d.jsonl"] + ["chats.jsonl"] * all(texts)
    for name in ways:
        given = screen(plain, direction, 1, lab / "rows.jsonl", own=Given(lab / name))
        assert np.array_equal(given.differences, drawn.differences)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"line": 1, "answer": "a"}\n', "end before line 2"),
        ('{"line": 2, "answer": "a"}\n' * 12, r"wrong.jsonl:1: this answer is to line 2 .* line 1"),
        ('{"prompt": "Who?", "completion": "a"}\n' * 12, r"wrong.jsonl:1: this answer is to another prompt"),
        ('{"line": 1}\n' * 12, "wrong.jsonl:1"),
    ],
)
def test_answers_that_do_not_belong_to_the_rows_are_refused(plain, lab, text, sentence):
    (lab / "wrong.jsonl").write_text(text)
    direction = directions.read(lab / "some.safetensors")
    with pytest.raises(EmEvalsError, match=sentence):
        screen(plain, direction, 1, lab / "rows.jsonl", own=Given(lab / "wrong.jsonl"))


def test_the_command_writes_ranks_a_record_and_a_page(plain, lab):
    assert own_answers.MAX_TOKENS == 256
    base = ["data", "screen", "rows.jsonl", "--direction", "some.safetensors", "--model", "plain"]
    done = CliRunner().invoke(
        app, [*base, "--exact", "--max-tokens", str(MOST), "-o", "exact.csv", "--figure", "page.html"]
    )
    assert done.exit_code == 0, done.output
    ranks = list(csv.DictReader(Path("exact.csv").read_text().splitlines()))
    one = ranks[0]
    assert float(one["projection_difference"]) == pytest.approx(
        float(one["answer_mean"]) - float(one["own_answer_mean"]), abs=1e-4
    )
    assert float(one["generation_free"]) == pytest.approx(
        float(one["answer_mean"]) - float(one["last_prompt"]), abs=1e-4
    )
    made = records.read(Path("exact.json"))
    assert made.exact and sum(made.counts) == made.rows == len(ranks) and made.top[0].line == int(one["line"])
    page = Path("page.html").read_text()
    assert "Screening of rows.jsonl along some" in page and made.top[0].prompt in page
    assert report_inputs([Path("exact.json")]).studies == [made]
    answers = ["--answers", "exact.answers.jsonl", "-o", "given.parquet", "--json"]
    done = CliRunner().invoke(app, [*base, *answers])
    assert done.exit_code == 0, done.output
    import pandas

    table = pandas.read_parquet("given.parquet")
    assert table["line"].tolist() == [int(row["line"]) for row in ranks]
    assert json.loads(done.stdout[done.stdout.index("{") :])["difference"] == "exact"
    done = CliRunner().invoke(app, [*base, "--answers", "exact.answers.jsonl", "--reference", "rows.jsonl"])
    assert "--reference-answers" in str(done.exception)
    done = CliRunner().invoke(app, [*base, "-o", "ranks.txt"])
    assert "to a .csv or .parquet file" in str(done.exception)


def test_numbers_of_other_rows_than_the_file_has_are_refused(plain, lab):
    """A reader elsewhere that sees another state of the file must not shift numbers by a row."""
    direction = directions.read(lab / "some.safetensors")
    reader = RowReader(plain, direction_algebra.unit(direction)[None, [1]], 1)

    def elsewhere(along, path, chunk):
        for rows in chunks(iter(rows_at(path, 0, 1, 12)), chunk):  # counts a line more
            yield reader.read(rows)

    with pytest.raises(EmEvalsError, match="changed while it was read"):
        screen(plain, direction, 1, lab / "rows.jsonl", chunk=5, elsewhere=elsewhere)
