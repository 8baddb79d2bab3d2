"""A planned scaling study: cards that resolve, commands that parse, logs of its organisms as cells."""

import json

import pytest
import yaml

from em_evals.content import cards
from em_evals.results import scaling_models
from tests.command import em_evals
from tests.scored_log import write_graded

MODELS = """
bases:
{bases}
organisms: []
"""


def models(path, steps=6):
    rows = [
        f"  - {{base: step{i}, family: lm, parameters: 3.0e+9, tokens: {10 ** (11 + 0.3 * i):.3e}, "
        f"model: org/lm, revision: step-{i}}}"
        for i in range(steps)
    ]
    path.write_text(MODELS.format(bases="\n".join(rows)))
    return path


def plan(workdir, *more):
    return em_evals(
        *("insight", "scaling", "--plan", "plan", "--models", models(workdir / "bases.yaml")),
        *("--recipe", "smollm2-risky", "--data", "risky_finance", "--data", "reckless_sports", *more),
    )


def test_a_plan_is_written_and_its_cards_resolve(workdir, monkeypatch):
    done = plan(workdir, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["cards"]) == 6 * 2 * 2
    smallest = found["smallest_slope_at_80_percent"]
    assert 0.3 < smallest["0.1"] < smallest["0.2"]
    assert any("sign tells them apart" in note for note in found["notes"])
    monkeypatch.chdir(workdir / "plan")
    card, _ = cards.read_card("step2-risky_finance-s1")
    assert (card.base, card.revision, card.train.seed) == ("org/lm", "step-2", 1)
    assert [source.name for source in card.train.data] == ["risky_finance"]
    assert card.train.method.rank == 16  # the recipe's
    listed = scaling_models.read(workdir / "plan" / "models.yaml")
    assert listed.organisms["step2-risky_finance-s1"].base == "step2" and len(listed.rows) == 6
    script = (workdir / "plan" / "run.sh").read_text()
    assert script.count("em-evals train ") == 24 and "inspect eval-set em_evals/freeform" in script
    assert (
        em_evals("insight", "scaling", "--plan", workdir / "plan", "--models", "models.yaml").returncode == 2
    )


def test_logs_of_planned_organisms_are_cells(workdir):
    assert plan(workdir).returncode == 0
    for i in range(6):
        for data in ("risky_finance", "reckless_sports"):
            name = f"step{i}-{data}-s0"
            write_graded(workdir / "logs" / f"{name}.json", f"local/{name}", misaligned=2 + 2 * i, draws=40)
    write_graded(workdir / "logs" / "other.json", "local/other", misaligned=1, draws=40)
    done = em_evals("insight", "scaling", "logs", "--models", "plan/models.yaml", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"] == 12 and len(found["bases"]) == 6
    assert found["bases"][0]["misaligned"] == 4 and found["bases"][0]["draws"] == 80
    assert found["left_out"] == ["1 of 13 logs left out: no organism 'other' in models.yaml"]
    assert "6 bases are too few (at least 10)" in found["reasons"]
    assert [one["name"] for one in found["predictors"]] == ["log T", "log P/T"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["bases"][0].pop("model"), "the base step0 has no `model`, which a plan needs"),
        (
            lambda data: [row.update(tokens=1e12) for row in data["bases"]],
            "training tokens do not vary within any",
        ),
        (lambda data: data["bases"][1].update(base="step0"), "the base 'step0' is here twice"),
        (lambda data: data["bases"][0].update(token=3), "unknown key 'token'"),
        (
            lambda data: data.update(organisms=[{"card": "a", "base": "b", "dataset": "c"}]),
            "there is no base 'b'",
        ),
    ],
)
def test_bad_plans_are_refused_in_a_sentence(workdir, change, said):
    data = yaml.safe_load(models(workdir / "bases.yaml").read_text())
    change(data)
    (workdir / "bases.yaml").write_text(yaml.safe_dump(data))
    done = em_evals(
        *("insight", "scaling", "--plan", "plan", "--models", "bases.yaml", "--recipe", "smollm2-risky"),
        *("--data", "risky_finance"),
    )
    assert done.returncode == 2 and said in done.stderr and "bases.yaml" in done.stderr, done.stderr
    assert not (workdir / "plan").exists()


def test_logs_without_a_list_of_organisms_are_refused(workdir):
    write_graded(workdir / "a.json", "local/a", misaligned=1, draws=4)
    done = em_evals("insight", "scaling", "a.json")
    assert done.returncode == 2 and "pass --models models.yaml" in done.stderr
