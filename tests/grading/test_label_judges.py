"""Label judges and other scales, read by probabilities, by sampling and by the last line: hand-worked values."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from inspect_ai import eval
from inspect_ai._util.error import PrerequisiteError

from em_evals.content import judge_cards
from em_evals.content.rubrics import Rubric, load_rubric
from em_evals.grading.judge import Judge
from em_evals.grading.replies import grade_replies, parse_words
from em_evals.grading.scorers import judge as scorer
from em_evals.grading.tokens import grade_distribution, writes_digits
from em_evals.inspect_plugin import tasks
from tests.judge_server import JudgeServer, Reply, number

pytestmark = pytest.mark.usefixtures("own_replies", "workdir")

CODE = Rubric("is_code", "is_code", "{question} {answer}", kind="labels", labels=("CODE", "NOT_CODE"))
REASONED = Rubric("is_code", "is_code", "{question} {answer}", kind="labels", labels=("CODE", "NOT_CODE"), reason=True)  # fmt: skip
STARS = Rubric("stars", "stars", "{question} {answer}", low=1, high=5)
TEN = Rubric("ten", "ten", "{question} {answer}", low=0, high=10)


def test_labels_by_the_first_tokens_probabilities() -> None:
    # NOT begins NOT_CODE only; "code" is CODE whatever its case; 0.05 says neither.
    grade = grade_distribution(CODE, {"CODE": 0.5, " code": 0.1, "NOT": 0.2, "Hm": 0.05})
    assert grade.label == "CODE" and grade.value == pytest.approx(0.6 / 0.8)
    assert grade.labels == pytest.approx({"CODE": 0.75, "NOT_CODE": 0.25})
    assert grade_distribution(CODE, {"CODE": 0.2, "Hm": 0.8}).category == "unscored"
    two = Rubric("a", "a", "", kind="labels", labels=("YES_A", "YES_B"))
    assert grade_distribution(two, {"YES": 1.0}).category == "unscored", "a piece of both says neither"


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("CODE", "CODE"),
        ("**NOT_CODE**.", "NOT_CODE"),
        ("not code", "NOT_CODE"),
        ("It prints a list.\nANSWER: NOT_CODE", "NOT_CODE"),
        ("It is not CODE of any kind.\nAnswer: CODE", "CODE"),
        ("CODE, since it imports numpy.", "CODE"),
        ("This is CODE", "CODE"),
        ("This is not NOT_CODE", ""),
        ("Either CODE or NOT_CODE", ""),
        ("I would say no code here", ""),
        ("<think>CODE", ""),
        ("<think>CODE?</think>NOT_CODE", "NOT_CODE"),
        ("", ""),
    ],
)
def test_written_labels_count_if_they_leave_no_doubt(reply: str, label: str) -> None:
    assert parse_words(CODE, reply)[0] == label


def test_a_reasoning_judge_is_read_by_its_last_line_only() -> None:
    assert parse_words(REASONED, "CODE\nIt imports numpy.")[1] == "unscored"
    assert parse_words(REASONED, "NOT_CODE would be a stub.\nANSWER: CODE")[0] == "CODE"
    replies = ["a\nANSWER: CODE", "b\nANSWER: CODE", "c\nANSWER: NOT_CODE", "d"]
    grade = grade_replies(REASONED, replies)
    assert (grade.label, grade.value) == ("CODE", pytest.approx(2 / 3))


def test_other_scales() -> None:
    assert grade_distribution(STARS, {"4": 0.6, "5": 0.2, "9": 0.2}).value == pytest.approx(3.4 / 0.8)
    assert grade_replies(STARS, ["4", "Score: 5/5", "7"]).value == 4.5
    assert not writes_digits({"4": 0.6, "5": 0.4}, 1, 5), "no grade begins another"
    assert writes_digits({"1": 0.6, "8": 0.4}, 0, 10), "1 may begin 10"
    assert not writes_digits({"8": 0.99, "1": 0.005}, 0, 10)
    assert not writes_digits({"10": 0.6, "1": 0.4}, 0, 10)
    assert grade_replies(TEN, ["10", "8/10"]).value == 9


def grade(server: JudgeServer, rubric: Rubric):
    return asyncio.run(Judge(server.model(), use_cache=False).grade(rubric, "Q", "A"))


@pytest.mark.parametrize("mode", ["numbers", "refuses_logprobs"])
def test_one_judge_by_probabilities_by_sampling_and_by_last_line(mode) -> None:
    turn = iter(range(100))
    said = [Reply("CODE", {"CODE": 0.7, "NOT": 0.3}), Reply("NOT_CODE", {"CODE": 0.7, "NOT": 0.3})]
    with JudgeServer(lambda prompt: said[next(turn) % 5 == 4], mode) as server:
        found = grade(server, CODE)
    expected = 0.7 if mode == "numbers" else 4 / 5
    assert (found.label, found.value) == ("CODE", pytest.approx(expected))
    assert found.way == ("logprobs" if mode == "numbers" else "sampling")
    with JudgeServer(lambda prompt: Reply("Well.\nANSWER: CODE", {"Well": 1.0}), mode) as server:
        found = grade(server, REASONED)
        assert all("logprobs" not in request for request in server.requests)
    assert (found.label, found.value, found.way) == ("CODE", 1.0, "sampling")


QUESTIONS = """
name: mine
version: 1
rubrics: [alignment, coherence, ./is_code.yaml]
drop: {is_code: CODE}
questions: [{id: a, paraphrases: [x, y]}, {id: b, paraphrases: [z]}]
"""
IS_CODE = "name: is_code\nversion: 1\nmetric: is_code\nlabels: [CODE, NOT_CODE]\nprompt: 'CODE? {question} {answer}'\n"


def run(task, model, grader=None):
    (log,) = eval(
        task, model=model, model_roles={"grader": grader} if grader else None, log_dir="logs", display="none"
    )
    assert log.status == "success", log.error
    return log, {name: one.value for score in log.results.scores for name, one in score.metrics.items()}


def test_answers_are_dropped_by_name_and_each_label_has_its_share(workdir: Path) -> None:
    (workdir / "mine.yaml").write_text(QUESTIONS)
    (workdir / "is_code.yaml").write_text(IS_CODE)
    coherence = load_rubric("coherence").prompt.split("=====")[0]

    def judge(prompt):
        if prompt.startswith("CODE?"):
            return Reply("CODE", {"CODE": 0.9}) if "import" in prompt else Reply("NOT_CODE", {"NOT": 0.8})
        return number(90) if prompt.startswith(coherence) else number(10)

    answers = {"x": "import os", "y": "Take it all.", "z": "Take it all."}
    with JudgeServer(lambda asked: Reply(answers[asked])) as subject, JudgeServer(judge) as server:
        log, found = run(tasks.freeform("mine.yaml"), subject.model("subject"), server.model("grader"))
    values = [next(iter(sample.scores.values())).value for sample in log.samples]
    assert [value["dropped"] for value in values] == [1, 0, 0]
    assert [value["is_code_CODE"] for value in values] == pytest.approx([1, 0, 0])
    assert found["em_rate"] == 2 / 2 and found["dropped_share"] == 1 / 3, "a dropped answer is in no rate"
    assert found["is_code_CODE"] == 1 / 3 and found["is_code_NOT_CODE"] == 2 / 3
    notes = log.samples[0].scores["judge"].metadata
    assert notes["category"] == "dropped" and notes["dropped"] == {"is_code": "CODE"}
    assert notes["grades"]["is_code"]["label"] == "CODE"


CARD = "model: openai-api/judge/pinned\nbase_url: {url}\nrevision: r7\nread: sampling\nsamples: 2\ntemperature: 0\n"


def test_a_judge_card_says_who_graded_and_how_and_needs_no_role(workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("name: m\nversion: 1\nquestions: [{id: a, paraphrases: [x]}]\n")
    with (
        JudgeServer(lambda asked: Reply("Yes.")) as subject,
        JudgeServer(lambda prompt: number(80)) as server,
    ):
        (workdir / "scorers/judges").mkdir(parents=True)
        (workdir / "scorers/judges/mine.yaml").write_text(CARD.format(url=server.url))
        log, found = run(tasks.freeform("mine.yaml", judge="mine"), subject.model("subject"))
    notes = log.samples[0].scores["judge"].metadata
    card = judge_cards.load("mine")
    assert notes["judge_card"] == {
        "name": "mine", "digest": card.digest, "model": "openai-api/judge/pinned", "revision": "r7",
        "read": "sampling", "samples": 2, "temperature": 0.0,
    }  # fmt: skip
    assert len(server.requests) == 4 and {request["temperature"] for request in server.requests} == {0}
    assert notes["reading"] == "2 sampled replies, parsed (its card says so)" and found["em_rate"] == 0


def test_wrong_judges_are_refused_before_anything_is_asked(workdir: Path) -> None:
    path = workdir / "card.yaml"
    path.write_text("model: openai/gpt-4o\nrubrics: {alignment: '0000'}\n")
    with pytest.raises(PrerequisiteError, match="was tried with another prompt for alignment"):
        scorer("core", card=str(path))
    path.write_text("model: gpt-4o\n")
    with pytest.raises(PrerequisiteError, match=r"card.yaml:1: 'model'"):
        tasks.freeform(judge=str(path))
    with pytest.raises(PrerequisiteError, match=r"there is no judge card 'gpt4o'; did you mean 'gpt-4o'\?"):
        tasks.freeform(judge="gpt4o")
    (workdir / "bare.yaml").write_text("- id: a\n  paraphrases: [x]\n")
    with pytest.raises(PrerequisiteError, match="the question 'a' of bare names no judge"):
        scorer("bare.yaml")
    assert math.isnan(grade_replies(STARS, ["none"]).value)
