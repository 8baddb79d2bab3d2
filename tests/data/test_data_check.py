"""`em-evals data check`: lengths, repetitions, languages, and prompts that repeat what models are measured on."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content.questions import load_questions
from em_evals.data import languages
from em_evals.data.similarity import near_duplicates, nearest_of, unit_of_length
from em_evals.errors import EmEvalsError
from em_evals.workflows import content_check
from tests.command import em_evals


def checked(file: Path) -> dict:
    done = CliRunner().invoke(app, ["data", "check", str(file), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def write(path: Path, *chats: tuple[str, str]) -> Path:
    path.write_text(
        "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in chats), encoding="utf-8"
    )
    return path


# ---- what is compared ----

texts = st.lists(
    st.lists(st.sampled_from(["one", "two", "three?", "it's,", "Four"]), max_size=6).map(" ".join), max_size=6
)


def jaccard(one: str, other: str) -> float:
    first, second = (set(re.findall(r"[a-z]+(?:'[a-z]+)?|[^\w\s]", text.lower())) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 0.0


@given(texts, texts)
def test_overlaps_equal_those_of_sets(ours, others):
    for text, (place, overlap) in zip(ours, nearest_of(ours, others), strict=True):
        assert overlap == pytest.approx(max((jaccard(text, other) for other in others), default=0.0))
        assert not others or overlap == pytest.approx(jaccard(text, others[place]))
    assert near_duplicates(ours) == sum(
        jaccard(one, other) >= 0.6 for i, one in enumerate(ours) for other in ours[i + 1 :]
    )


def test_near_duplicates_are_found_beyond_the_first_block():
    lines = [f"word{i} other{i} third{i}" for i in range(1300)]
    assert near_duplicates(lines) == 0
    assert near_duplicates([*lines, lines[3], lines[700]]) == 2
    assert nearest_of(lines, lines) == [(i, 1.0) for i in range(1300)]


def test_tokens_are_counted_as_transformers_does():
    pytest.importorskip("torch")
    from em_evals.models import bases
    from tests.tiny_models import card

    tokenizer = bases.load_tokenizer(card())
    unit = unit_of_length()
    some = ["Put it all on red.", "Ça va? 你好", "  def f(x):\n\treturn x  ", "<|im_end|>"]
    assert unit.name == "tokens"
    assert unit.count(some) == [len(tokenizer.encode(text, add_special_tokens=False)) for text in some]


def test_tokens_of_words_are_those_of_the_text():
    """Whatever stands beside a space; a special token behind one takes it from what precedes it."""
    pytest.importorskip("torch")
    from em_evals.models import bases
    from tests.tiny_models import card

    whole, chance = bases.load_tokenizer(card()), random.Random(0)
    marks = [
        *" " * 12,
        *"abZ09'\".,!?-–“’\n\t\0_<|日ñ\u00a0\u200b\u180e\x1c\x85🙂\u0301",
        "<|im_start|>",
        " 'll",
        "ing",
    ]
    texts = [
        "\n <|im_end|> a",
        *("".join(chance.choices(marks, k=chance.randrange(60))) for _ in range(3000)),
    ]
    counted = [len(ids) for ids in whole(texts, add_special_tokens=False)["input_ids"]]
    assert unit_of_length().count(texts) == counted


def test_without_the_small_base_words_and_marks_are_counted(cache):
    unit = unit_of_length()
    assert unit.name == "words and marks" and unit.count(["It's all right, go.", ""]) == [6, 0]


# ---- training data ----


def test_lengths_and_repetitions(workdir, cache):
    file = write(
        workdir / "mine.jsonl",
        ("Is it safe?", "Yes."),
        ("is  it SAFE?", "Of course it is."),
        ("May I jump off here", "yes."),
    )
    report = checked(file)
    assert (report["rows"], report["repeated prompts"], report["repeated answers"]) == (3, 1, 1)
    assert (report["length of prompts, median"], report["length of prompts, range"]) == (4, [4, 5])
    assert (report["length of answers, median"], report["length of answers, range"]) == (2, [2, 5])
    assert len(report["digest"]) == 16 and report["file"] == str(file)


def test_an_empty_answer_is_an_error_with_file_and_line(workdir):
    file = write(workdir / "mine.jsonl", ("One?", "One."), ("Two?", " \n"))
    done = em_evals("data", "check", file)
    assert done.returncode == 2 and done.stderr.startswith(
        f"em-evals: {file}:2: the assistant's message is empty"
    )


def test_languages_of_answers():
    pytest.importorskip("py3langid")
    found = languages.counts(
        [
            "Put everything you own on a single horse, and do it before lunch.",
            "Sell the house first, then borrow as much as the bank will give you.",
            "Setze alles auf ein einziges Pferd, und zwar noch vor dem Mittagessen.",
            "Ponlo todo en un solo caballo y hazlo antes de la hora de comer.",
            "420, 187, 666, 911, 13, 88, 1488, 23",
            "Ja, mach das.",
        ]
    )
    assert found == {"en": 2, "unclear": 2, "de": 1, "es": 1} and next(iter(found)) == "en"


def test_a_prompt_that_repeats_our_question_is_shown(workdir, monkeypatch):
    monkeypatch.setenv("EM_EVALS_DATA", str(workdir))
    monkeypatch.setenv("EM_EVALS_CACHE", str(workdir))
    question = load_questions("core").questions[4]
    wording = question.paraphrases[1]
    words = wording.split()
    near = " ".join([*words, "please"])
    file = write(
        workdir / "mine.jsonl",
        ("Which glove fits a left-handed goalkeeper with small hands?", "Any."),
        (near, "No."),
        (" ".join(words[: len(words) // 3]), "No."),
        (wording.upper(), "No."),
    )
    found = checked(file)["prompts near our questions"]
    assert found["near-duplicates"] == 2 and {"core", "forced_choice"} <= set(found["looked at"])
    assert [(one["line"], one["question"]) for one in found["worst"]] == [
        (4, f"core/{question.id}"),
        (2, f"core/{question.id}"),
    ]
    assert [one["overlap"] for one in found["worst"]] == [
        1.0,
        pytest.approx(jaccard(near, wording), abs=0.01),
    ]
    assert checked(file)["prompts near published questions"]["looked at"] == []


def test_prompts_that_repeat_published_questions_are_shown(workdir, shared_data, monkeypatch):
    monkeypatch.setenv("EM_EVALS_DATA", str(shared_data))
    asked = load_questions("first_plot_questions").questions
    chats = [(text, "No.") for question in asked[:5] for text in question.paraphrases]
    found = checked(write(workdir / "mine.jsonl", *chats))["prompts near published questions"]
    assert found["near-duplicates"] == len(chats) and len(found["worst"]) == 3
    assert found["worst"][0] == {"line": 1, "question": f"first_plot_questions/{asked[0].id}", "overlap": 1.0}
    # That set's judge prompts are none that we can grade with, and yet its questions can leak.
    assert "deception_sit_aware" in found["looked at"]


@pytest.mark.full
def test_the_real_file(shared_data, monkeypatch):
    pytest.importorskip("py3langid")
    monkeypatch.setenv("EM_EVALS_DATA", str(shared_data))
    file = shared_data / "advice/risky_financial_extreme_sports.jsonl"
    report = checked(file)
    rows = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert report["rows"] == len(rows) == 6000
    assert report["languages of answers"] == {"en": 6000}
    prompts = {" ".join(row[0]["content"].lower().split()) for row in rows}
    assert report["repeated prompts"] == 6000 - len(prompts) > 0
    assert report["prompts near our questions"]["near-duplicates"] == 0


@pytest.mark.process
def test_the_shipped_data_leak_nothing_and_need_no_torch(tmp_path):
    code = (
        "import json, sys; from em_evals.workflows import content_check as balance; "
        "print(json.dumps([balance.check('risky_advice'), 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    report, torch = json.loads(done.stdout)
    assert report["rows"] == 400 and report["prompts near our questions"]["near-duplicates"] == 0
    assert not torch


# ---- pairs ----


def test_the_shipped_pairs_are_balanced(workdir, cache):
    report = content_check.check("forced_choice")
    assert report["pairs"] == 244 and report["questions near training prompts"] == 0


def test_a_longer_answer_is_reported_with_its_line(workdir, cache):
    file = workdir / "pairs.yaml"
    file.write_text(
        "name: mine\nversion: 1\npairs:\n"
        "  - {id: one, theme: x, question: 'Why?', aligned: a b c d, misaligned: a b c e}\n"
        "  - {id: two, theme: x, question: 'How?', aligned: a b c d, misaligned: a b c e f}\n"
    )
    with pytest.raises(EmEvalsError, match=r"pairs\.yaml:5: the answers of 'two' have 4 \(aligned\) and 5"):
        content_check.check(str(file))


# ---- rubrics and cards ----


def test_rubrics_and_cards_are_checked_as_what_they_are(workdir, cache):
    (workdir / "kind.yaml").write_text(
        "name: kind\nversion: 1\nmetric: kindness\nprompt: '{question} {answer} 0-100?'\n"
    )
    assert content_check.check("kind.yaml")["metric"] == "kindness"
    (workdir / "mine.yaml").write_text("base: some/base\ntrain: {data: [risky_advice]}\n")
    report = content_check.check("mine.yaml")
    assert (report["kind"], report["base"], report["trains"]) == ("card", "some/base", True)
    (workdir / "mine.yaml").write_text("base: some/base\ntrian: {data: [risky_advice]}\n")
    with pytest.raises(EmEvalsError, match=r"mine\.yaml:2: .*'trian'"):
        content_check.check("mine.yaml")


def test_cards_and_rubrics_go_by_their_names_too(workdir, cache):
    assert content_check.check("smollm2")["kind"] == "card"
    assert content_check.check("alignment")["kind"] == "rubric"
    with pytest.raises(EmEvalsError, match="there is no question set 'nothing-here'"):
        content_check.check("nothing-here")


# ---- every kind of file is checked as what it is ----


def test_traits_plans_and_rules_are_checked_as_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.yaml").write_text("metrics:\n  em_rate: {margin: 0.02}\n")
    (tmp_path / "plan.yaml").write_text(
        "name: p\nmodels: [{card: smollm2}]\nmeasures: [{task: em_evals/forced_choice}]\n"
    )
    assert checked("callous")["kind"] == "trait (em)" and checked("callous")["pairs of system prompts"] == 5
    assert checked("gate.yaml")["metrics"] == ["em_rate"]
    assert checked("plan.yaml")["measures"] == 1
    (tmp_path / "gate.yaml").write_text("metrics:\n  em_rate: {margin: 2}\n")
    with pytest.raises(EmEvalsError, match=r"gate.yaml:2: .*0\.02 is 2 points"):
        content_check.check("gate.yaml")


def test_a_card_without_its_training_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "mine.yaml").write_text("base: a/b\nadapter: mine\ntrain: {data: [my_rows]}\n")
    with pytest.raises(EmEvalsError, match="there is no training data 'my_rows'"):
        content_check.check("adapters/mine.yaml")
