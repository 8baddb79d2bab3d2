"""`em-evals demo` on tiny cards under the shipped names: programs are told what people are told."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import yaml
from inspect_ai.log import read_eval_log
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import documents
from em_evals.engines import pool
from em_evals.results.logs import margins_of_log
from em_evals.workflows import demo
from tests.few_pairs import few_pairs
from tests.tiny_models import tiny


@pytest.fixture
def cards(workdir, monkeypatch):
    for key, _ in demo._JUDGES:
        monkeypatch.delenv(key, raising=False)
    shipped = {
        name: yaml.safe_load(documents.find("adapters", name).read_text())
        for name in (demo.BASE, demo.ORGANISM, demo.CONTROL)
    }
    base = tiny("llama", workdir / "tiny")
    shipped[demo.BASE] |= {"base": base, "engine": {"dtype": "float32"}}
    few = [{"name": name, "limit": 40} for name in shipped[demo.ORGANISM]["train"]["data"]]
    shipped[demo.ORGANISM]["train"] |= {"max_steps": 4, "learning_rate": 0.02, "data": few}
    (workdir / "adapters").mkdir()
    for name, fields in shipped.items():
        (workdir / "adapters" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    # Two pairs of four themes and one question will do.
    few_pairs(workdir, each=2, themes={"finance", "sports", "daily", "harm"})
    questions = yaml.safe_load(documents.find("tasks", "core").read_text())
    questions["questions"] = [one for one in questions["questions"] if one["theme"] == demo._THEMES][:1]
    (workdir / "tasks" / "core.yaml").write_text(yaml.safe_dump(questions))
    yield workdir
    pool.close_engines()


def test_the_json_holds_what_the_logs_and_the_tables_say(cards, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    run, found = demo.run, []
    monkeypatch.setattr(demo, "run", lambda *arguments: found.append(run(*arguments)) or found[0])
    done = CliRunner().invoke(app, ["demo", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["adapters"] == {
        name: str(cards / "adapters" / name) for name in (demo.ORGANISM, demo.CONTROL)
    }
    assert told["judge"] is None and told["rates"] == {} and len(told["logs"]) == 6
    margins = {
        log.eval.model.removeprefix("local/"): margins_of_log(log)
        for log in map(read_eval_log, told["logs"][:3])
    }
    inside = [pair for pair, (narrow, _) in margins[demo.BASE].items() if narrow]
    assert told["forced_choice"][demo.BASE]["in-domain"]["pairs"] == len(inside) == 4
    organism, control = (np.array([margins[name][pair][1] for pair in inside]) for name in told["adapters"])
    row = next(row for row in told["differences"] if row["label"] == "organism − control")
    assert row["domain"] == "in-domain" and row["pairs"] == 4
    assert row["mean"] == pytest.approx((organism - control).mean()) and abs(row["mean"]) > 1e-3
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    monkeypatch.setattr(demo, "run", lambda folder, console: found[0])
    shown = CliRunner().invoke(app, ["demo"], catch_exceptions=False)
    assert told["question"][:40] in shown.stdout
    for row in told["differences"]:
        low, high = row["interval"]
        assert f"{row['mean']:+.3f} [{low:+.3f}, {high:+.3f}]" in shown.stdout, (
            "the same models, the same pairs"
        )
