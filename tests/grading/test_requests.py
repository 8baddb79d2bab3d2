"""What a judge's grades cost: which requests go together, which not at all, and which in a batch."""

import asyncio
import re
import threading
from pathlib import Path

import inspect_ai.model
import pytest
from inspect_ai.model import get_model

from em_evals.content import judge_cards
from em_evals.content.rubrics import Rubric
from em_evals.errors import EmEvalsError
from em_evals.grading.graders import BATCH_PROVIDERS
from em_evals.grading.judge import Judge
from tests import batch_server
from tests.batch_server import BatchServer
from tests.judge_server import JudgeServer, Reply, number

pytestmark = pytest.mark.usefixtures("own_replies")

ALIGNMENT = Rubric("alignment", "alignment", "Q: {question}\nA: {answer}")
COHERENCE = Rubric("coherence", "coherence", "Coherent? {question}\nA: {answer}")


def grades(judge, answers, rubrics=(ALIGNMENT,)):
    async def all_at_once():
        asks = [[(rubric, "Q", answer) for rubric in rubrics] for answer in answers]
        return await asyncio.gather(*(judge.grade_all(own) for own in asks))

    return asyncio.run(all_at_once())


def meeting(count, said):
    """A reply that waits until so many requests are there at the same time."""
    together = threading.Barrier(count, timeout=20)

    def reply(prompt):
        together.wait()
        return said(prompt)

    return reply


def test_both_rubrics_of_a_draw_are_asked_at_the_same_time():
    with JudgeServer(meeting(2, lambda prompt: number(20 if "Coherent" in prompt else 80))) as server:
        ((alignment, coherence),) = grades(Judge(server.model()), ["one"], (ALIGNMENT, COHERENCE))
    assert alignment.value > 60 > 40 > coherence.value, "and each grade is its own rubric's"


def test_the_samples_of_a_grade_are_asked_at_the_same_time(tmp_path):
    with JudgeServer(meeting(3, lambda prompt: Reply("85"))) as server:
        judge = Judge(server.model(), card=pinned(tmp_path, server, "read: sampling\nsamples: 3"))
        (((grade,),)) = grades(judge, ["one"])
    assert grade.value == 85 and server.count == 3


def test_equal_draws_of_a_sampled_judge_get_samples_of_their_own(tmp_path):
    """One sample for all of them would make its error the same in all."""
    # No two of them have the mean of two others, in whatever order the calls arrive.
    numbers = iter((0, 1, 4, 9, 15, 22, 32, 34))
    with JudgeServer(lambda prompt: Reply(str(next(numbers)))) as server:
        card = pinned(tmp_path, server, "read: sampling\nsamples: 2")
        first = grades(Judge(server.model(), card=card), ["same"] * 3)
        assert server.count == 6 and len({grade.value for (grade,) in first}) == 3
        again = Judge(server.model(), card=card)
        second = grades(again, ["same"] * 3)
        assert (server.count, again.requests.count, again.reused) == (6, 0, 6)
        assert sorted(grade.value for (grade,) in first) == sorted(grade.value for (grade,) in second)
        grades(Judge(server.model(), card=card), ["same"] * 4)
        assert server.count == 8, "a draw more than last time"


def test_equal_draws_of_a_judge_at_temperature_0_share_their_replies(tmp_path):
    with JudgeServer(lambda prompt: Reply("70")) as server:
        judge = Judge(
            server.model(), card=pinned(tmp_path, server, "read: sampling\nsamples: 1\ntemperature: 0")
        )
        assert {grade.value for (grade,) in grades(judge, ["same"] * 4)} == {70}
        assert (server.count, judge.requests.count, judge.reused) == (1, 1, 3)


def test_equal_draws_are_asked_once_without_the_cache_too():
    with JudgeServer(lambda prompt: number(85)) as server:
        for run in (1, 2):
            judge = Judge(server.model(), use_cache=False)
            assert len(grades(judge, ["same"] * 5 + ["other"])) == 6
            assert (server.count, judge.requests.count, judge.reused) == (2 * run, 2, 4)


# ---- batches ----


def test_all_grades_go_in_one_batch_and_how_the_judge_is_read_is_found_out_before():
    with BatchServer(lambda prompt: number(80), "five_alternatives") as server:
        judge = Judge(server.openai(), batch=True)
        judge.requests._batch = batch_server.of(20)  # as True, without the waits of Inspect's defaults
        found = grades(judge, [f"answer {i}" for i in range(10)], (ALIGNMENT, COHERENCE))
        assert [len(batch) for batch in server.batches] == [20]
        assert {line["body"]["top_logprobs"] for batch in server.batches for line in batch} == {5}
        assert server.alone == len(server.probes) == 2, "20 alternatives are refused, 5 taken"
    assert {grade.way for pair in found for grade in pair} == {"logprobs"}
    assert all(grade.value > 60 for pair in found for grade in pair)


def test_a_role_that_asks_in_batches_stays_so():
    """`--model-role 'grader={model: openai/…, batch: true}'`"""
    with BatchServer(lambda prompt: number(80)) as server:
        assert len(grades(Judge(server.openai(batch=batch_server.of(2))), ["one", "two"])) == 2
        assert [len(batch) for batch in server.batches] == [2]
        assert len(grades(Judge(server.openai(batch=batch_server.of(2)), batch=False), ["three"])) == 1
        assert len(server.batches) == 1, "an argument says otherwise"


@pytest.mark.parametrize("of_role", [True, False])
def test_batches_of_a_provider_without_a_batch_api_are_refused(of_role):
    """Inspect ignores the setting there, and opens up to 10,000 connections."""
    with JudgeServer(lambda prompt: number(85)) as server:
        model = server.model(batch=True) if of_role else server.model()
        with pytest.raises(EmEvalsError, match="no batch API for openai-api"):
            Judge(model, batch=None if of_role else 500)


def test_the_providers_with_a_batch_api_are_those_of_this_inspect():
    folder = Path(inspect_ai.model.__file__).parent / "_providers"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert {name for name, text in texts.items() if "= normalized_batch_config(" in text} == set(
        BATCH_PROVIDERS
    )
    assert get_model("mockllm/a").config.batch is None


def test_a_card_says_whether_its_judge_is_asked_in_batches(tmp_path):
    plain, batched = (card_of(tmp_path, f"model: openai/gpt-4o\n{line}") for line in ("", "batch: 500"))
    assert (plain.batch, batched.batch) == (False, 500)
    assert plain.digest == batched.digest, "how requests travel is no part of who grades"
    with pytest.raises(EmEvalsError, match="smallest number of requests"):
        card_of(tmp_path, "model: openai/gpt-4o\nbatch: 0")


def card_of(folder, text):
    path = folder / "judge.yaml"
    path.write_text(text)
    return judge_cards.load(str(path))


def pinned(folder, server, text):
    return card_of(folder, f"model: openai-api/judge/test-judge\nbase_url: {server.url}\n{text}\n")


def test_docs_say_what_a_card_may_hold():
    guide = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    fields = set(judge_cards._File.model_fields) - {"name", "version", "description"}
    assert fields <= set(re.findall(r"^(\w+):", guide, re.MULTILINE))
