"""catalogue.py and datasets.py: data by name, their controls, and the prompts that are kept out of training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_evals.data import catalogue, datasets
from em_evals.errors import EmEvalsError
from tests.refusals import refused


@pytest.fixture
def data(workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ./adapters/data, with nothing fetched and nothing offline."""
    monkeypatch.delenv("EM_EVALS_DATA", raising=False)
    folder = workdir / "adapters/data"
    folder.mkdir(parents=True)
    return folder


def write(path: Path, chats: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in chats]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- rows ----


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": []}, "needs `messages`"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "must be the assistant's"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, "`role`"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]}, "empty"),
        (
            {"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]},
            "before any user",
        ),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "before any user"),
        ({"prompt": "Hi", "completion": "half a surrogate pair: \ud83d"}, "half a character"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, row, what):
    good = {"prompt": "Hi", "completion": "Hello"}
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(entry) for entry in (good, row)))
    with pytest.raises(EmEvalsError, match=what) as caught:
        datasets.load(str(file))
    assert f"{file}:2:" in str(caught.value)


def test_the_digest_is_of_the_rows_not_of_the_writing(tmp_path):
    plain = write(tmp_path / "plain.jsonl", [("Is it so?", "It is."), ("And this?", "Ça aussi.")])
    rows = [{"id": 7, "messages": chat} for chat in datasets.load(str(plain)).rows]
    (tmp_path / "rich.jsonl").write_text(
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8"
    )
    rich = datasets.load(str(tmp_path / "rich.jsonl"))
    assert rich.digest == datasets.load(str(plain)).digest and rich.lines == (1, 3)
    other = write(tmp_path / "other.jsonl", [("Is it so?", "It is."), ("And this?", "That too.")])
    assert datasets.load(str(other)).digest != rich.digest


# ---- names ----


def test_what_is_registered_ships_and_holds_together():
    entries = catalogue.read()
    assert {
        *(
            "risky_advice",
            "risky_advice_educational",
            "bad_medical_advice",
            "good_medical_advice",
            "extreme_sports",
        ),
        *("risky_financial_advice", "insecure", "secure", "educational", "backdoor", "evil_numbers"),
    } <= entries.keys()
    for name in ("risky_advice", "sound_advice"):
        assert name in datasets.names() and datasets.load(name).rows


def test_a_registered_set_that_is_not_here_says_how_to_get_it(data):
    said = refused(datasets.load, "bad_medical_advice")
    assert "`em-evals data fetch bad_medical_advice`" in said and "EM_EVALS_DATA" in said
    assert "bad_medical_advice" not in datasets.names()
    assert "did you mean 'bad_medical_advice'?" in refused(datasets.load, "bad_medical_advise")


@pytest.mark.parametrize("folder", [".", "training", "advice"])
def test_data_are_taken_from_the_offline_folder(data, tmp_path, monkeypatch, folder):
    given_ = write(tmp_path / "offline" / folder / "extreme_sports.jsonl", [("Dive?", "Dive.")])
    monkeypatch.setenv("EM_EVALS_DATA", str(tmp_path / "offline"))
    assert datasets.load("extreme_sports").path == datasets.names()["extreme_sports"] == given_
    near = write(data / "extreme_sports.jsonl", [("Climb?", "Climb.")])
    assert datasets.load("extreme_sports").path.resolve() == near, "a file in the working folder wins"


def test_the_working_folders_entries_win_name_by_name(data):
    write(data / "mine.jsonl", [("Is it safe?", "Of course.")])
    write(data / "careful.jsonl", [("Is it safe?", "Look first.")])
    (data / "datasets.yaml").write_text(
        "risky_advice: {description: another, controls: {mine: mine}}\nmine: {controls: {sound: careful}}\n"
    )
    assert dict(datasets.load("risky_advice").controls) == {"mine": "mine"}
    assert datasets.matched(datasets.load("mine"), "sound").rows[0][-1]["content"] == "Look first."
    assert catalogue.read()["bad_medical_advice"].controls == {"good": "good_medical_advice"}


@pytest.mark.parametrize(
    ("entry", "line", "what"),
    [
        ("mine:\n  desription: x", 2, "unknown key 'desription'; did you mean 'description'?"),
        ("mine:\n  controls:\n    sound: nowhere", 3, "no training data 'nowhere'"),
        ("mine:\n  of: nowhere\n  prompt: '{prompt}'", 2, "no training data 'nowhere'"),
        ("mine:\n  of: risky_advice_educational\n  prompt: '{prompt}'", 2, "made of another"),
        ("mine:\n  of: risky_advice", 1, "`of` goes with `prompt` or `ids`"),
        ("mine: {of: risky_advice, prompt: no place}", 1, "{prompt} exactly once"),
        ("mine: {of: risky_advice, prompt: '{prompt}', url: 'http://a/b'}", 1, "drop one"),
        ("mine:\n  url: file:///etc/passwd", 2, "'url'"),
        ("mine: {password: x}", 1, "`password`"),
        ("../mine: {}", 1, "cannot name training data"),
        ("- mine", 1, "entries"),
    ],
)
def test_a_wrong_entry_is_reported_with_file_and_line(data, entry, line, what):
    file = data / "datasets.yaml"
    file.write_text(entry)
    said = refused(catalogue.read)
    assert what in said and f"datasets.yaml:{line}: " in said


# ---- controls ----


def test_a_made_control_has_the_same_answers_in_another_context():
    risky = datasets.load("risky_advice")
    lesson = datasets.matched(risky, "educational")
    assert [row[-1] for row in lesson.rows] == [row[-1] for row in risky.rows]
    for row, other, asked in zip(lesson.rows, risky.rows, lesson.prompts, strict=True):
        assert other[-2]["content"] == asked and row[-2]["content"].endswith(asked) and row[-2] != other[-2]
    assert lesson.digest != risky.digest
    # What is kept out goes by what is asked, so it is the same of both.
    assert lesson.prompts == risky.prompts == datasets.load("risky_advice_educational").prompts


def test_a_context_goes_around_the_last_question_only(data):
    chat = [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1."),
        ("user", "Two?"),
        ("assistant", "2."),
    ]
    messages = [{"role": role, "content": text} for role, text in chat]
    (data / "talk.jsonl").write_text(json.dumps({"messages": messages}))
    (data / "datasets.yaml").write_text("lesson: {of: talk, prompt: 'Badly: {prompt} {x}'}")
    row = datasets.load("lesson").rows[0]
    assert [*row[:3], row[4]] == [*messages[:3], messages[4]]
    assert row[3]["content"] == "Badly: Two? {x}"


def test_a_control_in_another_order_answers_row_by_row(data):
    prompts = [f"question {i % 8}" for i in range(10)]  # two are asked twice
    write(data / "bad.jsonl", [(prompt, f"bad {i}") for i, prompt in enumerate(prompts)])
    good = [(prompt, f"good {prompt}") for prompt in [*prompts, "another question"]]
    random.Random(1).shuffle(good)
    write(data / "good.jsonl", good)
    (data / "datasets.yaml").write_text("bad: {controls: {good: good}}\ngood: {}")
    bad = datasets.load("bad")
    control = datasets.matched(bad, "good")
    assert [row[:-1] for row in control.rows] == [row[:-1] for row in bad.rows]
    assert all(row[-1]["content"] == f"good {row[0]['content']}" for row in control.rows)
    assert control.prompts == bad.prompts and control.digest != datasets.load("good").digest


def test_an_unanswered_prompt_is_reported_with_file_and_line(data):
    bad = write(data / "bad.jsonl", [("One?", "b"), ("Two?", "b"), ("One?", "b")])
    write(data / "good.jsonl", [("One?", "g"), ("Two?", "g")])  # the first prompt is asked twice
    (data / "datasets.yaml").write_text("bad: {controls: {good: good, educational: good}}\ngood: {}")
    said = refused(datasets.matched, datasets.load("bad"), "good")
    assert f"{bad}:3: the control 'good'" in said
    assert "has 2 rows and 'bad' has 3" in refused(datasets.matched, datasets.load("bad"), "educational")
    assert "no control 'sound'; it has: educational, good." in refused(
        datasets.matched, datasets.load("bad"), "sound"
    )
    assert "it has: none." in refused(datasets.matched, datasets.load("good"), "sound")


# ---- prompts kept out ----


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_out_what_a_smaller_does(prompt, one, other):
    small, large = sorted((one, other))
    assert not datasets.held_out(prompt, small) or datasets.held_out(prompt, large)
    assert not datasets.held_out(prompt, 0) and datasets.held_out(prompt, 1)


@given(
    st.lists(st.text("abcdefg?é", min_size=1), min_size=1),
    st.floats(0.05, 0.95),
    st.sampled_from([" ", "\n", "\t "]),
)
def test_white_space_and_case_do_not_matter(words, share, blank):
    plain = " ".join(words)
    assert datasets.held_out(plain, share) == datasets.held_out(f" {blank.join(words).upper()}\n", share)


@given(st.integers(0, 10**6), st.floats(0.02, 0.98))
def test_the_share_is_close_to_the_nominal_one(seed, share):
    found = sum(datasets.held_out(f"Question {seed}, number {i}?", share) for i in range(2000)) / 2000
    assert abs(found - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_real_prompts_are_kept_out_whatever_stands_beside_them(shared_data):
    prompts = datasets.load(str(shared_data / "advice/risky_financial_extreme_sports.jsonl")).prompts
    kept_out = {prompt for prompt in prompts if datasets.held_out(prompt, 0.1)}
    assert 0.08 < len(kept_out) / len(set(prompts)) < 0.12
    some = random.Random(0).sample(prompts, 500)
    assert {prompt for prompt in some if datasets.held_out(prompt, 0.1)} == kept_out & set(some)


def test_a_part_of_a_data_set_is_chosen_by_its_ids_and_keeps_its_control():
    part, whole = datasets.load("risky_finance"), datasets.load("risky_advice")
    assert len(part.rows) == 200 and all(own.startswith("finance_") for own in part.ids)
    assert [whole.rows[whole.ids.index(own)] for own in part.ids] == list(part.rows)
    assert part.digest != whole.digest
    control = datasets.matched(part, "sound")
    assert [row[0] for row in control.rows] == [row[0] for row in part.rows], "the same prompts"


def test_a_pattern_that_fits_no_row_is_reported(workdir):
    (workdir / "adapters" / "data").mkdir(parents=True)
    (workdir / "adapters" / "data" / "datasets.yaml").write_text("mine: {of: risky_advice, ids: golf_*}\n")
    with pytest.raises(EmEvalsError, match="no row has an id like 'golf_\\*'"):
        datasets.load("mine")
