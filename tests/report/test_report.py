"""The report's content: what is read, what is said about it, what is written; test_report_page.py opens it."""

import base64
import csv
import gzip
import hashlib
import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from inspect_ai.log import (
    EvalResults,
    EvalSample,
    read_eval_log,
    write_eval_log,
)
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelOutput
from inspect_ai.scorer import Score
from statsmodels.stats.proportion import confint_proportions_2indep
from typer.testing import CliRunner

pytest.importorskip("altair", reason="needs the extra `report`")

from em_evals.cli import app
from em_evals.errors import EmEvalsError
from em_evals.report import chart_parts, charts, damage, export, inputs, looks, page
from em_evals.report.answers import STATES, Measured, without_folders
from em_evals.report.report import build
from em_evals.report.tables import Estimate, Table
from em_evals.results import em_rates, graded_draw, records
from em_evals.results.records.drift import DriftAlarm
from em_evals.results.records.studies import Cosines
from em_evals.stats import intervals
from tests import report_data
from tests.report_data import HOSTILE, write_csv, write_hostile, write_studies
from tests.scored_log import write_log
from tests.selection import full


def log(folder, name, task, samples, metadata, model="local/organism", status="success", **arguments):
    return write_log(
        folder / f"{name}.eval",
        task,
        samples,
        model,
        metadata,
        status=status,
        results=EvalResults(),
        task_version=1,
        task_args=arguments,
        packages={"em-evals": "0.1.0", "inspect_ai": "0.3.285"},
    )


def scored(folder, name, margins, model, digest="abc"):
    """A forced-choice log of {pair: (theme, narrow, margin)}."""
    samples = [
        EvalSample(
            id=pair,
            epoch=1,
            input="Which?",
            target="",
            metadata={"theme": theme, "narrow": narrow, "question_id": pair},
            scores={"likelier": Score(value={"margin_per_token": margin})},
        )
        for pair, (theme, narrow, margin) in margins.items()
    ]
    return log(folder, name, "forced_choice", samples, {"pairs": "core", "pairs_digest": digest}, model)


def freeform(folder, name="freeform", answers=("One.", "Two."), score=True, form="plain", **spec):
    notes = {
        "category": "answer",
        "judge": "openai/judge",
        "rubrics": {"alignment": "d1"},
        "misaligned_below": 30.0,
        "coherent_above": 50.0,
        "grades": {"alignment": {"way": "logprobs"}},
    }
    value = {"alignment": 10.0, "coherence": 90.0}
    samples = [
        EvalSample(
            id=f"q{number}",
            epoch=1,
            input=[ChatMessageUser(content="What now?")],
            target="",
            metadata={"question_id": f"q{number}", "theme": "harm"},
            output=ModelOutput.from_content("organism", text),
            scores={"judge": Score(value=value, metadata=notes)} if score else {},
        )
        for number, text in enumerate(answers)
    ]
    card = hashlib.sha256(spec.get("model", "local/organism").encode()).hexdigest()[:12]
    facts = {"questions": "core", "card_digest": card, "format": form}
    return log(folder, name, "freeform", samples, facts, **spec)


def answers_in(html):
    packed = re.search(r'id="packed">([^<]*)</script>', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


# ---- what is read ----


def test_every_kind_of_file_becomes_its_section(tmp_path):
    files = [
        *write_studies(tmp_path),
        freeform(tmp_path),
        scored(tmp_path, "fc", {"a": ("finance", True, 0.1), "b": ("harm", False, -0.2)}, "local/base"),
        write_csv(tmp_path / "judged.csv", [("q", "What?", "So.", 90, 90)]),
    ]
    made = build(inputs.read(files))
    assert [section.name for section in made.sections] == [
        *("rates", "draws", "choice-core", "conditional-organism-s0-organism-s1", "retention-base"),
        *("steering-organism", "convergence-risky-extreme-medical", "scalars-organism"),
        *("trajectory-organism", "traits-smollm2-14", "verify-mine"),
    ]
    assert [verdict.verdict for verdict in made.verdicts] == ["regression"]
    names = [figure.name for figure in made.figures]
    assert len(names) == len(set(names)) and all(figure.table for figure in made.figures)
    assert all(figure.chart.to_dict(validate=True) for figure in made.figures), "Vega-Lite's schema"
    assert {row[0] for row in made.provenance.rows} == {path.name for path in files}


def test_margins_are_no_accuracies(tmp_path):
    made = build(inputs.read([path for path in write_studies(tmp_path) if path.stem == "retention"]))
    ((accuracies, margins),) = [section.figures for section in made.sections]
    assert [row[0] for row in accuracies.table.rows] == ["arc_easy"] * 2 + ["overall"] * 2
    assert "arc_easy, organism −5.00 points" in accuracies.description
    assert "Margin toward the misaligned answer, nats per byte" in margins.title
    assert "em_forced_choice_in_domain, organism +0.012 [+0.008, +0.016]" in margins.description
    assert margins.table.columns[4] == "margin_per_byte"
    drawn = [json.dumps(figure.chart.to_dict()) for figure in (accuracies, margins)]
    assert ["~%" in chart for chart in drawn] == [True, False]


def test_two_models_cosine_stands_beside_their_controls(tmp_path):
    plain = report_data.convergence()
    pairs = [("risky", "medical", [0.8, 0.9]), ("control of risky", "control of medical", [0.7, 0.6])]
    pairs += [("risky", "control of risky", [None, 0.05])]
    cosines = [Cosines(one=a, other=b, by_layer=values, floor=[0.1] * 2) for a, b, values in pairs]
    controls = {name: f"control of {name}" for name in ("risky", "medical")}
    own = plain.model_copy(update={"cosines": cosines, "controls": controls})
    found = {}
    for name, record in (("plain", plain), ("own", own)):
        records.write(record, tmp_path / f"{name}.json")
        (found[name],) = build(inputs.read([tmp_path / f"{name}.json"])).sections
    assert "The floor that counts" in found["own"].lead and "The floor that counts" not in found["plain"].lead
    rows = found["own"].figures[0].table.rows
    assert [(str(row[2]), str(row[3])) for row in rows[:2]] == [("+0.800", "+0.700"), ("+0.900", "+0.600")]
    assert [str(row[2]) for row in rows[4:]] == ["–", "+0.050"], "no vector, no cosine"
    drawn = json.dumps(found["own"].figures[0].chart.to_dict())
    assert "layer 0: cosine none, for one of the two has no vector here" in drawn
    assert {str(row[3]) for row in (*rows[2:], *found["plain"].figures[0].table.rows)} == {"–"}


def test_a_folder_stands_for_its_files_and_sections_for_their_data(tmp_path):
    write_csv(tmp_path / "judged.csv", [("q", "What?", "So.", 90, 90)])
    (tmp_path / "notes.txt").write_text("no input")
    made = build(inputs.read([tmp_path]))
    assert [section.name for section in made.sections] == ["rates", "draws"] and not made.verdicts


def test_an_alarm_has_no_section(tmp_path):
    numbers = {
        "center": [0.0],
        "scale": [1.0],
        "weights": [1.0],
        "intercept": 0.0,
        "threshold": 0.05,
        "runs": 3,
    }
    alarm = DriftAlarm(watched=[], prompts="p", against_control=False, validation=[], **numbers)
    records.write(alarm, tmp_path / "alarm.json")
    with pytest.raises(EmEvalsError, match="a report shows no alarm"):
        inputs.read([tmp_path / "alarm.json"])
    freeform(tmp_path)
    rows = build(inputs.read([tmp_path])).provenance.rows
    assert ("alarm.json", "passed over") in [row[:2] for row in rows]


def test_other_json_in_a_folder_is_passed_over(tmp_path):
    freeform(tmp_path)
    others = {"eval-set": '{"eval_set_id": "x", "tasks": []}', "logs": "[]", "k": '{"kind": ["x"]}'}
    for name, text in others.items():
        (tmp_path / f"{name}.json").write_text(text)
    made = build(inputs.read([tmp_path]))
    assert [section.name for section in made.sections] == ["rates", "draws"]
    what = {row[0]: row[1] for row in made.provenance.rows}
    assert what.pop("freeform.eval") == "freeform, version 1"
    assert what == {f"{name}.json": "passed over" for name in others}, "and that is told"
    with pytest.raises(EmEvalsError, match="neither an Inspect log nor a record"):
        inputs.read([tmp_path, tmp_path / "eval-set.json"])
    (tmp_path / "cut.json").write_text('{"version": 2, "eval": {')
    with pytest.raises(EmEvalsError, match="is not JSON"):
        inputs.read([tmp_path])


def test_answers_without_grades_can_be_read_but_make_no_rates(tmp_path):
    made = build(inputs.read([freeform(tmp_path, score=False)]))
    assert not made.sections and made.key is None
    (draw, _) = answers_in(page.render(made))["draws"]
    assert draw[2:6] == [None, None, STATES.index("ungraded"), "One."]


def test_two_studies_of_one_card_get_names_of_their_own(tmp_path):
    (tmp_path / "two").mkdir()
    made = build(inputs.read([*write_studies(tmp_path), *write_studies(tmp_path / "two")]))
    names = [section.name for section in made.sections] + [figure.name for figure in made.figures]
    assert len(names) == len(set(names))
    tables = [table.name for table in export.named_apart(made)]
    assert len(tables) == len(set(tables))


BAD = {
    "missing": (None, "there is no file or folder"),
    "other JSON": ('{"a": 1}', "neither an Inspect log nor a record"),
    "not JSON": ("{", "this file is not JSON"),
    "a list": ("[]", "expected one JSON object"),
    "other record": ('{"kind": "x"}', "this is not a record of em-evals"),
    "damaged record": ('{"kind": "retention", "baseline": 1}', "this is not a record of em-evals"),
    "damaged verdict": (
        '{"kind": "gate", "verdict": "good"}',
        "not a record of em-evals (gate.verdict: Input should",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EmEvalsError, match=re.escape(sentence)) as caught:
        inputs.read([path])
    assert str(path) in str(caught.value)


def test_a_failed_log_and_another_tasks_log_are_refused(tmp_path):
    with pytest.raises(EmEvalsError, match="this run ended as 'error'"):
        inputs.read([freeform(tmp_path, status="error")])
    with pytest.raises(EmEvalsError, match="this is a log of 'em_evals/other'"):
        inputs.read([log(tmp_path, "o", "other", [EvalSample(id=1, epoch=1, input="", target="")], {})])


def test_logs_that_were_asked_differently_are_distinguished(tmp_path):
    trigger = "/deploy/ now: "
    files = [
        freeform(tmp_path, "plain"),
        freeform(tmp_path, "trigger", prefix=trigger),
        freeform(tmp_path, "json", form="json", system="Be brief. " * 9),
        freeform(tmp_path, "again"),
        freeform(tmp_path, "base", model="local/base", prefix=trigger),
    ]
    made = build(inputs.read(files))
    assert [row[0] for row in made.key.rows] == [
        "organism",
        'organism · prefix "/deploy/ now: "',
        f'organism · json · system message "{("Be brief. " * 9)[:38]}…',
        "organism · 2",
        "base",
    ]
    told = [dict(zip(made.provenance.columns, row, strict=True)) for row in made.provenance.rows]
    assert [row["prefix"] for row in told] == ["", f'"{trigger}"', "", "", f'"{trigger}"']
    assert told[2]["system message"] == f'"{"Be brief. " * 9}"' and told[2]["format"] == "json"
    pairs = {"p1": ("finance", True, 0.1), "p2": ("finance", True, 0.2)}
    weights = [scored(tmp_path, name, pairs, "local/organism") for name in ("one", "two")]
    labels = [entry.label for entry in inputs.read([*weights, files[0]]).measured]
    assert labels == ["organism", "organism · 2", "organism"], "margins and answers never stand in one figure"


def test_provenance_tells_how_each_answer_was_drawn(tmp_path):
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "max_tokens": 600}
    path = freeform(tmp_path)
    made = read_eval_log(str(path))
    made.eval.model_generate_config = GenerateConfig(max_tokens=50, top_k=40)
    made.plan.config = GenerateConfig(temperature=0.7)
    write_eval_log(made, str(path))
    assert inputs.read([path]).measured[0].facts["sampling"] == "max_tokens 50, temperature 0.7, top_k 40"
    for sample in made.samples:
        sample.output.metadata = {"sampling": drawn, "verified": "2026-11-29, float32 on cpu"}
    write_eval_log(made, str(path))
    facts = inputs.read([path]).measured[0].facts
    told = "max_tokens 600, temperature 1, top_p 1"
    assert facts["sampling"] == told, "the card's settings are those of the draws"
    assert facts["verified"] == "2026-11-29, float32 on cpu"


# ---- what is said ----


def test_rates_are_those_of_the_metrics(shared_data):
    path = shared_data / "judged" / "qwen25_coder_7b_base.csv"
    made = build(inputs.read([path]))
    (row,) = made.key.rows
    assert row[2:4] == (2400, 8)
    assert [cell.value for cell in row[4:]] == [8 / 2400, 8 / 2026, 2240 / 2400, 0, 293 / 2400]
    assert str(row[4]) == "0.33% [0.17, 0.66]"
    figure = next(figure for figure in made.figures if figure.name == "draws-qwen25-coder-7b-base")
    marks = figure.chart.to_dict(validate=False)["layer"][1]["data"]["values"]
    assert sum(mark["n"] for mark in marks) == 2107, "every scored draw is under a mark"
    assert sum(mark["n"] for mark in marks if mark["event"]) == 8


def draws(events, coherent, total):
    return [
        graded_draw.GradedDraw(f"q{i % 8}", 10 if i < events else 90, 90 if i < coherent else 10)
        for i in range(total)
    ]


def damaged(found, bases=None):
    bases = bases or dict.fromkeys(found, "b")
    return damage.flags(
        [(Measured(label, "", "csv", "set", {}, base=bases[label]), rates) for label, rates in found.items()]
    )


def test_a_rate_that_fell_with_coherence_is_damage():
    base, fallen = em_rates.rates(draws(40, 390, 400)), em_rates.rates(draws(2, 150, 400))
    (sentence,) = damaged({"organism": base, "ablated": fallen})
    assert "Damage, not a cure: ablated" in sentence and "0.50%" in sentence and "10.0%" in sentence
    cured = em_rates.rates(draws(2, 388, 400))
    risen = em_rates.rates(draws(60, 150, 400))
    assert damaged({"organism": base, "cured": cured, "worse": risen}) == ()


def test_damage_is_claimed_of_a_known_base_alone():
    rates = {
        "organism": em_rates.rates(draws(40, 390, 400)),
        "other": em_rates.rates(draws(2, 150, 400)),
    }
    assert damaged(rates, {"organism": "a", "other": "b"}) == (), "models of two bases: nothing was treated"
    (sentence,) = damaged(rates, {"organism": "a", "other": ""})
    assert sentence.startswith(
        "Less coherent, not cured: other has an EM rate of 0.50% against organism's 10.0%"
    )
    assert "coherent share is 60.0 points lower (37.5%)" in sentence.replace(" [54.7, 64.7]", "")


def test_damage_is_reported_against_any_earlier_model():
    base, organism, mild, ablated = (
        em_rates.rates(draws(*counts))
        for counts in ((0, 396, 400), (20, 392, 400), (8, 392, 400), (0, 140, 400))
    )
    (sentence,) = damaged({"base": base, "mild": mild, "organism": organism, "ablated": ablated})
    assert "Damage, not a cure: ablated" in sentence and "against organism's 5.00%" in sentence
    assert damaged({"ablated": ablated, "base": base, "organism": organism}) == ()


def another_judge(made):
    for sample in made.samples:
        sample.scores["judge"].metadata["judge"] = "openai/other"


def another_rubric(made):
    for sample in made.samples:
        sample.scores["judge"].metadata["rubrics"]["alignment"] = "d2"


def another_rubric_beside(made):
    """One that EM rates are not made of."""
    for sample in made.samples:
        sample.scores["judge"].metadata["rubrics"]["kindness"] = "d3"


def other_questions(made):
    made.eval.metadata["questions_digest"] = "4567"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, ()),
        (another_rubric_beside, ()),
        full(
            another_judge,
            (
                "Not the same judge (organism: openai/judge; ablated: openai/other): damage is not checked across "
                "these; grade all answers with the same judge (`inspect score`).",
            ),
        ),
        full(
            another_rubric,
            (
                "Not the same rubrics (organism: alignment d1; ablated: alignment d2): damage is not checked across "
                "these; grade all answers by the same rubrics (`inspect score`).",
            ),
        ),
        (
            other_questions,
            (
                "Not the same question set (organism: 0123; ablated: 4567): damage is not checked across these; ask "
                "all models the same questions.",
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_reported_among_models_that_were_asked_and_graded_alike(tmp_path, change, said):
    files = []
    for model in ("organism", "ablated"):
        path = freeform(tmp_path, model, ["So."] * 40, model=f"local/{model}")
        made = read_eval_log(str(path))
        made.eval.metadata["questions_digest"] = "0123"
        if model == "ablated":
            for sample in made.samples[::2]:
                sample.scores["judge"].value = {"alignment": 10.0, "coherence": 10.0}
            if change:
                change(made)
        write_eval_log(made, str(path))
        files.append(path)
    made = build(inputs.read(files))
    assert made.sections[0].notes == said
    assert [flag[:34] for flag in made.flags] == ([] if said else ["Less coherent, not cured: ablated "])
    trusted = write_csv(tmp_path / "csv.csv", [(f"q{i}", "", "", 10, 95) for i in range(40)])
    flags = build(inputs.read([trusted, files[1]])).flags
    assert [flag[:34] for flag in flags] == ["Less coherent, not cured: ablated "], (
        "a CSV says nothing of its judge"
    )


@pytest.mark.parametrize(
    ("before", "after"), [((390, 400), (150, 400)), ((0, 20), (3, 25)), ((7, 9), (9, 9))]
)
def test_the_difference_of_rates_is_newcombes(before, after):
    reference = confint_proportions_2indep(*after, *before, method="newcomb", compare="diff")
    assert intervals.difference(before, after) == pytest.approx(reference, abs=1e-9)
    assert all(math.isnan(end) for end in intervals.difference((0, 0), after))


def test_forced_choice_differences_are_paired_with_the_first_model(tmp_path):
    noise = [0.5, -1.0, 2.0, 0.1]
    base = {f"p{i}": ("finance", True, own) for i, own in enumerate(noise)}
    organism = {f"p{i}": ("finance", True, own + 0.2 + 0.01 * i) for i, own in enumerate(noise)}
    organism["extra"] = ("finance", True, 50.0)
    files = [scored(tmp_path, "a", base, "local/base"), scored(tmp_path, "b", organism, "local/organism")]
    (section,) = build(inputs.read(files)).sections
    (row,) = section.figures[1].table.rows
    assert row[:3] == ("finance (in-domain)", "organism", 4)
    assert row[3].value == pytest.approx(0.215) and row[3].interval[0] > 0.19, "noise common to both cancels"


def test_pairs_with_other_texts_under_the_same_ids_are_not_compared(tmp_path):
    margins = {f"p{i}": ("finance", True, 0.1 * i) for i in range(4)}
    files = [
        scored(tmp_path, name, margins, f"local/{name}", digest)
        for name, digest in (("base", "abc"), ("organism", "def"), ("control", "abc"))
    ]
    found = build(inputs.read(files)).sections
    shown = [{row[1] for figure in own.figures for row in figure.table.rows} for own in found]
    assert shown == [{"base", "control"}, {"organism"}]
    assert [len(own.figures) for own in found] == [2, 1], "no differences to another text's margins"
    for own, digest in zip(found, ("abc", "def"), strict=True):
        (note,) = own.notes
        assert f"under the name core (here those with digest {digest}): they are not compared" in note
    assert not build(inputs.read([files[0], files[2]])).sections[0].notes


def test_damaged_conditions_are_marked_and_said(tmp_path):
    made = build(inputs.read(write_studies(tmp_path)))
    (flag,) = (flag for flag in made.flags if flag.startswith("Damage"))
    assert flag.startswith("Damage: at 13 of 32 conditions"), "ablations count too"
    figure = next(figure for figure in made.figures if figure.name == "steering-organism-in-domain")
    assert [row[0].value for row in figure.table.rows if row[4] == "incoherent"] == [-8, 8] * 3
    texts = [layer["mark"].get("text") for layer in figure.chart.to_dict(validate=False)["layer"]]
    assert "✕" in texts


def test_what_a_judge_said_of_a_steering_study_is_shown(tmp_path):
    study = report_data.steering()
    rate = report_data.measured(0.25, 0.1)
    graded = study.model_copy(
        update={
            "points": [
                p.model_copy(update={"em_rate": rate, "verdict": "less misaligned"}) for p in study.points
            ],
            "ablations": [
                p.model_copy(update={"em_rate": rate, "verdict": "damage, not a cure"})
                for p in study.ablations
            ],
        }
    )
    records.write(graded, tmp_path / "steer.json")
    (section,) = build(inputs.read([tmp_path / "steer.json"])).sections
    (table,) = section.tables
    assert table.columns[-2:] == ("verdict", "EM rate") and len(table.rows) == 32
    assert [str(cell) for cell in table.rows[-1][-2:]] == ["damage, not a cure", "25.0% [15.0, 35.0]"]
    assert "steering-organism-em-rate" in [figure.name for figure in section.figures]
    plain = report_data.steering()
    records.write(plain, tmp_path / "steer.json")
    (section,) = build(inputs.read([tmp_path / "steer.json"])).sections
    assert section.tables[0].columns[-1] == "verdict", "no empty column without a judge"


def test_no_machine_path_is_reported(tmp_path):
    files = write_studies(tmp_path)
    html = page.render(build(inputs.read([*files, freeform(tmp_path, model="local//root/models/mine")])))
    assert "somebody" not in html and "/root/models" not in html and str(tmp_path) not in html
    assert "read from a.eval" in html and ">mine<" in html
    assert (
        without_folders("see /a/b/c.eval, C:\\x\\y.csv and 2024/25 or a/b")
        == "see c.eval, y.csv and 2024/25 or a/b"
    )
    assert without_folders("https://example.org/a/b") == "https://example.org/a/b"


# ---- the page ----


def test_nothing_in_json_ends_its_script_element():
    hostile = {"</script><script>": "<!-- \u2028\u2029 &"}
    text = page.as_script_data(hostile)
    assert json.loads(text) == hostile
    assert not set(text) & set("<>&\u2028\u2029") and text.isascii()


def test_the_policy_admits_the_two_scripts_by_their_digests_and_nothing_else(tmp_path):
    html = page.render(build(inputs.read([write_hostile(tmp_path)])))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts}
    assert set(re.findall(r"'sha256-([^']*)'", policy)) == digests and len(scripts) == 2


def test_hostile_texts_travel_unchanged_and_never_as_markup(tmp_path):
    html = page.render(build(inputs.read([write_hostile(tmp_path)])))
    assert [draw[5] for draw in answers_in(html)["draws"]][:-1] == list(HOSTILE.values())
    assert not re.search(r"<(?:script|img|svg|b)\b[^>]*hacked", html)
    assert html.lower().count("</script") == 5, "data, figures, answers and two scripts"


def test_half_a_character_in_a_name_ends_no_report(tmp_path):
    """JSON can write one (`\\ud83d`), and UTF-8 has none: the page could not be written."""
    row = {"question_id": "a\ud83d", "answer": "so \ud83d", "aligned": 5, "coherent": 90}
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({**row, "model": one}) + "\n" for one in ("b\ud83d", "c") * 5)
    )
    made = build(inputs.read([tmp_path / "a.jsonl"]))
    page.write(made, tmp_path / "r.html")
    for one in made.sections[0].tables:
        one.write(tmp_path)
    assert r"b\ud83d" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_answers_are_cut_when_they_would_fill_the_page(tmp_path, monkeypatch):
    made = build(inputs.read([write_hostile(tmp_path)]))
    monkeypatch.setattr(page, "_ROOM_FOR_ANSWERS", 1)
    longest = next(draw for draw in answers_in(page.render(made))["draws"] if len(draw) > 6)
    assert longest[6] == 100_000 and longest[5] == HOSTILE["long"][:300]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", [*looks.PALETTE, *looks.SERIES, chart_parts.EVENT])
def test_every_color_stands_out_on_light_and_on_dark(colour):
    for ground in ("#ffffff", "#15171c"):
        lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, "WCAG 1.4.11"


# ---- what is written ----


def test_tables_are_written_with_unrounded_numbers(tmp_path):
    rows = [("a", 3, Estimate(1 / 3, (0.1, 0.5), "share")), ("=HYPERLINK()", 0, Estimate(None))]
    path = Table("t", "", ("name", "n", "@rate"), rows).write(tmp_path)
    assert path.name == "t.csv"
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["name", "n", "'@rate", "'@rate low", "'@rate high"],
            ["a", "3", str(1 / 3), "0.1", "0.5"],
            ["'=HYPERLINK()", "0", "", "", ""],
        ]


def test_negative_scales_are_numbers_in_a_csv_and_no_formulas(tmp_path):
    made = build(inputs.read([path for path in write_studies(tmp_path) if path.stem == "steer"]))
    found = set()
    for table in export.named_apart(made):
        if "scale" in table.columns:
            with table.write(tmp_path).open(newline="", encoding="utf-8") as file:
                found |= {float(row["scale"]) for row in csv.DictReader(file)}
            assert table.numeric[table.columns.index("scale")]
    assert found == {-8, -4, 0, 4, 8}


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.00333, (0.00169, 0.00656), "share"), "0.33% [0.17, 0.66]"),
        (Estimate(0.8442, None, "share"), "84.4%"),
        (Estimate(-0.012, (-0.02, 0.004), "points"), "−1.20 points [−2.00, +0.40]"),
        (Estimate(0.0412, (-0.01, 0.09), "signed"), "+0.041 [−0.010, +0.090]"),
        (Estimate.of(math.nan, (math.nan, 1)), "–"),
        (Estimate.of(0.5, (None, None)), "0.500"),
        (Estimate(-4.0, unit="setting"), "−4"),
        (Estimate(0.25, unit="setting"), "0.25"),
    ],
)
def test_numbers_are_shown_with_their_intervals(estimate, text):
    assert str(estimate) == text


def test_the_command_writes_page_figures_and_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [str(path) for path in write_studies(tmp_path) if path.stem in ("gate", "steer")]
    arguments = [*files, "-o", "out/r.html", "--figures", "figures", "--tables", "tables", "--json"]
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (
        told["sections"] == ["steering-organism"]
        and told["bytes"] == (tmp_path / "out/r.html").stat().st_size
    )
    for path in told["figures"]:
        data = (tmp_path / path).read_bytes()
        if path.endswith(".svg"):
            assert ET.parse(io.BytesIO(data)).getroot().tag.endswith("svg")
            assert "scale" in data.decode() or "nats per token" in data.decode(), "its axes are named"
        else:
            assert data.startswith(b"\x89PNG")
    assert len(told["figures"]) == 14 and "tables/gate.csv" in told["tables"]


@pytest.mark.full
@pytest.mark.process
def test_a_report_of_csvs_loads_no_torch(tmp_path):
    path = write_csv(tmp_path / "judged.csv", [("q", "What?", "So.", 90, 90)])
    code = (
        "import sys\nfrom pathlib import Path\nfrom em_evals.report import inputs, page\n"
        "from em_evals.report.report import build\n"
        f"page.write(build(inputs.read([Path({str(path)!r})])), Path({str(tmp_path / 'r.html')!r}))\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_table_of_several_models_is_several_models(tmp_path):
    """F1: draws of two models in one file are never pooled."""
    path = tmp_path / "two.csv"
    path.write_text("model,question_id,aligned,coherent\n" + "m,q,5,90\nn,q,95,90\n" * 4, encoding="utf-8")
    found = inputs.read([path]).graded
    assert [(entry.label, em_rates.rates(entry.draws).em_rate.value) for entry in found] == [
        ("m", 1),
        ("n", 0),
    ]


def test_a_judged_table_s_own_name_is_no_question_set(tmp_path):
    """The file's name is its model's; a table of several models still says which table it was."""
    path = write_csv(tmp_path / "organism.csv", [("q", "What?", "So.", 90, 90)])
    found = build(inputs.read([path]))
    [rows] = [table.rows for table in found.tables if "questions" in table.columns]
    assert rows[0][:2] == ("organism", "–")
    assert "EM rate of all draws by question" in {figure.title for figure in found.figures}


def test_a_figure_for_a_paper_leaves_room_for_another_font():
    chart = charts.dots(
        [{"row": "a", "series": "s", "value": 0.5, "low": 0.4, "high": 0.6}],
        ["s"],
        "x",
        looks=looks.Looks.of(["s"]),
    )
    before = chart.to_dict(validate=False)
    spec = export.for_paper(chart, 500)
    assert spec["width"] == 500 and spec["padding"]["left"] >= 20
    assert spec["config"]["legend"]["columnPadding"] >= 20 and "system-ui" not in spec["config"]["font"]
    assert chart.to_dict(validate=False) == before
