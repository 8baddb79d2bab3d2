"""lm-eval's result files are read once, whichever version wrote them."""

import json

import pytest

from em_evals.errors import EmEvalsError
from em_evals.results import lm_eval
from tests.lm_eval_files import OLD, write_results

RIGHT = [True, False, True, True]


def rewrite(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def samples_of(path):
    return next(path.parent.glob("samples_*.jsonl"))


def test_a_file_gives_numbers_items_and_how_they_were_asked(tmp_path):
    path = rewrite(
        write_results(tmp_path, "mini", RIGHT),
        lambda data: data["config"].update(card="local/mine", card_digest="0123", limit=4),
    )
    found = lm_eval.read_file(path)
    task = found.tasks["mini"]
    assert (found.model, found.digest, found.settings["limit"], found.system) == (
        "local/mine",
        "0123",
        "4",
        "",
    )
    assert (task.version, task.shots, task.count, task.prompts) == ("1", 0, 4, "d68f8638")
    assert task.numbers == {("acc", "none"): 0.75} and task.errors["acc", "none"] == pytest.approx(0.25)
    assert list(task.items["acc", "none"].values()) == [1, 0, 1, 1] and len(task.hashes["3"]) == 64


def two_filters(folder, second):
    """Samples as lm-eval 0.4.4 writes them: all items of the first filter, then all of the second."""
    path = write_results(folder, "mini", RIGHT, without=OLD)
    accuracy = sum(second) / len(second)
    rewrite(
        path,
        lambda data: data["results"]["mini"].update({"acc,flexible": accuracy, "acc_stderr,flexible": 0.1}),
    )
    more = ({"doc_id": i, "doc_hash": f"{i:064x}", "acc": float(value)} for i, value in enumerate(second))
    with samples_of(path).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    return path


def test_rows_without_a_filter_belong_to_the_summarys_filters_in_order(tmp_path):
    items = lm_eval.read_file(two_filters(tmp_path, [False, False, False, True])).tasks["mini"].items
    assert list(items["acc", "none"].values()) == [1, 0, 1, 1]
    assert list(items["acc", "flexible"].values()) == [0, 0, 0, 1]


def test_more_rows_of_an_item_than_filters_are_another_run(tmp_path):
    path = write_results(tmp_path, "mini", RIGHT, without=OLD)
    text = samples_of(path).read_text()
    samples_of(path).write_text(text + text)
    with pytest.raises(EmEvalsError, match="the item 0 is repeated; the file holds more than one run"):
        lm_eval.read_file(path)


def test_a_row_without_any_metric_is_refused_and_not_read_as_no_samples(tmp_path):
    path = write_results(tmp_path, "mini", RIGHT, without=(*OLD, "acc"))
    with pytest.raises(EmEvalsError, match="not a sample of lm-eval"):
        lm_eval.read_file(path)


def test_a_summary_that_its_samples_do_not_give_is_refused(tmp_path):
    path = rewrite(
        write_results(tmp_path, "mini", RIGHT), lambda data: data["results"]["mini"].update({"acc,none": 0.5})
    )
    with pytest.raises(EmEvalsError, match="a file was edited or belongs to another run"):
        lm_eval.read_file(path)


def test_samples_of_0_4_2_are_found_and_paired_by_their_documents(tmp_path):
    new = write_results(tmp_path / "new", "arc", [True, False, True])
    old = tmp_path / "old" / "results.json"
    old.parent.mkdir()
    data = json.loads(new.read_text())
    for key in ("n-samples", "task_hashes", "model_name", "group_subtasks"):
        del data[key]
    old.write_text(json.dumps(data))
    docs = [{"question": f"é {i}"} for i in range(3)]
    rows = [{"doc_id": i, "doc": doc, "acc": float(i != 1)} for i, doc in enumerate(docs)]
    (old.parent / "pretrained=gpt2_arc.jsonl").write_text(json.dumps(rows, indent=2))
    task = lm_eval.read_file(old).tasks["arc"]
    assert task.items["acc", "none"] == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert len(set(task.hashes.values())) == 3 and all(len(one) == 64 for one in task.hashes.values())
    (old.parent / "pretrained=other_arc.jsonl").write_text("[]")
    with pytest.raises(EmEvalsError, match="several files could be the samples of arc"):
        lm_eval.read_file(old)
