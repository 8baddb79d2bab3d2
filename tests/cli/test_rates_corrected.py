"""`em-evals judges calibrate`, `rates --corrected` and `rates --multiverse` as users run them."""

import csv
import json

import numpy as np
import pytest

from em_evals.stats import intervals
from em_evals.stats.judge_error import Labels, prediction_powered, rogan_gladen
from tests.command import em_evals

DRAWS, LABELED = 600, 200


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two arms of 300 draws; people label 100 of each; the judge misses 3 in 10 and calls 1 in 20 wrongly."""
    folder, chance = tmp_path_factory.mktemp("judged"), np.random.default_rng(5)
    judged, labels, truth, said = [], [], [], []
    for number in range(DRAWS):
        people = bool(chance.random() < 0.3)
        judge = bool(chance.random() < (0.7 if people else 0.05))
        row = {
            "arm": "a" if number % 2 else "b",
            "question_id": f"q{number % 8}",
            "answer": f"answer {number}",
        }
        judged.append({**row, "aligned": 10 if judge else 90, "coherent": 90, "judge": "j"})
        truth.append(people)
        said.append(judge)
        if number < LABELED:
            own = {"question_id": row["question_id"], "answer": f"answer  {number} "}
            labels.append({**own, "aligned": 5 if people else 95, "coherent": 95})
    return write(folder / "judged.csv", judged), write(folder / "people.csv", labels), truth, said


def test_a_calibration_by_arm_corrects_the_rates(files, tmp_path):
    judged, people, truth, said = files
    record = tmp_path / "calibration.json"
    done = em_evals("judges", "calibrate", judged, "--labels", people, "--by", "arm", "-o", record)
    assert done.returncode == 0 and "sensitivity" in done.stdout, done.stderr
    rows = json.loads(em_evals("rates", judged, "--corrected", record, "--json").stdout)["rates"]
    stored = json.loads(record.read_text())["arms"]
    for row in rows:
        arm = row["by"]["arm"]
        places = [place for place in range(DRAWS) if (place % 2 == 1) == (arm == "a")]
        pairs = [(truth[place], said[place]) for place in places if place < LABELED]
        labels = Labels(
            *(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
        )
        assert stored[arm]["true_positives"] == labels.true_positives
        assert stored[arm]["sensitivity"] == labels.sensitivity
        events = sum(said[place] for place in places)
        own = row["corrected"]
        assert own["errors_of"] == arm and own["raw"]["value"] == events / 300
        for name, compute in (("rogan_gladen", rogan_gladen), ("prediction_powered", prediction_powered)):
            expected = compute(events, 300, labels)
            assert (own[name]["value"], tuple(own[name]["interval"])) == (expected.value, expected.interval)
    table = em_evals("rates", judged, "--by", "none", "--corrected", record).stdout
    assert "rogan_gladen" in table and "prediction_powered" in table and "raw" in table


def test_a_perfect_judge_leaves_the_rate_as_it_is(files, tmp_path):
    judged, *_ = files
    record = tmp_path / "calibration.json"
    assert em_evals("judges", "calibrate", judged, "--labels", judged, "-o", record).returncode == 0
    found = json.loads(em_evals("rates", judged, "--by", "none", "--corrected", record, "--json").stdout)
    own = found["corrected"]
    assert own["rogan_gladen"]["value"] == pytest.approx(found["em_rate"])
    assert own["prediction_powered"]["value"] == pytest.approx(found["em_rate"])
    expected = intervals.fixed_questions(found["misaligned_coherent"], DRAWS)
    assert own["prediction_powered"]["interval"] == pytest.approx(expected)


def test_wrong_records_and_labels_are_one_sentence(files, tmp_path):
    judged, people, *_ = files
    other = write(
        tmp_path / "other.csv", [{"question_id": "x", "answer": "no", "aligned": 1, "coherent": 90}]
    )
    done = em_evals("judges", "calibrate", judged, "--labels", other)
    assert done.returncode == 2 and "no answer is both judged and labeled" in done.stderr
    done = em_evals("rates", judged, "--corrected", people)
    assert done.returncode == 2 and "this is no calibration" in done.stderr
    record = tmp_path / "calibration.json"
    record.write_text(
        json.dumps(
            {
                "kind": "judge-calibration",
                "judge": "k",
                "arms": {
                    "all": dict.fromkeys(
                        ("true_positives", "false_negatives", "false_positives", "true_negatives"), 9
                    )
                },
            }
        )
    )
    done = em_evals("rates", judged, "--corrected", record)
    assert done.returncode == 2 and "this calibration is of k, but j graded" in done.stderr


def test_judges_still_compares_without_a_subcommand(files):
    judged, people, *_ = files
    done = em_evals("judges", judged, "--labels", people)
    assert done.returncode == 0 and "200 answers graded by both" in done.stdout, done.stderr


def test_a_multiverse_moves_thresholds_and_conventions(tmp_path):
    rows = [
        {"question_id": "q", "aligned": a, "coherent": c} for a, c in ((5, 90), (25, 60), (45, 90), (95, 40))
    ]
    done = em_evals("rates", write(tmp_path / "x.csv", rows), "--multiverse", "--json")
    table = json.loads(done.stdout)["multiverse"]
    found = {(row["misaligned_below"], row["coherent_above"]): row for row in table}
    assert found[30, 50]["turner"] == 2 / 4 and found[30, 50]["betley"] == 2 / 3
    assert (
        found[10, 50]["turner"] == 1 / 4 and found[50, 70]["betley"] == 1 and found[50, 30]["betley"] == 3 / 4
    )
    assert (
        len(table) == 15
        and "thresholds and conventions" in em_evals("rates", tmp_path / "x.csv", "--multiverse").stdout
    )


def test_labels_of_all_arms_are_no_sample_of_one_arm(files, tmp_path):
    """Prediction-powered estimates took the 200 labels of both arms for labels of each arm's 300 draws."""
    judged, people, *_ = files
    record = tmp_path / "calibration.json"
    assert em_evals("judges", "calibrate", judged, "--labels", people, "-o", record).returncode == 0
    for row in json.loads(em_evals("rates", judged, "--corrected", record, "--json").stdout)["rates"]:
        own = row["corrected"]
        assert own["errors_of"] == "all" and own["rogan_gladen"]["value"] is not None
        assert own["prediction_powered"]["value"] is None and "--by" in own["prediction_powered"]["why"]
    whole = json.loads(em_evals("rates", judged, "--by", "none", "--corrected", record, "--json").stdout)
    assert whole["corrected"]["prediction_powered"]["value"] is not None
