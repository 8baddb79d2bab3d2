"""Folders in which `inspect eval-retry` finished a log: every reader passes over the one that it leaves, and says so."""

import itertools
import os
import threading
from pathlib import Path

import pytest
from inspect_ai import eval, eval_retry
from inspect_ai.log import read_eval_log, write_eval_log

from em_evals.errors import EmEvalsError
from em_evals.gate import inputs as gate
from em_evals.gate.compare import judge as verdict
from em_evals.gate.policy import Policy
from em_evals.grading.agreement import read_rater
from em_evals.inspect_plugin import tasks
from em_evals.report import answers
from em_evals.report import inputs as report
from em_evals.results import folders, sources
from em_evals.results.folders import is_other_json, retried
from em_evals.results.logs import read_draws
from tests.judge_server import API_KEY, JudgeServer, Reply, number
from tests.scored_log import write_scored_pairs

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


@pytest.fixture
def folder(logs, tmp_path):
    """Both logs, and what `inspect eval-set` puts beside them."""
    for path in logs:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "eval-set.json").write_text('{"eval_set_id": "x", "tasks": []}')
    return tmp_path


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


def cancelled(path):
    """What Ctrl-C leaves: some draws, and no summary of all."""
    log = read_eval_log(str(path))
    log.status, log.samples, log.results = "cancelled", log.samples[:2], None
    write_eval_log(log, str(path))


@pytest.mark.parametrize("leave", [None, cancelled], ids=["a failed draw", "interrupted"])
def test_what_a_retry_finished_is_passed_over_and_noted(logs, folder, leave):
    old, new = (folder / path.name for path in logs)
    if leave:
        leave(old)
    assert retried(folder.iterdir()) == {old: new}
    side = gate.read([folder])
    assert not side.problems and list(side.evidence) == ["freeform/core"]
    told = f"{old.name} was passed over: {new.name} finished it."
    assert f"candidate: {told}" in verdict(side, side, Policy()).notes
    made = report.read([folder])
    assert [entry.file for entry in made.measured] == [new.name] and len(made.measured[0].answers) == 6
    assert {row["file"]: row["what"] for row in made.files} == {
        old.name: f"passed over: {new.name} finished it",
        "eval-set.json": "passed over",
    }
    with pytest.raises(EmEvalsError, match="or leave this file out"):
        report.read([folder, old])


def test_what_nothing_finished_is_still_refused(logs, folder):
    old, new = (folder / path.name for path in logs)
    new.unlink()
    cancelled(old)
    assert retried(folder.iterdir()) == {}
    words = "this run ended as 'cancelled': finish it with `inspect eval-retry"
    assert words in gate.read([folder]).problems[0]
    with pytest.raises(EmEvalsError, match=words):
        report.read([folder])


def test_gate_report_and_rates_read_the_same_files_of_a_folder(logs, tmp_path):
    """Below any number of folders; hidden names, unfinished folders, pipes and other JSON are passed over."""
    log = logs[1].read_bytes()
    for name in ("runs/today/kept.eval", ".trash/old.eval", "runs/x.partial/half.eval", "runs/.hidden.eval"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(log)
    (tmp_path / "other.json").write_text("{}")
    os.mkfifo(tmp_path / "runs" / "pipe.json")
    os.mkfifo(tmp_path / "pipe.eval")
    notes = []
    assert [one.path.name for one in sources.read([tmp_path], notes.append)] == ["kept.eval"] and not notes
    assert [entry.file for entry in report.read([tmp_path]).measured] == ["kept.eval"]
    side = gate.read([tmp_path])
    assert list(side.evidence) == ["freeform/core"] and not side.problems


def test_a_pipe_that_is_named_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.eval")
    with pytest.raises(EmEvalsError, match="this is not a regular file"):
        folders.walk([tmp_path / "pipe.eval"])
    assert "not a regular file" in gate.read([tmp_path / "pipe.eval"]).problems[0]


def test_rates_of_a_folder_name_what_they_pass_over(logs, folder):
    write_scored_pairs(folder / "pairs.eval")
    notes = []
    (source,) = sources.read([folder], notes.append)
    assert source.path.name == logs[1].name and len(source.draws) == 6
    assert f"{logs[0].name} was passed over: {logs[1].name} finished it." in notes
    assert any(note.startswith("pairs.eval was passed over: this log holds scored pairs") for note in notes)
    with pytest.raises(EmEvalsError, match="scored pairs and no sampled answers"):
        list(sources.read([folder / "pairs.eval"], notes.append))


def test_two_whole_logs_of_one_task_and_damaged_ones_stay(logs, folder):
    """`inspect score` writes a second judge's copy under the same task id: both count."""
    old, new = (folder / path.name for path in logs)
    old.write_bytes(new.read_bytes())
    (folder / "cut.eval").write_bytes(new.read_bytes()[:500])
    assert retried(folder.iterdir()) == {}


def test_logs_as_json_are_no_other_json(logs, tmp_path):
    first, second = (read_eval_log(str(path)) for path in logs)
    for name, log in (("first", first), ("second", second)):
        write_eval_log(log, str(tmp_path / f"{name}.json"), format="json")
    (tmp_path / "cut.json").write_text('{"eval": {')
    assert not any(is_other_json(path) for path in [*tmp_path.iterdir(), *logs])
    assert retried(tmp_path.iterdir()) == {tmp_path / "first.json": tmp_path / "second.json"}


def test_a_trajectory_reads_the_finished_log(logs, folder):
    pytest.importorskip("torch")
    from em_evals.interp.phase.phase import _em_rates

    def stating(digest):
        for path in logs:
            log = read_eval_log(str(folder / path.name))
            log.eval.model = "local/mine@8"
            log.eval.metadata = {**log.eval.metadata, "card_digest": digest}
            write_eval_log(log, str(folder / path.name))

    stating(None)  # `mine` is no card here, so that a digest could not be compared
    (point,) = _em_rates("mine", folder)
    events = sum(draw.misaligned_coherent for draw in read_draws(logs[1]))
    assert point.step == 8 and point.value == events / 6
    stating("0123")
    with pytest.raises(
        EmEvalsError, match=r"this log is of local/mine@8, which cannot .* leave it out"
    ) as caught:
        _em_rates("mine", folder)
    assert logs[1].name in str(caught.value)


def test_a_folder_of_other_tables_only_names_one_of_them(tmp_path):
    (tmp_path / "draws.jsonl").write_text("{}")
    with pytest.raises(EmEvalsError, match=r"Give judged draws of other kinds by name: \S+draws\.jsonl"):
        folders.walk([tmp_path])
