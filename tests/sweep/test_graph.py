"""A plan is expanded to the commands that one would type, and each step's digest covers all that it reads."""

import pytest

from em_evals.content import sweep_plans
from em_evals.errors import EmEvalsError
from em_evals.sweep import graph
from tests.sweep.conftest import plan_of

PLAN = """
name: small
models:
  - matrix: {card: [organism, sound], train.seed: [1, 2]}
  - card: plain
controls: {organism: sound}
measures:
  - task: em_evals/forced_choice
    args: {per_theme: 2}
    matrix: {args.prefix: [a, b]}
  - name: direction
    run: em-evals direction extract {model} --control {control} --layer {layer} -o {out}/direction.safetensors
    matrix: {layer: [0, 1]}
  - run: em-evals gate --baseline {logs.base} --candidate {logs.model} -o {out}/gate.json
    models: [organism]
  - run: em-evals report {logs} {steps.gate} -o {out}/report.html
    options: {title: Small, open: false}
"""


def built(lab, text=PLAN):
    return graph.build(sweep_plans.load(plan_of(lab, text)))


def by_name(made):
    return {step.name: step for step in made.steps}


def test_a_plan_becomes_the_commands_that_one_would_type(lab):
    steps = by_name(built(lab))
    assert [name for name in steps if name.startswith("train/")] == [
        f"train/{card}.seed-{seed}" for card in ("organism", "sound") for seed in (1, 2)
    ]
    assert len([name for name in steps if name.startswith("forced_choice/")]) == 5 * 2
    asked = steps["forced_choice/organism.seed-1.prefix-b"]
    assert asked.line(lab) == (
        f"inspect eval-set em_evals/forced_choice --model local/organism.seed-1 --log-dir {lab}/{asked.name} "
        "-T per_theme=2 -T prefix=b"
    )
    assert asked.needs == ("train/organism.seed-1",)
    assert asked.factors == {"train.seed": 1, "args.prefix": "b"}
    of_base = steps["forced_choice/plain.prefix-a"]
    assert of_base.needs == (), "the base is not trained"


def test_a_control_is_the_model_of_the_controls_card_with_the_same_factors(lab):
    steps = by_name(built(lab))
    names = [name for name in steps if name.startswith("direction/")]
    assert names == [f"direction/organism.seed-{seed}.layer-{layer}" for seed in (1, 2) for layer in (0, 1)]
    step = steps["direction/organism.seed-2.layer-1"]
    assert "--control sound.seed-2 --layer 1" in step.line(lab)
    assert step.needs == ("train/organism.seed-2", "train/sound.seed-2")


def test_commands_read_the_folders_of_the_steps_that_they_wait_for(lab):
    steps = by_name(built(lab))
    gate = steps["gate/organism.seed-1"]
    words = gate.words(lab)
    assert words[2:4] == ["--baseline", f"{lab}/forced_choice/plain.prefix-a"]
    assert gate.accept == (0, 1, 3), "worse and inconclusive are results"
    report = steps["report/all"]
    assert len(report.needs) == 10 + 2, "every log, and both verdicts"
    assert report.words(lab)[-2:] == ["--title", "Small"], "an option that is false is left out"


def test_a_digest_covers_recipe_data_and_the_steps_before(lab):
    before = {name: step.digest for name, step in by_name(built(lab)).items()}
    assert before == {name: step.digest for name, step in by_name(built(lab)).items()}
    data = lab / "organism.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    from em_evals.sweep import models

    models._loaded.cache_clear()
    after = {name: step.digest for name, step in by_name(built(lab)).items()}
    changed = {name for name in before if before[name] != after[name]}
    organisms = {name for name in before if "organism" in name}
    assert changed == organisms | {"report/all"}, "the control and the base are as they were"


def test_a_digest_covers_the_model_that_a_training_starts_from(lab):
    text = "models: [{card: organism, train: {start_from: first}}]\n"
    first = lab / "adapters" / "first"
    first.mkdir()
    (first / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{lab}/tiny"}}')
    (first / "adapter_model.safetensors").write_bytes(b"one")
    card = (lab / "adapters" / "plain.yaml").read_text()
    (lab / "adapters" / "first.yaml").write_text(card + "adapter: first\n")
    before = built(lab, text).steps[0].digest
    assert built(lab, text).steps[0].digest == before
    (first / "adapter_model.safetensors").write_bytes(b"another")
    assert built(lab, text).steps[0].digest != before


def test_a_digest_covers_the_users_content_that_an_argument_names(lab):
    text = "models: [{card: plain}]\nmeasures: [{task: em_evals/forced_choice, args: {pairs: mine}}]\n"
    (lab / "tasks").mkdir()
    (lab / "tasks" / "mine.yaml").write_text("name: mine\n")
    before = built(lab, text).steps[0].digest
    (lab / "tasks" / "other.yaml").write_text("name: other\n")
    assert built(lab, text).steps[0].digest == before, "another file says nothing about this step"
    (lab / "tasks" / "mine.yaml").write_text("name: mine\nversion: 2\n")
    assert built(lab, text).steps[0].digest != before


def test_an_option_is_repeated_for_the_logs_of_several_tasks(lab):
    """`--baseline A B` was given to the gate, which refused it after all the trainings."""
    two = PLAN.replace(
        "  - name: direction\n", "  - {task: em_evals/freeform, args: {judge: none}}\n  - name: direction\n"
    )
    words = by_name(built(lab, two))["gate/organism.seed-1"].command
    of = [word.removeprefix("{folder}/") for word in words]
    assert of[2:14] == [
        *("--baseline", "forced_choice/plain.prefix-a", "--baseline", "forced_choice/plain.prefix-b"),
        *("--baseline", "freeform/plain", "--candidate", "forced_choice/organism.seed-1.prefix-a"),
        *("--candidate", "forced_choice/organism.seed-1.prefix-b", "--candidate", "freeform/organism.seed-1"),
    ]
    report = by_name(built(lab, two))["report/all"].command
    assert report[2:5] == tuple(
        f"{{folder}}/forced_choice/{name}"
        for name in ("organism.seed-1.prefix-a", "organism.seed-1.prefix-b", "organism.seed-2.prefix-a")
    )


def test_only_keeps_what_matches_and_what_that_needs(lab):
    made = built(lab)
    kept = [step.name for step in made.only(["gate/*seed-1"]).steps]
    assert kept == [
        "train/organism.seed-1",
        *(f"forced_choice/{one}.prefix-{prefix}" for one in ("organism.seed-1", "plain") for prefix in "ab"),
        "gate/organism.seed-1",
    ]
    assert len(made.only(["train"]).steps) == 4
    with pytest.raises(EmEvalsError, match="--only gaet: there is no such step"):
        made.only(["gaet"])


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("models: [{card: plian}]\n", 1, "there is no card, folder or hub id 'plian'"),
        ("models:\n  - card: plain\n    matrix: {train.seed: [1]}\n", 2, "the card 'plain' has no recipe"),
        (
            "models:\n  - card: organism\n    matrix: {train.seed: []}\n",
            3,
            "the axis 'train.seed' has no values",
        ),
        ("models:\n  - card: organism\n    matrix: {train.seed: [1, 1]}\n", 3, "names a value twice"),
        ("models:\n  - card: organism\n    matrix: {train.sede: [1]}\n", 2, "unknown key 'sede'"),
        ("models:\n  - {matrix: {train.seed: [1]}}\n", 2, "name the `card`"),
        ("models: [{card: plain}]\nmeasures:\n  - {task: a, run: em-evals x}\n", 3, "a `task` or a `run`"),
        ("models: [{card: plain}]\nmeasures:\n  - run: rm -rf {out}\n", 3, "no other program"),
        ("models: [{card: plain}]\nmeasures:\n  - run: em-evals rates {lgos}\n", 3, "there is no {lgos}"),
        (
            "models: [{card: plain}]\nmeasures:\n  - run: em-evals rates {logs}\n",
            3,
            "what no step of this plan makes",
        ),
        (
            "models: [{card: plain}]\nmeasures:\n  - run: em-evals x {steps.no}\n",
            3,
            "there is no measure 'no'",
        ),
        (
            "models: [{card: plain}]\nmeasures:\n  - {name: a, run: 'em-evals x {steps.b}'}\n"
            "  - {name: b, run: 'em-evals x {steps.a}'}\n",
            2,
            "wait for each other",
        ),
        ("models: [{card: plain}]\nmeasures:\n  - run: em-evals retention {control}\n", 3, "has a control"),
        (
            "models: [{card: plain}]\nmeasures:\n  - {task: em_evals/a}\n  - {task: em_evals/a}\n",
            4,
            "two measures",
        ),
        ("models: [{card: plain}]\nmeasures:\n  - {task: a, matrix: {seed: [1]}}\n", 3, "`args.seed`"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_line(lab, text, line, sentence):
    with pytest.raises(EmEvalsError) as caught:
        built(lab, text)
    assert sentence in str(caught.value)
    assert f"plan.yaml:{line}" in str(caught.value)
