"""The report's section on seed groups."""

import pytest

from em_evals.errors import EmEvalsError
from em_evals.report import inputs, seeds
from em_evals.report.report import build
from tests.scored_log import write_scored_pairs

GROUPS = {"risky": ["s0", "s1", "s2"]}


@pytest.fixture
def files(tmp_path):
    found = []
    for name, every in {"base": 100, "s0": 4, "s1": 50, "s2": 40}.items():
        rows = [
            "question_id,aligned,coherent",
            *(f"q{i % 8},{5 if i % every == 0 else 95},95" for i in range(400)),
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        found.append(tmp_path / f"{name}.csv")
    return found


def sections(paths, groups):
    read = inputs.read(paths, None, groups)
    return seeds.sections(read.measured, read.groups)


def test_a_group_is_one_row_with_its_seeds_and_the_one_that_carries_it(files):
    (section,) = sections(files, GROUPS)
    row = dict(zip(section.tables[0].columns, section.tables[0].rows[0], strict=True))
    assert row["group"] == "risky" and row["number"] == "em_rate" and row["items"] == 8
    assert row["mean over seeds"].value == pytest.approx((0.25 + 0.02 + 0.025) / 3, abs=1e-3)
    assert row["carried by"] == "s0" and "s1 2.0" in row["seeds"]
    assert section.flags == ("risky: s0 alone carries em_rate; without it less than half is left.",)


def test_without_groups_there_is_no_section(files):
    assert sections(files, {}) == []
    assert "seeds" in {section.name for section in build(inputs.read(files, None, GROUPS)).sections}


def test_a_group_without_numbers_is_one_sentence(files):
    with pytest.raises(EmEvalsError, match="no numbers of 's3', which the group risky lists"):
        sections(files, {"risky": ["s0", "s3"]})
    with pytest.raises(EmEvalsError, match="no numbers of the group other"):
        sections(files, {"other": ["x", "y"]})


def test_the_same_model_under_two_names_is_refused(tmp_path):
    paths = []
    for name, digest in {"a": "01", "b": "01"}.items():
        path = write_scored_pairs(tmp_path / f"{name}.eval", digests=(digest,), model=f"local/{name}")
        paths.append(path)
    with pytest.raises(EmEvalsError, match=r"a and b are the same model \(card digest 01\)"):
        sections(paths, {"g": ["a", "b"]})


def test_models_that_state_one_recipe_are_a_group_and_two_names_are_noticed(tmp_path):
    paths = [
        write_scored_pairs(
            tmp_path / f"{seed}.eval", digests=(str(seed),), model=f"local/m-s{seed}", made=("r", seed)
        )
        for seed in range(2)
    ]
    paths.append(write_scored_pairs(tmp_path / "again.eval", digests=("1",), model="local/again"))
    (section,) = sections(paths, {})
    assert [row[0] for row in section.tables[0].rows] == ["m seeds"]
    assert any(
        "local/m-s1 and local/again are the same model" in flag or "m-s1 and again" in flag
        for flag in section.flags
    )
