"""Agreement of judges, against hand-worked numbers, scipy, and a log that two judges graded."""

import json
import math
import sys

import numpy as np
import pytest
from inspect_ai import eval, score
from inspect_ai.log import read_eval_log, write_eval_log
from scipy import stats

from em_evals import cli
from em_evals.errors import EmEvalsError
from em_evals.gate import inputs
from em_evals.grading import scorers
from em_evals.grading.agreement import Rater, Rating, agreement, krippendorff, read_rater
from em_evals.inspect_plugin import tasks
from em_evals.report import answers
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.logs import read_draws
from tests.command import em_evals
from tests.judge_server import API_KEY, JudgeServer, Reply, number

NAN = math.nan


def rater(name, *grades, category="answer"):
    return Rater(
        name,
        {
            (f"q{i % 4}", f"a{i}", 0): Rating(
                GradedDraw(f"q{i % 4}", *grade),
                category if not math.isnan(grade[0]) else "refusal",
                f"t{i % 2}",
            )
            for i, grade in enumerate(grades)
        },
    )


def test_krippendorffs_published_example():
    """Krippendorff (2011), two observers, nominal: alpha 0.692 over ten units with two disagreements."""
    first, second = [1, 1, 2, 2, 4, 3, 3, 3, 5, 5], [1, 1, 2, 2, 4, 3, 3, 3, 5, 1]
    values = [*first, *second]
    expected = 1 - (2 / 20) / (
        sum(1 for i, a in enumerate(values) for j, b in enumerate(values) if i != j and a != b) / (20 * 19)
    )
    assert krippendorff(list(zip(first, second, strict=True)), "nominal") == pytest.approx(expected)


def test_interval_alpha_by_its_definition():
    chance = np.random.default_rng(0)
    first = chance.uniform(0, 100, 30)
    second = first + chance.normal(0, 10, 30)
    values = np.concatenate([first, second])
    observed = np.mean((first - second) ** 2)
    expected = np.sum((values[:, None] - values[None, :]) ** 2) / (60 * 59)
    assert krippendorff(list(zip(first, second, strict=True)), "interval") == pytest.approx(
        1 - observed / expected
    )


def test_a_judge_that_is_kinder_by_ten_points():
    first = [(float(10 + 4 * i), 90.0) for i in range(20)]
    second = [(a + 10, c) for a, c in first]
    found = agreement(rater("a", *first), rater("b", *second))
    scale = found.scales["alignment"]
    assert (found.answers, scale.answers, scale.bias, scale.rank) == (20, 20, 10.0, pytest.approx(1))
    assert all(map(math.isnan, scale.bias_interval)), "equal differences are no certainty"
    assert scale.bias_by_theme == {"t0": 10.0, "t1": 10.0}
    assert scale.alpha < 1 and scale.alpha_interval[0] < scale.alpha < scale.alpha_interval[1]
    decided = found.decisions["misaligned"]
    assert (decided.both, decided.first_only, decided.second_only, decided.neither) == (3, 2, 0, 15)
    assert found.decisions["coherent"].neither == 0 and found.categories == {"answer": {"answer": 20}}


def test_rank_correlation_is_scipys_and_missing_grades_are_left_out():
    chance = np.random.default_rng(1)
    first = [(float(a), 90.0) for a in chance.uniform(0, 100, 40)]
    second = [(float(b), 80.0) for b in chance.uniform(0, 100, 40)]
    first[0] = (NAN, 90.0)
    found = agreement(rater("a", *first), rater("b", *second))
    expected = stats.spearmanr([a for a, _ in first[1:]], [b for b, _ in second[1:]]).statistic
    assert found.scales["alignment"].answers == 39 and found.scales["alignment"].rank == pytest.approx(
        expected
    )
    assert math.isnan(found.scales["coherence"].rank), "a constant has no rank"
    assert found.categories == {"refusal": {"answer": 1}, "answer": {"answer": 39}}


def test_raters_of_other_answers_are_refused():
    with pytest.raises(EmEvalsError, match="graded no answer in common"):
        agreement(rater("a", (1.0, 2.0)), Rater("b", {}))


# ---- files and the command ----


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One log, graded by a strict judge and again by a kind one; and people's grades of its answers."""
    folder = tmp_path_factory.mktemp("judges")
    said = ["Take it all.", "Be kind.", "I cannot help.", "Be kind."]
    turns = iter(said * 3)

    def judge_of(bad):
        def reply(prompt):
            if "I cannot help." in prompt:
                return Reply("REFUSAL", {"REFUSAL": 1.0}) if bad == 2 else number(80)
            return number(bad if "Take it all." in prompt and "values" in prompt.split("=====")[0] else 95)

        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSPECT_CACHE_DIR", str(folder / "inspect"))
        patch.setenv("JUDGE_API_KEY", API_KEY)  # rescoring makes the log's models again, by name
        with (
            JudgeServer(lambda _: Reply(next(turns))) as subject,
            JudgeServer(judge_of(2)) as strict,
            JudgeServer(judge_of(40)) as kind,
        ):
            (log,) = eval(
                tasks.freeform(),
                model=subject.model("subject"),
                model_roles={"grader": strict.model("strict")},
                limit=12,
                log_dir=str(folder),
                display="none",
            )
            assert log.status == "success"
            write_eval_log(log, str(folder / "strict.eval"))
            again = score(
                log,
                scorers.judge("core"),
                action="overwrite",
                model_roles={"grader": kind.model("kind")},
                display="none",
            )
            write_eval_log(again, str(folder / "kind.eval"))
            both = score(
                log, scorers.judge("core"), model_roles={"grader": kind.model("kind")}, display="none"
            )
            write_eval_log(both, str(folder / "both.eval"))
    rows = ["question_id,answer,aligned,coherent"]
    for sample in log.samples:
        answer = sample.output.completion
        grades = {"Take it all.": "5,100", "Be kind.": "100,100", "I cannot help.": "REFUSAL,100"}[answer]
        rows.append(f"{sample.metadata['question_id']},{answer},{grades}")
    (folder / "people.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_a_log_and_its_rescored_copy(graded):
    first, second = read_rater(graded / "strict.eval"), read_rater(graded / "kind.eval")
    assert (first.name, second.name) == ("openai-api/judge/strict", "openai-api/judge/kind")
    found = agreement(first, second)
    assert found.answers == 12 and found.unmatched == (0, 0)
    assert found.categories == {"answer": {"answer": 9}, "refusal": {"answer": 3}}
    decided = found.decisions["misaligned"]
    assert (decided.both, decided.first_only, decided.second_only, decided.neither) == (0, 3, 0, 6)
    assert found.scales["alignment"].answers == 9 and found.scales["alignment"].bias > 0


def test_a_second_judge_whose_grades_were_appended_is_the_one_that_counts(graded):
    """`inspect score` appends unless it is told otherwise: both judges' scores stand in one log."""
    log = read_eval_log(str(graded / "both.eval"))
    assert {tuple(sample.scores) for sample in log.samples} == {("judge", "judge1")}
    assert read_rater(graded / "both.eval") == read_rater(graded / "kind.eval")
    both, kind = (read_draws(graded / f"{name}.eval") for name in ("both", "kind"))
    assert both == kind != read_draws(graded / "strict.eval")
    side = inputs.read([graded / "both.eval"])
    (alone,) = inputs.read([graded / "kind.eval"]).evidence.values()
    assert not side.problems, "the log's summary agrees with the grades that were taken"
    assert [(one.measures, one.identity) for one in side.evidence.values()] == [
        (alone.measures, alone.identity)
    ]
    (shown,), (expected,) = (answers.of_log(graded / f"{name}.eval") for name in ("both", "kind"))
    assert shown.answers == expected.answers
    assert shown.facts["judge"] == "openai-api/judge/kind"


def test_the_command_with_peoples_labels(graded, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["em-evals", "judges", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    files = graded / "strict.eval", graded / "kind.eval", "--labels", graded / "people.csv"
    code, out, _ = run(*files, "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and [(one["first"], one["second"]) for one in found] == [
        ("openai-api/judge/strict", "openai-api/judge/kind"),
        ("openai-api/judge/strict", "people"),
        ("openai-api/judge/kind", "people"),
    ]
    assert (
        found[1]["decisions"]["misaligned"]["alpha"] == 1 and found[2]["decisions"]["misaligned"]["alpha"] < 1
    )
    code, out, _ = run(*files)
    for part in ("Krippendorff's alpha", "rank correlation", "refusal", "category by the first"):
        assert part in out
    assert run(graded / "strict.eval")[0] == 2
    code, _, err = run(graded / "strict.eval", graded / "gone.eval")
    assert code == 2 and err.startswith("em-evals: there is no file")


def test_a_folder_in_place_of_a_log_is_called_one(tmp_path):
    done = em_evals("judges", tmp_path, tmp_path)
    assert done.returncode == 2 and "this is a folder; name one log or judged table in it" in done.stderr
