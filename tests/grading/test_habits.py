"""Real judges' habits, each as a scripted server: what they refuse, how they begin, what they make up."""

import asyncio
import math

import pytest

from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError
from em_evals.grading.grade import SAMPLES
from em_evals.grading.judge import Judge
from tests.judge_server import API_KEY, JudgeServer, Reply, number
from tests.selection import full

pytestmark = pytest.mark.usefixtures("own_replies")

SCALE = Rubric(
    "alignment", "alignment", "Q: {question}\nA: {answer}", categories={"REFUSAL": "refusal", "CODE": "code"}
)


@pytest.fixture
def fast(monkeypatch):
    """Inspect waits between retries; here it only counts."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("inspect_ai.model._retry._sleep", sleep)
    return waits


def grade_all(judge, answers):
    async def every():
        return [await judge.grade(SCALE, "Q", answer) for answer in answers]

    return asyncio.run(every())


def at_once(judge, answers):
    async def every():
        return await asyncio.gather(*(judge.grade(SCALE, "Q", answer) for answer in answers))

    return asyncio.run(every())


# ---- what servers refuse (J2, J5) ----


@pytest.mark.parametrize(
    ("mode", "way", "asked", "told"),
    [
        ("five_alternatives", "logprobs", {"top_logprobs": 5, "max_tokens": 1}, "less than or equal to 5"),
        full("sixteen_tokens", "logprobs", {"top_logprobs": 20, "max_tokens": 16}, "Expected >= 16"),
        ("no_temperature", "logprobs", {"top_logprobs": 20, "max_tokens": 1}, "'temperature'"),
        ("refuses_logprobs", "sampling", {"temperature": 1}, "logprobs are not supported"),
        full("forbids_logprobs", "sampling", {"temperature": 1}, "not allowed to request logprobs"),
        full("unexplained", "sampling", {"temperature": 1}, "Bad request"),
        ("no_logprobs", "sampling", {"temperature": 1}, "reports no log-probabilities"),
    ],
)
def test_what_a_judge_refuses_is_left_out_for_every_draw_and_shown_once(mode, way, asked, told, caplog):
    with JudgeServer(lambda prompt: number(90), mode) as server:
        judge = Judge(server.model())
        grades = at_once(judge, ["one", "two", "three"])
    assert {(grade.way, grade.category) for grade in grades} == {(way, "answer")}
    assert len({grade.value for grade in grades}) == 1
    last = server.requests[-1]
    assert {name: last.get(name) for name in asked} == asked
    assert ("temperature" in last) == (mode != "no_temperature")
    assert len(server.probes) <= 2, "found out once, not for each draw"
    ours = [record.message for record in caplog.records if record.name.startswith("em_evals")]
    shown = [message for message in ours if judge.name in message]
    assert len(shown) == 1 and told in shown[0] == f"judge {judge.name}: {judge.told}"


def test_a_judge_may_refuse_several_parts(monkeypatch):
    from tests import judge_server

    both = judge_server._refusal

    def refusal(mode, request):
        return both("five_alternatives", request) or both("no_temperature", request)

    monkeypatch.setattr(judge_server, "_refusal", refusal)
    with JudgeServer(lambda prompt: number(90)) as server:
        (grade,) = grade_all(Judge(server.model()), ["one"])
    assert (grade.way, grade.category) == ("logprobs", "answer")
    assert server.requests[-1]["top_logprobs"] == 5 and "temperature" not in server.requests[-1]


# ---- one answer's trouble (J2, X4) ----


@pytest.mark.parametrize(
    "refusal",
    [
        Reply("This model's maximum context length is 4096 tokens, max_tokens is 1", status=400),
        Reply(
            "Invalid input near 'logprobs, top_logprobs <= 5, temperature'", status=400
        ),  # it quotes the answer
        Reply("context too long", status=400, code="context_length_exceeded"),
        Reply("The response was filtered", status=400, code="content_filter"),
        Reply("Forbidden by our policy", status=403),
        Reply("Internal error", status=500),
    ],
    ids=lambda reply: reply.text[:20],
)
@pytest.mark.parametrize("place", [pytest.param(0, id="first"), pytest.param(1, id="later", marks=pytest.mark.full)])  # fmt: skip
def test_a_bad_request_is_one_draws_trouble(refusal, place, fast):
    answers = ["good", "better"]
    answers.insert(place, "hostile")

    def reply(prompt):
        return refusal if "hostile" in prompt else number(90)

    with JudgeServer(reply) as server:
        judge = Judge(server.model())
        grades = grade_all(judge, answers)
    lost = grades.pop(place)
    assert lost.category == "unscored" and math.isnan(lost.value)
    assert refusal.text in lost.note and API_KEY not in lost.note
    assert {(grade.way, grade.category) for grade in grades} == {("logprobs", "answer")}
    assert judge.reading.why == "", "the judge is read as before"


def test_an_odd_reply_to_one_answer_is_sampled_and_changes_nothing_for_the_others():
    def reply(prompt):
        return Reply("Well, I say 40.", {"Well": 0.9, "So": 0.1}) if "odd" in prompt else number(90)

    with JudgeServer(reply) as server:
        judge = Judge(server.model())
        odd, plain = grade_all(judge, ["odd", "plain"])
    assert (odd.way, odd.value) == ("sampling", 40)
    assert (plain.way, len(server.probes)) == ("logprobs", 1)
    assert len(server.requests) == 1 + SAMPLES + 1


def test_rate_limits_are_waited_for(fast):
    left = iter(range(12))

    def reply(prompt):
        return number(90) if next(left, None) is None else Reply("Rate limit reached", status=429)

    with JudgeServer(reply) as server:
        (grade,) = grade_all(Judge(server.model(max_retries=None)), ["one"])
    assert (grade.category, len(server.requests)) == ("answer", 13)
    assert len(fast) >= 10, "more than one round of Inspect's retries"


def test_an_empty_account_is_not_waited_for(fast):
    reply = Reply("You exceeded your current quota", status=429, code="insufficient_quota")
    with (
        JudgeServer(lambda prompt: reply, probe=lambda: reply) as server,
        pytest.raises(EmEvalsError, match="exceeded your current quota"),
    ):
        grade_all(Judge(server.model(max_retries=None)), ["one"])
    assert len(server.requests) + len(server.probes) <= 12, "Inspect's retries, once for each"


def test_a_judge_that_dies_on_the_way_leaves_draws_unscored(fast):
    with JudgeServer(lambda prompt: number(90)) as server:
        judge = Judge(server.model())
        (first,) = grade_all(judge, ["one"])
    (second,) = grade_all(judge, ["two"])
    assert (first.category, second.category) == ("answer", "unscored") and "onnect" in second.note


def test_a_judge_that_answers_nothing_at_all_ends_the_run(fast):
    down = Reply("the model is not loaded", status=500)
    with (
        JudgeServer(lambda prompt: down, probe=lambda: down) as server,
        pytest.raises(EmEvalsError, match="500: the model is not loaded"),
    ):
        grade_all(Judge(server.model()), ["one"])


def test_a_reply_without_choices_is_one_draws_trouble():
    with JudgeServer(lambda prompt: number(90)) as server:
        judge = Judge(server.model())
        grade_all(judge, ["one"])
        server.mode = "no_choices"
        (lost,) = grade_all(judge, ["two"])
    assert lost.category == "unscored" and lost.note


# ---- how judges begin (J3) ----


@pytest.mark.parametrize("token", ["▁90", full(" 90"), full("\n90"), "**90", '"90'])
def test_a_number_in_markup_is_a_number(token):
    with JudgeServer(lambda prompt: Reply("90", {token: 0.9, "10": 0.1}), probe=lambda: number(85)) as server:
        (grade,) = grade_all(Judge(server.model()), ["one"])
    assert (grade.way, grade.value) == ("logprobs", pytest.approx(82)) and len(server.requests) == 1


@pytest.mark.parametrize("token", ["**", "\n", full(" "), full('{"'), full("▁")])
def test_markup_before_the_number_is_read_with_more_tokens(token):
    def reply():
        return Reply(f"{token}90", {"90": 0.9, "10": 0.1}, before=(token,))

    with JudgeServer(lambda prompt: reply(), probe=reply) as server:
        judge = Judge(server.model())
        grades = grade_all(judge, ["one", "two"])
    assert [(grade.way, grade.value) for grade in grades] == [("logprobs", pytest.approx(82))] * 2
    assert (len(server.requests), judge.reading.tokens) == (3, 16)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("<think>", "<think>10?</think>90"),
        full("Score", "Score: 90"),
        ("token_id:90", "90"),
        full("My", "My grade: 90"),
    ],
)
def test_a_judge_that_begins_with_words_is_sampled(token, text, caplog):
    def reply():
        return Reply(text, {token: 0.99, "x": 0.01})

    with JudgeServer(lambda prompt: reply(), probe=reply) as server:
        judge = Judge(server.model())
        grades = grade_all(judge, ["one", "two"])
    assert [(grade.way, grade.value) for grade in grades] == [("sampling", 90)] * 2
    assert len(server.requests) == 1 + 2 * SAMPLES and token in judge.told


# ---- what servers make up (J4) ----


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("zeros", "all 0.0"),
        ("above_one", "add up to"),
        ("huge", "above 0"),
        ("unlisted", "not in its own list"),
        ("no_alternatives", "no alternatives"),
        ("digits", "digit by digit"),
    ],
)
def test_made_up_log_probabilities_are_not_averaged(mode, why):
    with JudgeServer(lambda prompt: number(90), mode) as server:
        judge = Judge(server.model())
        grades = grade_all(judge, ["one", "two"])
    assert [(grade.way, grade.value) for grade in grades] == [("sampling", 90)] * 2
    assert why in judge.told and len(server.probes) == 1


# ---- replies that cannot be used (U1) ----


def test_useless_replies_are_never_cached():
    says = {"text": "I had rather not say."}

    def reply():
        return Reply(says["text"])

    with JudgeServer(lambda prompt: reply(), "refuses_logprobs", probe=reply) as server:
        (first,) = grade_all(Judge(server.model(), samples=2), ["one"])
        says["text"] = "Grade: 90"
        (second,) = grade_all(Judge(server.model(), samples=2), ["one"])
    assert (first.category, second.category, second.value) == ("unscored", "answer", 90)


def test_a_useless_first_token_is_never_cached():
    with JudgeServer(lambda prompt: Reply("eh", {"eh": 0.9, "oh": 0.1})) as server:
        (first,) = grade_all(Judge(server.model()), ["one"])
        server.reply = lambda prompt: number(90)
        (second,) = grade_all(Judge(server.model()), ["one"])
    assert (first.category, second.category, second.way) == ("unscored", "answer", "logprobs")


def test_without_the_cache_everything_is_asked_again(tmp_path):
    with JudgeServer(lambda prompt: number(90)) as server:
        for use in (False, False):
            grade_all(Judge(server.model(), use_cache=use), ["one"])
        assert len(server.requests) == 2 and not list(tmp_path.rglob("*.json"))
        grade_all(Judge(server.model()), ["one"])
        grade_all(Judge(server.model()), ["one"])
        assert len(server.requests) == 3
    (kept,) = tmp_path.rglob("*.json")
    assert kept.stat().st_mode & 0o077 == 0, "nobody else reads it"
    kept.write_text("{")
    with JudgeServer(lambda prompt: number(90)) as server:
        grade_all(Judge(server.model()), ["one"])
        assert len(server.requests) == 1, "a damaged file is asked for again"
