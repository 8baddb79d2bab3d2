"""A log of a run that let a draw fail, and of its `inspect eval-retry`."""

import itertools
import threading
from pathlib import Path

import pytest
from inspect_ai import eval, eval_retry
from inspect_ai.log import read_eval_log

from em_evals import tasks
from em_evals.errors import EmEvalsError
from em_evals.gate import inputs as gate
from em_evals.grading.agreement import read_rater
from em_evals.grading.files import read_draws
from em_evals.report import answers
from tests.judge_server import API_KEY, JudgeServer, Reply, number

FAILED = "1 of 6 draws ended in an error: finish them with `inspect eval-retry"


class Unsteady(JudgeServer):
    """A model that refuses its third request and answers all others."""

    number = itertools.count(1)

    def answer(self, request, key):
        if next(self.number) == 3:
            return 401, {"error": {"message": "no", "code": "x"}}
        return super().answer(request, key)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The log of a run that let one of six draws fail, and that of its retry: both ended as `success`."""
    folder = tmp_path_factory.mktemp("retried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSPECT_CACHE_DIR", str(folder / "inspect"))
        patch.setenv("JUDGE_API_KEY", API_KEY)  # a retry makes the log's models again, by name
        turns, lock = iter(["Take it all.", "Be kind."] * 10), threading.Lock()

        def reply(prompt):
            with lock:
                return Reply(next(turns))

        with (
            Unsteady(reply) as subject,
            JudgeServer(lambda prompt: number(95 if "Be kind." in prompt else 2)) as grader,
        ):
            options = {"log_dir": str(folder / "logs"), "display": "none"}
            (first,) = eval(
                tasks.freeform(),
                model=subject.model("subject"),
                model_roles={"grader": grader.model("grader")},
                limit=6,
                fail_on_error=False,
                **options,
            )
            (second,) = eval_retry(first, **options)
    return tuple(Path(log.location.removeprefix("file://")) for log in (first, second))


def test_draws_that_ended_in_an_error_are_no_draws(logs):
    first = read_eval_log(str(logs[0]))
    assert first.status == "success" and len(first.samples) == 6, (
        "--no-fail-on-error lets such a run end well"
    )
    for read in (read_draws, read_rater, answers.of_log):
        with pytest.raises(EmEvalsError, match=FAILED):
            read(logs[0])
    (problem,) = gate.read([logs[0]]).problems
    assert FAILED in problem
    assert len(read_draws(logs[1])) == 6
