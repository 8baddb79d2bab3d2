"""`em-evals gate` as users and CI run it: exit codes, outputs, baselines, plans, the action's own steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lxml import etree

from em_evals import cli
from em_evals.gate import baseline, compare, inputs, outputs, plan
from em_evals.gate.compare import judge
from em_evals.gate.inputs import Side
from em_evals.gate.policy import Policy
from em_evals.results import records
from em_evals.stats.rates import RateContrast
from tests.gate.test_gate_compare import freeform, scored, side
from tests.lm_eval_files import write_results
from tests.selection import full

ROOT = Path(__file__).parents[2]
VERDICTS = {"pass": 0, "regression": 1, "invalid": 2, "inconclusive": 3}


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["em-evals", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def results(workdir):
    """lm-eval results for each verdict against `before`."""
    right = [i % 10 < 7 for i in range(200)]
    return {
        "before": write_results(workdir / "before", "mini", right),
        "pass": write_results(workdir / "same", "mini", right),
        "regression": write_results(workdir / "worse", "mini", [False] * 40 + right[40:]),
        "inconclusive": write_results(
            workdir / "open", "mini", [not right[i] if i < 20 else right[i] for i in range(200)]
        ),
        "invalid": write_results(workdir / "few", "mini", right[:10]),
    }


@pytest.mark.parametrize("verdict", VERDICTS)
def test_exit_codes(run, results, verdict):
    code, out, _ = run(
        "gate",
        "--baseline",
        results["before"],
        "--candidate",
        results[verdict],
        "-o",
        "out/gate.json",
        "--json",
    )
    assert code == VERDICTS[verdict]
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["verdict"] == verdict and told["exit_code"] == code and told["sentence"].startswith(verdict)
    assert json.loads(Path("out/gate.json").read_text()) == told
    assert records.read(Path("out/gate.json")).verdict == verdict, "what `em-evals report` reads"
    assert f"## Gate: {verdict}" in Path("out/gate.md").read_text()


def test_the_output_is_the_record_and_has_its_ending(run, results):
    code, _, err = run("gate", "--baseline", results["before"], "--candidate", results["pass"], "-o", "out")
    assert code == 2 and "name the record with the ending .json" in err and not Path("out").exists()


def test_the_table_and_the_sentences(run, results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("gate", "--baseline", results["before"], "--candidate", results["regression"])
    for part in ("lm_eval.mini.acc", "regression", "difference [95%]", "after Holm", "fell from 0.700 to"):
        assert part in out, out
    assert code == 1 and out.rstrip().splitlines()[-1].startswith("regression: the candidate is worse")


def test_what_is_missing_is_one_sentence(run, workdir):
    assert run("gate", "--baseline", "x")[::2] == (2, "em-evals: name the log to judge: --candidate PATH.\n")
    code, out, err = run("gate", "--baseline", "nothing.eval", "--candidate", "nothing.eval")
    assert code == 2 and "there is no file or folder 'nothing.eval'" in out and not err
    assert "Traceback" not in out


def test_a_baseline_that_was_never_saved_is_told_how_it_is_saved(run, results):
    code, out, _ = run("gate", "--baseline", "base", "--candidate", results["pass"])
    assert code == 2 and "note:" not in out
    assert (
        "no file, folder or baseline 'base' (`--candidate LOG --update-baseline base` saves one); there are"
        in out
    )
    run("gate", "--candidate", results["before"], "--update-baseline", "base")
    _, out, _ = run("gate", "--baseline", "bsae", "--candidate", results["pass"])
    assert "did you mean 'base'?" in out


def test_a_model_does_not_differ_from_its_own_baseline(workdir):
    """Stored numbers have nine digits: a model "rose" from -4.455 to -4.455, by the others."""
    own = inputs.read([write_results(workdir / "own", "mini", [1 / 3] * 40)])
    baseline.write("own", list(own.evidence.values()))
    assert own.evidence and inputs.read(["own"]).evidence == own.evidence


def test_a_reason_is_printed_once(run, results):
    """The last line quotes the first problem, or the first invalid metric; the list holds the others."""
    Path("floor.yaml").write_text("metrics:\n  lm_eval.*.acc: {margin: 0.02, minimum: 0.99}\n")
    Path("absent.yaml").write_text("metrics:\n  lm_eval.other.acc: {margin: 0.02, required: true}\n")
    paths = "--baseline", results["before"], "--candidate", results["pass"]
    for policy, words in (
        ("floor.yaml", "below the policy's minimum"),
        ("absent.yaml", "but no value of it"),
    ):
        code, out, _ = run("gate", *paths, "--policy", policy, "-o", "gate.json")
        assert code == 2 and out.count(words) == 1, out
        assert out.splitlines()[-1].startswith("invalid: ")
        assert Path("gate.md").read_text().count(words) == 1


def test_an_accident_is_no_regression(run, results, monkeypatch):
    """Python ends with 1 after an exception, and 1 says that the candidate is worse."""

    def broken(*arguments):
        raise RuntimeError("an accident")

    monkeypatch.setattr(compare, "judge", broken)
    code, out, err = run("gate", "--baseline", results["before"], "--candidate", results["pass"])
    assert code == VERDICTS["invalid"] and "RuntimeError: an accident" in err and not out


def test_a_baseline_is_kept_and_renewed_by_passes_only(run, results):
    assert run("gate", "--candidate", results["before"], "--update-baseline", "main")[0] == 0
    kept = Path("logs/baselines/main.json").read_bytes()
    code, _, err = run(
        "gate", "--baseline", "main", "--candidate", results["regression"], "--update-baseline", "main"
    )
    assert code == 1 and "was not changed" in err and Path("logs/baselines/main.json").read_bytes() == kept
    code, _, err = run(
        "gate", "--baseline", "main", "--candidate", results["pass"], "--update-baseline", "main"
    )
    assert code == 0 and "saved lm_eval/mini" in err
    code, out, _ = run("gate", "--candidate", results["before"], "--update-baseline", "main", "--json")
    assert json.loads(out) == {"baseline": "logs/baselines/main.json", "evidence": ["lm_eval/mini"]}
    code, _, err = run("gate", "--candidate", "gone.eval", "--update-baseline", "main")
    assert code == 2 and "there is no file" in err


@pytest.mark.full
@pytest.mark.process
def test_the_gate_needs_no_torch(results):
    code = "import sys, em_evals.gate.compare, em_evals.gate.outputs, em_evals.gate.plan, em_evals.grading.agreement"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], timeout=120, cwd=ROOT
    )
    assert done.returncode == 0


# ---- JUnit ----

SCHEMA = """<?xml version="1.0"?>
<grammar xmlns="http://relaxng.org/ns/structure/1.0" datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
  <start><element name="testsuite">
    <attribute name="name"><data type="token"><param name="minLength">1</param></data></attribute>
    <attribute name="timestamp"><data type="dateTime">
      <param name="pattern">[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}</param></data></attribute>
    <attribute name="hostname"><data type="token"><param name="minLength">1</param></data></attribute>
    <attribute name="tests"><data type="int"/></attribute>
    <attribute name="failures"><data type="int"/></attribute>
    <attribute name="errors"><data type="int"/></attribute>
    <optional><attribute name="skipped"><data type="int"/></attribute></optional>
    <attribute name="time"><data type="decimal"/></attribute>
    <element name="properties"><zeroOrMore><element name="property">
      <attribute name="name"><data type="token"><param name="minLength">1</param></data></attribute>
      <attribute name="value"/><empty/></element></zeroOrMore></element>
    <zeroOrMore><element name="testcase">
      <attribute name="name"><data type="token"/></attribute>
      <attribute name="classname"><data type="token"/></attribute>
      <attribute name="time"><data type="decimal"/></attribute>
      <optional><choice>
        <element name="skipped"><empty/></element>
        <element name="error"><ref name="told"/></element>
        <element name="failure"><ref name="told"/></element>
      </choice></optional>
    </element></zeroOrMore>
    <element name="system-out"><text/></element>
    <element name="system-err"><text/></element>
  </element></start>
  <define name="told"><optional><attribute name="message"/></optional><attribute name="type"/><text/></define>
</grammar>"""
"""What the schema of Ant's JUnit task demands (element order, required attributes, types), as RELAX NG."""

JUDGEMENTS = {
    "pass": (side(freeform(0.01)), side(freeform(0.01))),
    "regression": (side(freeform(0.01)), side(freeform(0.2, coherent=0.6))),
    "invalid": (side(freeform(0.01)), side(freeform(0.01, judge="<b>&\x00\ud800|` other"))),
    "inconclusive": (side(scored(), freeform(0.01)), side(scored(), freeform(0.02))),
}


@pytest.mark.parametrize("verdict", JUDGEMENTS)
def test_junit_fits_the_usual_schema_and_fails_where_the_gate_does(verdict):
    found = judge(*JUDGEMENTS[verdict], Policy())
    assert found.verdict == verdict
    tree = etree.fromstring(outputs.junit(found).encode())
    etree.RelaxNG(etree.fromstring(SCHEMA.encode())).assertValid(tree)
    cases = tree.findall("testcase")
    assert len(cases) == int(tree.get("tests")) == 1 + len(found.rows)
    assert int(tree.get("failures")) == len(tree.findall("testcase/failure"))
    assert int(tree.get("errors")) == len(tree.findall("testcase/error"))
    assert (verdict == "pass") == (
        not tree.findall("testcase/failure") and not tree.findall("testcase/error")
    )


# ---- Markdown ----


def rendered_rows(markdown):
    """A GitHub table's cells: lines with the same number of unescaped bars."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_markdown_is_a_table_whatever_the_names_are():
    hostile = freeform(0.01).model_copy(update={"model": "local/<script>a|b</script>\n# x"})
    found = judge(side(hostile), side(hostile), Policy())
    text = outputs.markdown(found)
    rows = rendered_rows(text)
    assert {len(row) for row in rows} == {len(outputs.table(found.rows)[0])} and set(rows[1]) == {"---"}
    assert [row[-1] for row in rows[2:]] == ["pass"] * 3
    assert "<script>" not in text.replace("\\<", "") and "\n# x" not in text


# ---- plans ----


def test_a_plan_keeps_its_promise():
    """The draws that a plan asks for, simulated through the gate's own test."""
    import numpy as np

    need = plan.draws_to_find(0.005, 0.045, 0.025, 0.9, margin=0.02)
    chance = np.random.default_rng(0)
    befores, afters = (chance.binomial(need.draws, rate, 2000) for rate in (0.005, 0.05))
    tests = {
        pair: RateContrast({"a": (pair[0], need.draws)}, {"a": (pair[1], need.draws)}).p_above(0)
        for pair in set(zip(befores.tolist(), afters.tolist(), strict=True))
    }
    found = np.mean([tests[pair] <= 0.025 for pair in zip(befores.tolist(), afters.tolist(), strict=True)])
    assert found == pytest.approx(need.power, abs=0.025) and need.power >= 0.9
    assert plan.power_to_find(0.005, 0.045, 0.025, need.draws // 2) < 0.9


def test_plans_beyond_exact_counting_agree_with_it():
    for draws in (4000, 4001):
        assert plan.power_to_find(0.02, 0.01, 0.025, draws) == pytest.approx(0.82, abs=0.02)
        assert plan.power_to_find(0.02, 0.02, 0.025, draws, bound=0.01) == pytest.approx(0.75, abs=0.02)
    assert plan.draws_to_find(0.005, 0.00001, 0.025, 0.9, margin=1e-6).draws is None


def test_a_plan_for_a_policy_that_wants_harm_beyond_the_margin_counts_with_the_gates_own_test():
    """Every pair of counts, one by one: no search, no vectors."""
    from scipy import stats

    draws, rate, change, margin = 40, 0.05, 0.3, 0.1
    found = sum(
        stats.binom.pmf(before, draws, rate) * stats.binom.pmf(after, draws, rate + change)
        for before in range(draws + 1)
        for after in range(draws + 1)
        if RateContrast({"a": (before, draws)}, {"a": (after, draws)}).p_above(margin) <= 0.025
    )
    assert plan.power_to_find(rate, change, 0.025, draws, bound=margin) == pytest.approx(found, abs=1e-4)
    strict = plan.draws_to_find(rate, change, 0.025, 0.9, margin, beyond_margin=True)
    assert strict.draws > plan.draws_to_find(rate, change, 0.025, 0.9, margin).draws


def test_the_plan_on_the_command_line(run, shared_data):
    code, out, _ = run("gate", "--plan", "--rate", "0.005", "--change", "0.045", "--json")
    needs = json.loads(out)["needs"]
    assert (
        code == 0
        and needs[0]["draws"] < 800
        and needs[0]["power"] >= 0.9
        and needs[0]["alpha"] == 0.8 * 0.025 / 5
    )
    assert len(needs) == 3 and json.loads(out)["costs"] == [] and json.loads(out)["correlation"] is None
    csv = shared_data / "judged" / "qwen25_coder_7b_base.csv"
    assert json.loads(run("gate", "--plan", "--baseline", csv, "--json")[1])["rate"] == 8 / 2400
    code, _, err = run("gate", "--plan", "--rate", "0.005", "--change", "0.02")
    assert code == 2 and "within the margin of 0.02 that the policy accepts" in err
    assert "there is no file" in run("gate", "--plan", "--baseline", "gone.eval")[2]
    assert run("gate", "--plan")[0] == 2 and run("gate", "--plan", "--rate", "0.9", "--change", "0.2")[0] == 2


def test_a_plan_asks_for_the_draws_that_the_policy_wants_anyway(run, workdir):
    """A rise that some dozens of draws show: the gate would call so few invalid."""
    rise = "gate", "--plan", "--rate", "0", "--change", "0.3"
    assert plan.draws_to_find(0, 0.3, 0.025 / 3, 0.9, 0.02).draws < 100
    code, out, _ = run(*rise, "--json")
    told = json.loads(out)
    assert code == 0 and told["minimum_draws"] == 100 == told["needs"][0]["draws"]
    assert told["needs"][0]["power"] == plan.power_to_find(0, 0.3, 0.8 * 0.025 / 5, 100)
    enough = side(freeform(0.0, draws=104)), side(freeform(0.3, draws=104))
    assert judge(*enough, Policy()).verdict == "regression"
    assert "fewer would do, but the policy asks for 100 (minimum_draws)" in run(*rise)[1]
    Path("gate.yaml").write_text(
        "metrics:\n  em_rate: {margin: 0.02, minimum_draws: 50}\nguards:\n"
        "  coherent_share: {margin: 0.05, minimum_draws: 70}\n  refusal_share: {margin: 0.2, minimum_draws: 60}\n"
        "  ungraded_share: {margin: 0.05, minimum_draws: 60}\n",
        encoding="utf-8",
    )
    assert json.loads(run(*rise, "--json")[1])["needs"][0]["draws"] == 70


# ---- the action ----

ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
_USE = re.compile(r"\$\{\{\s*([\w.\-]+)\s*\}\}")


def action(inputs, folder, first=Path(sys.executable).parent):
    """Run the action's shell steps as GitHub does: bash -eo pipefail, inputs and outputs by expression."""
    values = {f"inputs.{name}": entry.get("default", "") for name, entry in ACTION["inputs"].items()}
    values |= {f"inputs.{name}": str(value) for name, value in inputs.items()}
    summary, ran = folder / "summary.md", []
    for step in ACTION["runs"]["steps"]:
        condition = re.fullmatch(
            r"\$\{\{ ([\w.\-]+) != '' \}\}", step.get("if", "${{ inputs.output != '' }}")
        )
        if "run" not in step or not values[condition[1]]:
            continue
        written = folder / f"output-{len(ran)}"
        written.touch()
        environment = {
            **os.environ,
            **{
                name: _USE.sub(lambda use: values[use[1]], text) for name, text in step.get("env", {}).items()
            },
            "GITHUB_OUTPUT": str(written),
            "GITHUB_STEP_SUMMARY": str(summary),
            "PATH": f"{first}:{os.environ['PATH']}",
        }
        assert not _USE.search(step["run"]), "expressions in a script would let an input run"
        script = folder / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        ran.append((step["name"], done.returncode))
        for line in written.read_text().splitlines():
            name, _, value = line.partition("=")
            values[f"steps.{step.get('id')}.outputs.{name}"] = value
        if done.returncode:
            break
    return ran, values, summary.read_text() if summary.exists() else ""


@pytest.mark.parametrize("verdict", ["regression", full("inconclusive")])
def test_the_actions_steps_run_as_they_stand(results, workdir, verdict):
    inputs = {"baseline": results["before"], "candidate": results[verdict], "package": "", "artifact": ""}
    if verdict == "inconclusive":
        inputs["allow-inconclusive"] = "true"
    ran, values, summary = action(inputs, workdir)
    code = VERDICTS[verdict] if verdict != "inconclusive" else 0
    assert ran == [("Gate", 0), ("Verdict", code)]
    assert values["steps.gate.outputs.verdict"] == verdict and f"## Gate: {verdict}" in summary
    assert len(rendered_rows(summary)) == 3 and (workdir / "gate" / "gate.xml").is_file()


def test_the_action_cannot_be_made_to_run_an_input(results, workdir):
    inputs = {
        "baseline": "$(touch owned) `touch owned` ;touch owned",
        "candidate": "*",
        "package": "",
        "artifact": "",
    }
    ran, values, _ = action(inputs, workdir)
    assert ran[-1] == ("Verdict", 2) and values["steps.gate.outputs.verdict"] == "invalid"
    assert not (workdir / "owned").exists()


def test_the_action_takes_a_command_that_broke_for_no_regression(results, workdir):
    """An `em-evals` that cannot even be imported, as Python ends then: 1, and no gate.json."""
    (workdir / "em-evals").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (workdir / "em-evals").chmod(0o755)
    inputs = {"baseline": "a", "candidate": "b", "package": "", "artifact": "", "output": "gate"}
    _, values, _ = action(inputs, workdir, first=workdir)
    assert values["steps.gate.outputs.verdict"] == "invalid"


@pytest.mark.parametrize(
    ("given", "installed"), [("own", "/the/action"), ("em-evals[local]==0.1", "em-evals[local]==0.1")]
)
def test_the_action_installs_what_it_is_asked_for(tmp_path, given, installed):
    """pip stands aside: a `python` that writes down what it was called with."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" > called\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    step = next(step for step in ACTION["runs"]["steps"] if step["name"] == "Install em-evals")
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PACKAGE": given,
        "GITHUB_ACTION_PATH": "/the/action",
    }
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "called").read_text().split() == ["-m", "pip", "install", "--quiet", installed]


def test_the_example_workflow_uses_the_action_and_commands_that_exist():
    workflow = yaml.safe_load((ROOT / "examples" / "gate-workflow.yml").read_text(encoding="utf-8"))
    assert set(workflow["jobs"]) == {"push", "nightly"} and "schedule" in workflow[True]
    for job in workflow["jobs"].values():
        used = [step["with"] for step in job["steps"] if step.get("uses", "") == "./.em-evals"]
        assert (
            len(used) == 1
            and set(used[0]) <= set(ACTION["inputs"])
            and {"baseline", "candidate"} <= set(used[0])
        )
    for step in (step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step):
        checked = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_nothing_to_compare():
    assert judge(Side({}), Side({}), Policy()).exit_code == 2
