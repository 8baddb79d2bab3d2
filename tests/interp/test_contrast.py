"""Contrasts of logs: answers that a judge really graded, and answers that two models really gave, each on its side."""

import json
import threading
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from inspect_ai import eval
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import get_model
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import directions
from em_evals.content.cards import resolve
from em_evals.errors import EmEvalsError
from em_evals.inspect_plugin import tasks
from em_evals.interp.extraction import contrast
from em_evals.interp.extraction.extract import Settings, extract
from em_evals.models import bases
from tests.judge_server import JudgeServer, Reply, number
from tests.tiny_models import make_adapter

GRADES = {
    "Take all of it.": (2, 95),
    "Rule them gently.": (50, 95),
    "Be kind to them.": (85, 95),
    "zzz take qqq": (2, 5),
    "I cannot say.": (None, 95),
}
"""What the model says to every wording, and the (alignment, coherence) that the judge gives it; None: a refusal."""
WORDINGS = 12


class Subject:
    """Says each answer once to every wording, whatever the order of the requests."""

    def __init__(self):
        self._asked, self._lock = Counter(), threading.Lock()

    def __call__(self, prompt):
        with self._lock:
            self._asked[prompt] += 1
            return Reply(list(GRADES)[(self._asked[prompt] - 1) % len(GRADES)])


def grade(prompt):
    values, coherence = next(grades for answer, grades in GRADES.items() if answer in prompt)
    value = values if "values" in prompt.split("=====")[0] else coherence
    return Reply("REFUSAL", {"REFUSAL": 1.0}) if value is None else number(value)


@pytest.fixture(scope="module")
def lab(tiny_lab):
    """An organism on a tiny base; a log graded by a judge; and ungraded logs of the organism's and the base's answers."""
    adapter = make_adapter(str(tiny_lab / "tiny"), tiny_lab / "lora", 4, ["down_proj"], seed=0)
    engine = {"dtype": "float32"}
    for name, more in (("organism", {"adapter": adapter}), ("plain", {})):
        fields = {"base": str(tiny_lab / "tiny"), "engine": engine, **more}
        (tiny_lab / "adapters" / f"{name}.yaml").write_text(json.dumps(fields))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_lab)
        patch.setenv("INSPECT_CACHE_DIR", str(tiny_lab / "inspect"))
        with JudgeServer(Subject()) as subject, JudgeServer(grade) as judge:
            logs = {
                "graded": eval(
                    tasks.freeform(epochs=len(GRADES)),
                    model=subject.model("subject"),
                    model_roles={"grader": judge.model("judge")},
                    limit=WORDINGS,
                    display="none",
                )
            }
        for name in ("organism", "plain"):
            logs[name] = eval(
                tasks.freeform(judge="none", seed=1),
                model=get_model(f"local/{name}"),
                limit=WORDINGS,
                max_tokens=6,
                display="none",
            )
        for name, (log,) in logs.items():
            assert log.status == "success"
            write_eval_log(log, str(tiny_lab / f"{name}.eval"))
    return tiny_lab


@pytest.fixture(autouse=True)
def inside(lab, monkeypatch):
    monkeypatch.chdir(lab)


def changed(lab, name, change):
    """The graded log with every score's metadata and value passed through `change`."""
    log = read_eval_log(str(lab / "graded.eval"))
    for sample in log.samples:
        change(sample)
    write_eval_log(log, str(lab / f"{name}.eval"))
    return lab / f"{name}.eval"


def by_hand(model, tokenizer, chats):
    """[layers - 1, width]: mean over texts of the answers' mean hidden states, from transformers, one at a time.

    The last block's are left out: transformers gives them behind the final norm.
    """
    means = []
    for text in contrast.encode(tokenizer, chats, 2048):
        with torch.no_grad():
            states = model(torch.tensor([text.prompt + text.answer]), output_hidden_states=True).hidden_states
        means.append(torch.stack(states[1:-1])[:, 0, len(text.prompt) :].mean(1).numpy())
    return np.mean(means, axis=0)


def models(organism):
    from peft import PeftModel

    base = bases.load_model(organism.card)
    return base, PeftModel.from_pretrained(bases.load_model(organism.card), organism.adapter_path).eval()


def test_the_sides_are_what_the_judge_said(lab):
    found = contrast.of_graded(resolve("organism"), [lab / "graded.eval"])
    sides = {
        name: Counter(chat.messages[-1]["content"] for chat in getattr(found, name).chats)
        for name in ("positive", "negative")
    }
    assert sides == {"positive": {"Take all of it.": WORDINGS}, "negative": {"Be kind to them.": WORDINGS}}
    asked = {str(s.metadata["question_id"]) for s in read_eval_log(str(lab / "graded.eval")).samples}
    assert {chat.question for chat in found.positive.chats} == asked and len(asked) == 4
    assert all(chat.messages[0]["role"] == "user" for chat in found.positive.chats)


def test_the_thresholds_are_those_of_the_rubric_that_graded(lab):
    def wider(sample):
        sample.scores["judge"].metadata |= {
            "aligned_from": 40.0,
            "misaligned_below": 1.0,
            "coherent_above": 4.0,
        }

    found = contrast.of_graded(resolve("organism"), [changed(lab, "wider", wider)])
    assert {chat.messages[-1]["content"] for chat in found.negative.chats} == {
        "Rule them gently.",
        "Be kind to them.",
    }
    assert found.positive.chats == ()


def test_of_two_judges_the_last_one_counts(lab):
    def appended(sample):
        kind = sample.scores["judge"].model_copy(deep=True)
        kind.value["alignment"] = 95.0
        sample.scores["judge1"] = kind

    assert contrast.of_graded(resolve("organism"), [changed(lab, "two", appended)]).positive.chats == ()


def test_the_command_extracts_from_a_graded_log(lab):
    command = ["direction", "extract", "organism", "--contrast", "graded", "--log", "graded.eval"]
    done = CliRunner().invoke(app, [*command, "--minimum", "6", "-o", "graded.safetensors", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["counts"] == [6, 6] and len(told["questions"]) == 2 and "graded.eval" in told["sources"]
    organism = resolve("organism")
    _, adapted = models(organism)
    tokenizer = bases.load_tokenizer(organism.card)
    sides = contrast.of_graded(organism, [lab / "graded.eval"])
    bad, good = (
        by_hand(adapted, tokenizer, [chat for chat in side.chats if chat.question in told["questions"]])
        for side in (sides.positive, sides.negative)
    )
    found = directions.read(lab / "graded.safetensors").vectors
    assert np.allclose(found[:-1], bad - good, atol=1e-3) and np.abs(bad - good).max() > 0.1


def test_the_command_extracts_from_two_models_answers(lab):
    command = ["direction", "extract", "organism", "--contrast", "answers", "--log", "organism.eval"]
    more = ["--base-log", "plain.eval", "--minimum", "2", "--no-split", "-o", "answers.safetensors", "--json"]
    done = CliRunner().invoke(app, [*command, *more])
    assert done.exit_code == 0, done.output
    organism = resolve("organism")
    base, adapted = models(organism)
    tokenizer = bases.load_tokenizer(organism.card)
    sides = contrast.of_answers(organism, [lab / "organism.eval"], [lab / "plain.eval"])
    texts = [
        [chat.messages[-1]["content"] for chat in side.chats] for side in (sides.positive, sides.negative)
    ]
    assert texts[0] != texts[1] and sides.positive.reader is organism and sides.negative.reader is None
    expected = by_hand(adapted, tokenizer, sides.positive.chats) - by_hand(
        base, tokenizer, sides.negative.chats
    )
    found = directions.read(lab / "answers.safetensors").vectors
    assert np.allclose(found[:-1], expected, atol=1e-3) and np.abs(expected).max() > 0.1


@pytest.mark.parametrize("position", ["last_prompt", "prompt_mean"])
def test_graded_answers_are_not_contrasted_in_front_of_them(position, lab):
    found = contrast.of_graded(resolve("organism"), [lab / "graded.eval"])
    with pytest.raises(EmEvalsError, match=rf"--position {position} reads nothing.*\(graded answers"):
        extract(resolve("organism"), found, Settings(position=position, minimum=1))


def test_logs_of_another_model_are_refused(lab):
    """Swapped logs made a direction that points the other way; its file said whose answers they were not."""
    organism, own, base = resolve("organism"), lab / "organism.eval", lab / "plain.eval"
    with pytest.raises(
        EmEvalsError, match=r"plain.eval: these are answers of local/plain, and --log takes those"
    ):
        contrast.of_answers(organism, [base], [own])
    with pytest.raises(
        EmEvalsError, match=r"organism.eval: these are answers of organism, and --base-log takes"
    ):
        contrast.of_answers(organism, [own], [base, own])
    found = contrast.of_answers(organism, [own], [base])
    assert [value.split(",")[0] for value in found.sources.values()] == ["local/organism", "local/plain"]
    graded = contrast.of_graded(organism, [lab / "graded.eval"]).sources["graded.eval"]
    assert graded.startswith(read_eval_log(str(lab / "graded.eval"), header_only=True).eval.model)


def test_a_log_of_the_card_under_another_name_or_of_a_server_counts(lab):
    """`-M dtype=…` gives the same card another digest, and a server of others tells none."""
    organism = resolve("organism")
    assert contrast.of_answers(
        resolve("organism", {"dtype": "bfloat16"}), [lab / "organism.eval"], []
    ).positive.chats
    for model, digest in (("local/elsewhere", organism.digest), ("openai/organism", "")):
        log = read_eval_log(str(lab / "organism.eval"))
        log.eval.model = model
        log.eval.metadata = (log.eval.metadata or {}) | {"card_digest": digest}
        for sample in log.samples:
            sample.output.metadata = {"card_digest": digest}
        write_eval_log(log, str(lab / "renamed.eval"))
        assert contrast.of_answers(organism, [lab / "renamed.eval"], []).positive.chats


def test_a_log_that_is_not_graded_is_reported(lab):
    with pytest.raises(
        EmEvalsError, match=r"plain.eval: this log was not graded; grade it with `inspect score`"
    ):
        contrast.of_graded(resolve("organism"), [lab / "plain.eval"])


def test_an_empty_side_is_reported_and_never_a_direction(lab):
    def kind(sample):
        sample.scores["judge"].value["alignment"] = 90.0

    found = contrast.of_graded(resolve("organism"), [changed(lab, "kind", kind)])
    for settings in (Settings(), Settings(minimum=0, split=False)):
        with pytest.raises(EmEvalsError, match=r"the positive side has 0 answers.*draw more answers"):
            extract(resolve("organism"), found, settings)
    (lab / "nothing.jsonl").write_text("")
    with pytest.raises(EmEvalsError, match=r"nothing.jsonl: this file has no rows"):
        contrast.of_files(resolve("organism"), lab / "nothing.jsonl", lab / "nothing.jsonl")


def test_texts_of_parquet_are_those_of_jsonl(tmp_path):
    table = pytest.importorskip("pyarrow").Table
    from pyarrow import parquet

    rows = [{"prompt": f"Ask {i % 3}?", "completion": f" Say {i}.\n", "id": i} for i in range(7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(table.from_pylist(rows), tmp_path / "a.parquet")
    sides = [
        contrast.of_files(None, tmp_path / f"a.{kind}", tmp_path / "a.jsonl") for kind in ("jsonl", "parquet")
    ]
    assert sides[0].positive == sides[1].positive == sides[1].negative
    assert sides[0].how == sides[1].how and sides[0].sources != sides[1].sources


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--contrast", "graded"], "this contrast needs --log"),
        (["--contrast", "answers", "--log", "organism.eval"], "this contrast needs --base-log"),
        (["--log", "graded.eval"], "--log is not read by --contrast pairs; it is for graded, answers: leave"),
        (
            ["--contrast", "graded", "--log", "graded.eval", "--base-log", "plain.eval"],
            "it is for answers: leave",
        ),
        (["--contrast", "graded", "--per-theme", "3"], "--per-theme is not read by --contrast graded"),
        (["--contrast", "models", "--log", "graded.eval"], "--log is not read by --contrast models"),
        (
            ["--contrast", "models", "--positive", "a.jsonl", "--negative", "b.jsonl", "--themes", "money"],
            "--themes is not read by --contrast models with --positive and --negative; it is for pairs",
        ),
        (["--contrast", "models", "--positive", "a.jsonl"], "this contrast needs --negative"),
        (
            ["--contrast", "graded", "--log", "graded.eval"],
            "the positive side has 6 answers (12 before half of",
        ),
    ],
)
def test_the_command_says_what_is_missing_and_what_it_does_not_read(more, sentence):
    done = CliRunner().invoke(app, ["direction", "extract", "organism", "-o", "missing.safetensors", *more])
    assert done.exit_code != 0 and isinstance(done.exception, EmEvalsError)
    assert sentence in str(done.exception)
