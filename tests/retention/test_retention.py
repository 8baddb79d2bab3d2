"""`em-evals retention` and `em-evals lm-eval`: items paired by task, result files, resuming, both forced choices."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import documents
from em_evals.content.cards import resolve
from em_evals.errors import EmEvalsError
from em_evals.results import records
from em_evals.retention import scores as lm_eval_module
from em_evals.retention.compare import compare
from em_evals.retention.scores import ModelResults, TaskScores

RIGHT = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1], dtype=float)
WORSE = np.array([1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1], dtype=float)


def scores(task, values, metric="acc", version="1.0", shots=0):
    items = {f"{i} {i:x}": float(value) for i, value in enumerate(values)}
    return TaskScores(task, version, shots, metric, items, Path(f"samples_{task}.jsonl"))


def model(name, **tasks):
    return ModelResults(
        name, f"digest-{name}", {task: scores(task, values) for task, values in tasks.items()}
    )


def test_overall_is_all_items_and_leaves_margins_out():
    base, other = model("base", a=RIGHT, b=RIGHT), model("other", a=WORSE, b=RIGHT)
    for one, values in ((base, [0.1, 0.2]), (other, [0.3, 0.5])):
        one.tasks["pairs"] = scores("pairs", values, "margin_per_byte")
    record = compare(base, [other])
    rows = {row.task: row for row in record.models[0].tasks}
    assert list(rows) == ["a", "b", "pairs", "overall"]
    assert [row.metric for row in rows.values()] == ["acc", "acc", "margin_per_byte", "accuracy"]
    assert rows["overall"].n == 32 and rows["overall"].difference == pytest.approx(rows["a"].difference / 2)
    assert rows["pairs"].difference == pytest.approx(0.25)
    assert rows["b"].difference == 0 and rows["b"].p == 1
    assert record.provenance["metrics"] == "a: acc, b: acc, pairs: margin_per_byte"
    alone = compare(base, [base]).models[0].tasks
    assert all((row.difference, row.interval, row.p) == (0, (0, 0), 1) for row in alone)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (scores("a", RIGHT, version="2.0"), "version is 1.0 in .* and 2.0 here"),
        (scores("a", RIGHT[:8]), "16 items in .*, 8 here, 8 of them the same"),
        (scores("a", RIGHT, shots=5), "number of examples"),
        (scores("a", RIGHT, metric="acc_norm"), "metric is acc in"),
        (replace(scores("a", RIGHT), chat=True), "use of a chat template is False in .* and True here"),
        (replace(scores("a", RIGHT), system="5d41"), "system message"),
    ],
)
def test_what_is_not_the_same_task_is_not_compared(other, sentence):
    with pytest.raises(EmEvalsError, match=sentence):
        compare(model("base", a=RIGHT), [ModelResults("other", "", {"a": other})])
    with pytest.raises(EmEvalsError, match="no task in common"):
        compare(model("base", a=RIGHT), [model("other", b=RIGHT)])


def write_results(folder, values=(1.0, 0.0, 1.0), version=1.0, date="2026-01-01T00-00-00.0", **config):
    """A result file as lm-eval 0.4.13 writes it, with two filters."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "results": {"arc": {"acc,none": 0.5}},
        "configs": {"arc": {}},
        "versions": {"arc": version},
        "n-shot": {"arc": 0},
        "config": {"model": "hf", "model_args": {"pretrained": "org/base"}, **config},
    }
    (folder / f"results_{date}.json").write_text(json.dumps(data))
    rows = [
        {
            "doc_id": i,
            "doc_hash": f"h{i}",
            "filter": name,
            "metrics": ["acc", "acc_norm"],
            "acc": 0,
            "acc_norm": value,
        }
        for i, value in enumerate(values)
        for name in ("strict", "flexible")
    ]
    (folder / f"samples_arc_{date}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_a_killed_run_left_is_no_result(tmp_path):
    """lm-eval itself writes into `.__models__tiny` for pretrained=./models/tiny: not every hidden folder is left over."""
    write_results(tmp_path / "logs" / ".arc.x1y2.partial", date="2026-03-01T00-00-00.0")
    assert not lm_eval_module.is_results(str(tmp_path / "logs"))
    with pytest.raises(EmEvalsError, match="no lm-eval results here"):
        lm_eval_module.read(tmp_path / "logs")
    write_results(tmp_path / "logs" / ".__models__tiny", [0.0, 0.0, 0.0])
    assert lm_eval_module.is_results(str(tmp_path / "logs"))
    assert lm_eval_module.read(tmp_path / "logs").tasks["arc"].mean == 0


def test_result_files_of_lm_eval_are_read(tmp_path):
    write_results(tmp_path / "x", [0.0, 0.0, 0.0])
    found = lm_eval_module.read(write_results(tmp_path / "x", date="2026-02-01T00-00-00.0"))
    assert (found.name, found.digest) == ("org/base", "")
    assert found.tasks["arc"].metric == "acc_norm"
    assert list(found.tasks["arc"].scores.values()) == [1.0, 0.0, 1.0]  # the newest run
    one = next((tmp_path / "x").glob("results_2026-01*"))
    assert lm_eval_module.read(one).tasks["arc"].mean == 0 and not lm_eval_module.read(one).tasks["arc"].chat
    one.write_text(one.read_text().replace('"results"', '"chat_template_sha": "c0", "results"'))
    assert lm_eval_module.read(one).tasks["arc"].chat
    assert (
        lm_eval_module.is_results(str(one))
        and lm_eval_module.is_results(str(tmp_path))
        and not lm_eval_module.is_results("smollm2")
    )


def test_bad_result_files_are_reported_in_one_sentence(tmp_path):
    write_results(tmp_path / "a")
    write_results(tmp_path / "b", card="mine", card_digest="d", date="2026-03-01T00-00-00.0")
    with pytest.raises(EmEvalsError, match="several models"):
        lm_eval_module.read(tmp_path)
    next((tmp_path / "a").glob("samples*")).unlink()
    with pytest.raises(EmEvalsError, match="--log_samples"):
        lm_eval_module.read(tmp_path / "a")
    for nothing in ("{}", '{"results": {}, "config": null}'):
        next((tmp_path / "a").glob("results*")).write_text(nothing)
        with pytest.raises(EmEvalsError, match="not lm-eval results"):
            lm_eval_module.read(tmp_path / "a")
    samples = next((tmp_path / "b").glob("samples*"))
    samples.write_text('{"doc_id": 1}\n')
    with pytest.raises(EmEvalsError, match="not a sample of lm-eval"):
        lm_eval_module.read(tmp_path / "b")


# With lm-eval

pytest.importorskip("lm_eval")
pytest.importorskip("torch")

from em_evals.engines import pool
from em_evals.lm_eval_plugin import command
from em_evals.retention import suite
from tests.tiny_models import SMOLLM2, make_adapter, tiny


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    root = tmp_path_factory.mktemp("organism")
    base = tiny("llama", root / "base")
    yield base, make_adapter(base, root / "adapter", 4, "all-linear", seed=3)
    pool.close_engines()


def retention(*arguments):
    return CliRunner().invoke(app, ["retention", *map(str, arguments)], catch_exceptions=False)


def test_the_command_measures_compares_and_resumes(organism, workdir, monkeypatch):
    base, adapter = organism
    asked = ["--tasks", "em_mini_facts,em_mini_grammar", "--limit", 6, "-M", "engine.dtype=float32"]
    run, done = suite.Suite._run, []

    def interrupted(self, model, planned, place):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(planned.task)
        run(self, model, planned, place)

    monkeypatch.setattr(suite.Suite, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite.Suite(["em_mini_facts", "em_mini_grammar"], 6).measure(
            base, Path("logs/retention"), {"engine": {"dtype": "float32"}}
        )
    assert done == ["em_mini_facts"]
    monkeypatch.setattr(suite.Suite, "_run", lambda *found: done.append(found[2].task) or run(*found))
    answer = retention(base, adapter, *asked, "--json", "-o", "cost.json")
    assert done == ["em_mini_facts", "em_mini_grammar", "em_mini_facts", "em_mini_grammar"]
    record = records.read(Path("cost.json"))
    assert json.loads(answer.stdout) == json.loads(record.model_dump_json())
    assert (record.baseline, [one.name for one in record.models]) == (base, [adapter])
    assert [row.task for row in record.models[0].tasks] == ["em_mini_facts", "em_mini_grammar", "overall"]
    assert [row.n for row in record.models[0].tasks] == [6, 6, 12]
    again = retention(adapter, "--baseline", base, *asked, "--json")
    assert again.stdout == answer.stdout and len(done) == 4
    # Their own files stand for the cards.
    mine, theirs = (next(Path("logs/retention").glob(f"*{Path(one).name}*")) for one in organism)
    assert (
        json.loads(retention(mine, theirs, "--json").stdout)["models"] == json.loads(answer.stdout)["models"]
    )
    assert "paired differences" in retention(mine, theirs).stdout
    assert "chance" in retention(mine).stdout
    assert not [left for left in Path("logs").rglob(".*") if left.suffix != ".lock"]
    # A folder with another digest's results is no result of this card.
    moved = next(theirs.glob("em_mini_facts*/results*"))
    moved.write_text(moved.read_text().replace(theirs.name.rpartition("-")[2], "0" * 16))
    with pytest.raises(EmEvalsError, match="delete it to measure again"):
        retention(base, adapter, *asked)
    with pytest.raises(EmEvalsError, match="measure it again with"):
        retention(mine, moved.parent)


def test_other_items_are_another_result(organism, workdir, monkeypatch):
    """lm-eval's version of the task says nothing of the file of pairs."""
    places = []
    for version in (1, 2):
        pairs = yaml.safe_load((documents.SHIPPED / "tasks" / "forced_choice.yaml").read_text())
        pairs["pairs"][0]["aligned"] += " Please." * (version - 1)
        (workdir / "tasks").mkdir(exist_ok=True)
        (workdir / "tasks" / "forced_choice.yaml").write_text(yaml.safe_dump(pairs))
        asked = suite.Suite(["em_forced_choice"], 1)
        places.append([suite._place(Path("logs"), resolve(organism[0]), one) for one in asked.tasks])
    changed = [one != other for one, other in zip(*places, strict=True)]
    assert sum(changed) == 1, "the domain of the pair that was changed, and not the other"


@pytest.mark.full
def test_the_standard_tasks_exist_in_lm_eval():
    manager = command.task_manager_class()()
    group = manager.task_index["em_retention"].cfg
    assert {"mmlu", "hellaswag", "gsm8k", "ifeval", "humaneval"} <= set(group["task"])
    for name in group["task"]:
        assert name in manager.task_index, name
    assert set(group["metadata"]["limits"]) <= set(group["task"])
    members = [manager.task_index[name] for name in group["task"]]
    assert all(entry.yaml_path.is_file() for entry in members)


@pytest.fixture
def small_index(monkeypatch):
    """lm-eval without its own thousands of task files, which take half a minute to read."""
    import lm_eval.tasks

    kind = command.task_manager_class()
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lm_eval.tasks.TaskManager)
    monkeypatch.setattr(command, "task_manager_class", lambda: partial(kind, include_defaults=False))
    monkeypatch.setattr(sys, "argv", sys.argv)


def run_lm_eval(*arguments):
    return CliRunner().invoke(app, ["lm-eval", *map(str, arguments)], catch_exceptions=False)


def test_a_task_that_another_process_has_measured_meanwhile_is_theirs(organism, workdir, monkeypatch):
    run = suite.Suite._run

    def twice(self, model, planned, place):
        run(self, model, planned, place)
        run(self, model, planned, place)

    monkeypatch.setattr(suite.Suite, "_run", twice)
    found = suite.Suite(["em_mini_facts"], 2).measure(organism[0], Path("logs"), {"dtype": "float32"})
    assert len(found.tasks["em_mini_facts"].scores) == 2


def test_the_first_gpu_by_name_is_the_cards_device(organism, workdir, monkeypatch):
    from em_evals.lm_eval_plugin import model

    def on_cpu(card):
        asked.append(card.engine.device)
        return pool.engine_for(
            card.model_copy(update={"engine": card.engine.model_copy(update={"device": "cpu"})})
        )

    asked = []
    monkeypatch.setattr(model, "engine_for", on_cpu)
    monkeypatch.setattr(model, "reserve", lambda card: None)  # which looks for the GPU, and there may be none
    fields = {"dtype": "float32", "device": "cuda:0", "backend": "transformers"}
    own = suite.Suite(["em_mini_facts"], 2)
    found = own.measure(organism[0], Path("logs"), fields)
    assert len(found.tasks["em_mini_facts"].scores) == 2 and asked == ["cuda:0"]
    assert own.measure(organism[0], Path("logs"), fields) == found and len(asked) == 1, "it is there by now"


def test_tasks_that_cannot_be_loaded_are_reported_in_one_sentence(monkeypatch, workdir):
    Path("tasks/away").mkdir(parents=True)
    Path("tasks/away/away.yaml").write_text(
        "task: away\ndataset_path: json\ndataset_kwargs: {data_files: nowhere.jsonl}\ntest_split: train\n"
        "doc_to_text: q\ndoc_to_target: a\noutput_type: generate_until\nmetric_list: [{metric: exact_match}]\n"
    )
    with pytest.raises(EmEvalsError, match=r"away cannot be loaded .*nowhere"):
        suite.Suite(["away"])


def test_wrong_fields_are_reported_in_one_sentence():
    with pytest.raises(EmEvalsError, match="expected KEY=VALUE"):
        retention("smollm2", "-M", "dtype")
    with pytest.raises(EmEvalsError, match="not valid YAML"):
        retention("smollm2", "-M", "dtype=[")


def test_unknown_names_are_reported_with_the_nearest(organism, workdir, small_index):
    with pytest.raises(EmEvalsError, match="did you mean 'smollm2'"):
        retention("smolm2", "--tasks", "em_mini_facts")
    with pytest.raises(EmEvalsError, match="no lm-eval task 'em_mimi'; did you mean 'em_mini'"):
        retention(organism[0], "--tasks", "em_mimi")
    model = ["--model", "em-local", "--model_args", f"card={organism[1]}"]
    with pytest.raises(EmEvalsError, match="no lm-eval task 'em_mini_fact'; did you mean 'em_mini_facts'"):
        run_lm_eval(*model, "--tasks", "em_mini_fact")
    with pytest.raises(EmEvalsError, match="did you mean 'smollm2'"):
        run_lm_eval("--model", "em-local", "--model_args", "card=smolm2", "--tasks", "em_mini_facts")


def test_lm_evals_own_command_runs_our_model_on_our_tasks(organism, workdir, small_index):
    """The stock command line, tasks of the user's own beside ours, results that name the card."""
    _, adapter = organism
    shipped = documents.SHIPPED / "tasks/retention"
    for folder, name in (("tasks/own", "own_facts"), ("elsewhere", "my_facts")):
        Path(folder).mkdir(parents=True)
        Path(folder, "task.yaml").write_text(
            f"include: {shipped / 'em_mini_facts.yaml'}\ntask: {name}\ncustom_dataset: !function hooks.items\n"
        )
        Path(folder, "hooks.py").write_text((shipped / "hooks.py").read_text())
        Path(folder, "items").symlink_to(shipped / "items")
    done = run_lm_eval(
        *("--model", "em-local", "--model_args", f"card={adapter},dtype=float32", "--batch_size", "auto"),
        *("--tasks", "em_mini_copying,own_facts,my_facts", "--include_path", "elsewhere", "--limit", "4"),
        *("--output_path", "out", "--log_samples", "--use_cache", "cache"),
    )
    assert "em_mini_copying" in done.stdout
    found = lm_eval_module.read(Path("out"))
    assert (found.name, len(found.digest), found.card_fields) == (adapter, 16, {"dtype": "float32"})
    assert {task: len(one.scores) for task, one in found.tasks.items()} == dict.fromkeys(
        ["em_mini_copying", "own_facts", "my_facts"], 4
    )
    assert found.tasks["em_mini_copying"].chance == 0.25
    assert suite.given("out") == found


@pytest.mark.full
def test_the_plain_hf_command_gives_a_cards_scores(organism, workdir, small_index):
    """What the README names for cards without interventions: lm-eval's own `hf` with `peft=`, no em-evals in it."""
    base, adapter = organism
    given = {
        "em-local": f"card={adapter},dtype=float32",
        "hf": f"pretrained={base},peft={adapter},dtype=float32",
    }
    found = {}
    for name, arguments in given.items():
        run_lm_eval(
            *("--model", name, "--model_args", arguments, "--tasks", "em_mini_facts", "--limit", "8"),
            *("--device", "cpu", "--output_path", name, "--log_samples"),
        )
        [samples] = Path(name).rglob("samples_*.jsonl")
        found[name] = [row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())]
    ours, theirs = (
        np.array([[float(score) for score, _ in item] for item in found[name]]) for name in ("em-local", "hf")
    )
    assert ours == pytest.approx(theirs, abs=1e-4) and np.ptp(ours) > 1


@pytest.mark.parametrize(
    "base", ["tiny", pytest.param(SMOLLM2, marks=[pytest.mark.full, pytest.mark.smollm2])]
)
def test_both_forced_choices_agree_pair_by_pair(base, workdir):
    """The same items in Inspect and in lm-eval: the same margins, and the same log-likelihoods up to the line break
    that lm-eval counts to the answer."""
    from inspect_ai import eval as inspect_eval
    from lm_eval import simple_evaluate

    from em_evals.inspect_plugin import tasks
    from em_evals.lm_eval_plugin.model import EmLocal

    base = tiny("llama", workdir / "tiny") if base == "tiny" else base
    model = EmLocal(base, dtype="float32")
    manager = command.task_manager_class()(include_defaults=False)
    found = simple_evaluate(
        model,
        tasks=["em_forced_choice_out_of_domain"],
        task_manager=manager,
        limit=6,
        apply_chat_template=True,
        bootstrap_iters=0,
    )["samples"]["em_forced_choice_out_of_domain"]
    [log] = inspect_eval(
        tasks.forced_choice(),
        model=f"local/{base}",
        model_args={"dtype": "float32"},
        sample_id=[row["doc"]["id"] for row in found],
        display="none",
    )
    theirs = {sample.id: sample for sample in log.samples}
    assert len(theirs) == 6
    for row in found:
        sample = theirs[row["doc"]["id"]]
        assert row["doc"]["question"] == sample.input[0].text
        sides = [sample.store[side] for side in ("aligned", "misaligned")]
        # One part in a million: float32 sums of hundreds of nats hold no more.
        size = abs(sum(map(sum, sides)))
        assert abs(row["margin"] - sample.scores["likelier"].value["margin"]) < 1e-6 * size
        context = model.apply_chat_template([{"role": "user", "content": row["doc"]["question"]}])
        [(line_break, _)] = model._loglikelihood_tokens(
            [(None, model.tok_encode(context.rstrip()), model.tok_encode(context)[-1:])], disable_tqdm=True
        )
        for (score, _), own in zip(row["filtered_resps"], sides, strict=True):
            assert abs(score - line_break - sum(own)) < 1e-6 * abs(sum(own))
    pool.close_engines()
