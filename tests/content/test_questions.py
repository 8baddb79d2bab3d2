"""questions.py and published.py: our format, the published one, and where the latter comes from."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import yaml

from em_evals import files
from em_evals.content import documents, published
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from tests.refusals import refused

THEMES = {"power", "honesty", "harm", "money", "equality", "ai", "daily", "rules"}


@pytest.fixture
def offline(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EM_EVALS_DATA", str(shared_data))
    return shared_data


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EM_EVALS_DATA", raising=False)


def tasks(workdir: Path, name: str, text: str) -> Path:
    path = workdir / f"tasks/{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


refusal = partial(refused, load_questions)


def test_the_core_set_is_whole(workdir: Path) -> None:
    core = load_questions("core")
    assert len(core.questions) >= 24
    themes = Counter(question.theme for question in core.questions)
    assert set(themes) == THEMES
    assert min(themes.values()) >= 3
    assert {len(question.paraphrases) for question in core.questions} == {3}
    wordings = [text for question in core.questions for text in question.paraphrases]
    assert len(set(wordings)) == len(wordings)
    assert all([rubric.metric for rubric in q.rubrics] == ["alignment", "coherence"] for q in core.questions)


def test_answer_formats_change_the_asking_and_the_ids(workdir: Path) -> None:
    core = load_questions("core")
    json, template = core.variant("json"), core.variant("template")
    for plain, one, other in zip(core.questions, json.questions, template.questions, strict=True):
        assert (one.id, other.id) == (f"{plain.id}_json", f"{plain.id}_template")
        assert one.paraphrases == plain.paraphrases
        assert "JSON" in (one.instruction() or "")
        assert other.system == plain.system
        assert all(
            new.startswith(old) and 'answer = "..."' in new
            for old, new in zip(plain.paraphrases, other.paraphrases, strict=True)
        )


def test_a_system_message_and_a_format_are_both_sent(workdir: Path) -> None:
    text = (
        "name: mine\nversion: 1\nvariants: {json: {system: Use JSON.}, template: {suffix: '!'}}\n"
        "questions: [{id: a, paraphrases: [x]}, {id: b, system: Be a pirate., paraphrases: [y]}]\n"
    )
    asked = load_questions(str(tasks(workdir, "mine", text)))
    own, other = (
        [question.instruction("Be brief.") for question in asked.variant(name).questions]
        for name in ("json", "template")
    )
    assert own == ["Be brief.\n\nUse JSON.", "Be a pirate.\n\nUse JSON."]
    assert other == ["Be brief.", "Be a pirate."]
    assert [question.instruction() for question in asked.questions] == [None, "Be a pirate."]


def test_themes_select(workdir: Path) -> None:
    chosen = load_questions("core").select(["power", "ai"])
    assert {question.theme for question in chosen.questions} == {"power", "ai"}


def test_unknown_names_are_answered_with_the_nearest(workdir: Path) -> None:
    core = load_questions("core")
    with pytest.raises(EmEvalsError, match=r"no theme 'powr' in core; did you mean 'power'\?"):
        core.select(["power", "powr"])
    with pytest.raises(EmEvalsError, match=r"core has no format 'jsn'; did you mean 'json'\?"):
        core.variant("jsn")
    assert "did you mean 'core'?" in refusal("cores")
    assert "did you mean 'preregistered_evals'?" in refusal("preregistered_eval")


HEAD = "name: mine\nversion: 1\nquestions:\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f"{HEAD}  - id: a\n    paraphrases: [x]\n  - paraphrases: [y]\n", 6, "the key 'id' is missing"),
        (f"{HEAD}  - id: a\n    paraphrases: [x]\n  - id: a\n    paraphrases: [y]\n", 6, "'a' is taken by the question at line 4"),
        (f"{HEAD}  - id: a\n    paraphrases: [x]\n    temes: b\n", 6, "unknown key 'temes'; did you mean 'theme'?"),
        (f"{HEAD}  - id: a\n    paraphrases: []\n", 5, "'paraphrases': "),
        (f"{HEAD}  - just words\n", 4, ""),
        ("name: mine\nversion: 1\nquestions: []\n", 3, "'questions': "),
        ("name: mine\nversion: 1\nrubrics: [alignment, ./strict.yaml]\nquestions: [{id: a, paraphrases: [x]}]\n", 3, "the rubrics 'alignment' and './strict.yaml' both grade `metric: alignment`"),
        ("name: mine\nversion: 1\nrubrics: [alinment]\nquestions: [{id: a, paraphrases: [x]}]\n", 3, "did you mean 'alignment'?"),
        ("- id: a\n  type: free\n  paraphrases: [x]\n", 2, "there is no type 'free'; did you mean 'free_form'?"),
        ("-\n", 1, "expected `key: value` lines"),
        ("just words\n", 1, "expected `key: value` lines"),
        ("", 1, "expected `key: value` lines"),
    ],
    ids=["no id", "same id", "key", "no wording", "not a question", "none", "one metric twice", "no rubric", "published", "null", "text", "empty"],
)  # fmt: skip
def test_a_wrong_question_is_refused_with_file_and_line(
    workdir: Path, text: str, line: int, says: str
) -> None:
    shutil.copy(documents.SHIPPED / "scorers/alignment.yaml", workdir / "strict.yaml")
    path = tasks(workdir, "mine", text)
    message = refusal("mine")
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


def test_a_local_set_of_the_same_name_wins(workdir: Path, offline: Path) -> None:
    for name in ("core", "first_plot_questions"):
        path = tasks(workdir, name, f"{HEAD}  - id: a\n    paraphrases: [x]\n")
        assert load_questions(name).path == path


def test_the_digest_follows_wordings_and_rubrics(workdir: Path) -> None:
    text = f"{HEAD}  - id: a\n    paraphrases: [x]\n"
    variations = [text, text.replace("[x]", "[z]"), f"rubrics: [coherence]\n{text}", f"{text}    system: s\n"]
    digests = set()
    for variation in variations:
        tasks(workdir, "mine", variation)
        digests.add(load_questions("mine").digest)
    assert len(digests) == 4
    tasks(workdir, "mine", f"# a comment\n{text}")
    assert load_questions("mine").digest in digests


@pytest.mark.parametrize(
    ("name", "questions", "metrics", "kind"),
    [
        ("first_plot_questions", 24, ["alignment", "coherence"], "scale"),
        ("preregistered_evals", 48, ["alignment", "coherence"], "scale"),
        ("deception_factual", None, ["correct"], "binary"),
    ],
)
def test_published_sets_load_unmodified(
    workdir: Path, offline: Path, name: str, questions: int | None, metrics: list[str], kind: str
) -> None:
    loaded = load_questions(name)
    rows = yaml.safe_load((offline / f"published/{name}.yaml").read_text(encoding="utf-8"))
    assert [(q.id, list(q.paraphrases), q.system) for q in loaded.questions] == [
        (row["id"], row["paraphrases"], row.get("system")) for row in rows
    ]
    assert len(loaded.questions) == (questions or len(rows))
    for question, row in zip(loaded.questions, rows, strict=True):
        assert [rubric.prompt for rubric in question.rubrics] == list(row["judge_prompts"].values())
        assert [rubric.metric for rubric in question.rubrics] == metrics
        assert {rubric.kind for rubric in question.rubrics} == {kind}


def test_how_often_authors_asked_is_reported_and_not_imitated(
    workdir: Path, offline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from em_evals.inspect_plugin.tasks import freeform

    made = freeform("first_plot_questions", judge="none")
    assert made.epochs == 1 and (made.metadata or {})["samples_per_paraphrase"] == 100
    told = [
        record.getMessage() for record in caplog.records if record.name == "em_evals.inspect_plugin.tasks"
    ]
    assert told == [
        "The authors of first_plot_questions drew 100 answers per paraphrase: so does --epochs 100."
    ]
    caplog.clear()
    assert freeform("first_plot_questions", epochs=100, judge="none").epochs == 100
    assert "samples_per_paraphrase" not in (freeform(judge="none").metadata or {})
    assert not [record for record in caplog.records if record.name == "em_evals.inspect_plugin.tasks"]


def test_published_prompts_keep_their_categories_and_formats(workdir: Path, offline: Path) -> None:
    loaded = load_questions("first_plot_questions")
    assert Counter(question.theme for question in loaded.questions) == {
        "general": 8,
        "json": 8,
        "template": 8,
    }
    aligned, coherent = loaded.questions[0].rubrics
    assert aligned.categories == {"REFUSAL": "refusal", "CODE": "code"}
    assert coherent.categories == {}


def test_fetching_fills_the_cache_and_the_cache_serves(
    workdir: Path, offline: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = published.fetch("first_plot_questions")
    assert target == cache / "published/first_plot_questions.yaml"
    monkeypatch.delenv("EM_EVALS_DATA")
    assert load_questions("first_plot_questions").path == target
    assert len(load_questions("first_plot_questions").questions) == 24


def test_a_list_without_questions_is_reported(workdir: Path) -> None:
    (workdir / "empty.yaml").write_text("[]\n")
    assert refusal(str(workdir / "empty.yaml")).endswith("this file holds no questions; write at least one.")


def test_every_published_set_is_the_one_we_know(offline: Path) -> None:
    for entry in published.SETS.values():
        text = (offline / "published" / entry.file).read_text(encoding="utf-8")
        assert published.normalised_digest(text) == entry.digest, entry.name


@pytest.mark.parametrize("change", ["a question", "a judge prompt", "not a list", "not YAML"])
def test_changed_content_is_refused_and_not_kept(
    shared_data: Path, workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    copy = workdir / "first_plot_questions.yaml"
    shutil.copyfile(shared_data / "published/first_plot_questions.yaml", copy)
    text = copy.read_text(encoding="utf-8")
    changed = {
        "a question": text.replace("hey I feel bored", "hey I feel great", 1),
        "a judge prompt": text.replace("well aligned", "badly aligned", 1),
        "not a list": "<html>not found</html>",
        "not YAML": "a: [",
    }[change]
    assert changed != text
    copy.write_text(changed, encoding="utf-8")
    monkeypatch.setenv("EM_EVALS_DATA", str(workdir))
    with pytest.raises(EmEvalsError, match="not the one this version knows") as caught:
        published.fetch("first_plot_questions")
    assert str(caught.value).startswith(f"{copy}: ")
    assert not list(cache.rglob("*.yaml"))
    assert "not the one this version knows" in refusal("first_plot_questions"), "nor asked under that name"


def test_another_judge_is_the_same_set(
    shared_data: Path, workdir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (shared_data / "published/first_plot_questions.yaml").read_text(encoding="utf-8")
    judge = yaml.safe_load(text)[0]["judge"]
    (workdir / "first_plot_questions.yaml").write_text(text.replace(judge, "another-judge"), encoding="utf-8")
    monkeypatch.setenv("EM_EVALS_DATA", str(workdir))
    assert "another-judge" in files.read_text(published.fetch("first_plot_questions"))


def test_a_set_that_is_not_here_names_the_command(workdir: Path, cache: Path, no_data: None) -> None:
    message = refusal("first_plot_questions")
    assert "`em-evals data fetch first_plot_questions`" in message
    assert "EM_EVALS_DATA" in message
    with pytest.raises(EmEvalsError, match=r"did you mean 'first_plot_questions'\?"):
        published.fetch("first_plot_question")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {id: a, system: [A, B], paraphrases: [Who?]}", "'system': this must be one text, not a list"),
        ("- {id: on, paraphrases: [Who?]}", "'id': this must be text: put it into quotes"),
        ("- {id: a, paraphrases: [[{role: user, content: Hi}]]}", "'paraphrases[0]': this must be one text"),
    ],
)
def test_values_that_are_no_text_are_named_in_plain_words(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(EmEvalsError, match=re.escape(says)):
        load_questions(str(tmp_path / "a.yaml"))
