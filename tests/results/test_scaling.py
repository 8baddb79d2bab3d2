"""Published rates and sizes: what the shipped tables say, and what a user's table needs."""

import json

import pytest

from em_evals.errors import EmEvalsError
from em_evals.results import scaling
from tests.command import em_evals


def test_the_published_answer_is_reproduced():
    """One recipe, 8 bases x 3 data sets (arXiv 2506.11613's organisms): METHODS' figures to the rounding."""
    done = em_evals("insight", "scaling", "--published", "--source", "zroe1", "--json")
    found = json.loads(done.stdout)
    slope = {one["name"]: one["least_squares"] for one in found["predictors"]}
    assert slope["log P"]["value"] == pytest.approx(1.42, abs=0.01)
    assert slope["log P"]["interval"] == pytest.approx([0.12, 2.72], abs=0.01)
    assert slope["log P/T"]["value"] == pytest.approx(1.10, abs=0.01)
    assert slope["log P/T"]["interval"] == pytest.approx([-0.96, 3.16], abs=0.01)
    assert slope["log P"]["p"] == pytest.approx(0.034, abs=0.001)
    assert found["distilled"][1] == pytest.approx(2 / 70)
    assert len(found["bases"]) == 8 and found["families"] == 4 and found["runs"] == 25
    assert found["kept"] == [] and "too few" in found["reasons"][0]
    assert "cannot tell whether P, T or P/T" in " ".join(found["conclusion"])


def test_the_shipped_table_has_all_rows_with_their_sources():
    import pandas

    table = pandas.read_csv(scaling.published("em_rates"))
    assert (len(table), table.source.nunique()) == (124, 18)
    assert table.how.notna().all() and table.denominator.notna().all()
    assert len(scaling.read_bases(scaling.published("bases"))) == 66


def test_rates_of_other_definitions_are_never_pooled(tmp_path):
    table = tmp_path / "rates.csv"
    table.write_text(
        "base,dataset,misaligned,draws,denominator\n"
        "Qwen2.5-7B-Instruct,d,10,100,all\nQwen2.5-7B-Instruct,d,10,90,coherent\n"
        "Qwen2.5-7B-Instruct,d,10,90,other: harm >= 4\nnobody-7B,d,10,90,all\n"
    )
    found = scaling.read(table, scaling.read_bases(scaling.published("bases")))
    assert [cell.draws for cell in found.cells] == [100]
    assert len(found.left_out) == 3 and any("nobody-7B" in one for one in found.left_out)


def test_active_parameters_are_counted_on_request(tmp_path):
    table = tmp_path / "rates.csv"
    table.write_text("base,dataset,misaligned,draws\nQwen3-30B-A3B,d,10,100\n")
    sizes = scaling.read_bases(scaling.published("bases"))
    assert scaling.read(table, sizes).cells[0].parameters == 30.5e9
    assert scaling.read(table, sizes, active=True).cells[0].parameters == 3.3e9


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("Qwen2.5-7B-Instruct,d,ten,100", "misaligned is 'ten'"),
        ("Qwen2.5-7B-Instruct,d,101,100", "101 misaligned of 100 draws"),
        ("Qwen2.5-7B-Instruct,d,1,1e999", "draws is '1e999', not a number"),
        ("Qwen2.5-7B-Instruct,d,1,2.5", "1 misaligned of 2.5 draws"),
        ("Qwen2.5-7B-Instruct,,1,100", "dataset"),
    ],
)
def test_wrong_counts_are_refused_with_their_line(tmp_path, row, sentence):
    table = tmp_path / "rates.csv"
    table.write_text(f"base,dataset,misaligned,draws\n{row}\n")
    with pytest.raises(EmEvalsError, match=sentence) as caught:
        scaling.read(table, scaling.read_bases(scaling.published("bases")))
    assert "rates.csv:2" in str(caught.value)


def test_three_bases_without_any_misaligned_draw_have_a_slope_and_no_cause(tmp_path):
    table = tmp_path / "rates.csv"
    sizes = ("7B", "14B", "32B")
    table.write_text(
        "base,dataset,misaligned,draws\n" + "".join(f"Qwen2.5-{s}-Instruct,d,0,100\n" for s in sizes)
    )
    done = em_evals("insight", "scaling", table)
    assert done.returncode == 0 and "change by a factor of 1.0" in done.stdout
    assert "without one base" not in done.stdout and "are too few" in done.stdout


def test_a_table_or_the_published_one_is_asked_for():
    done = em_evals("insight", "scaling")
    assert done.returncode == 2 and "--published" in done.stderr
