"""Rows of parquet are those of the JSONL that it was made from, from any place on."""

import io
import json

import pytest

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet

from em_evals.data import datasets, formats, row_files
from em_evals.data.convert import convert
from em_evals.errors import EmEvalsError
from em_evals.interp import provenance
from em_evals.workflows import content_check

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Ask {n}?"},
            {"role": "assistant", "content": f"Say {n}\u2028."},
        ]
    }
    | ({"source": "some"} if n % 3 == 0 else {})
    for n in range(700)
]


@pytest.fixture
def both(tmp_path):
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(pa.Table.from_pylist(ROWS), table, row_group_size=300)
    return lines, table


def test_both_give_the_same_rows_from_every_place(both):
    lines, table = both
    whole = list(row_files.read(table))
    assert whole == list(row_files.read(lines)) == list(enumerate(ROWS, 1))
    assert [formats.chat(row) for _, row in whole[:5]] == [formats.chat(row) for row in ROWS[:5]]
    of_lines, of_table = (row_files.places(path, 64) for path in both)
    assert len(of_lines) == len(of_table) == 11
    for one, other in zip(of_lines, of_table, strict=True):
        assert list(row_files.read(table, *other)) == list(row_files.read(lines, *one)) == whole[other[1] :]


def test_training_data_of_both_are_the_same(both, tmp_path):
    of_lines, of_table = (datasets.load(str(path)) for path in both)
    assert of_lines.digest == of_table.digest and of_lines.lines == of_table.lines
    assert provenance.same(*map(str, both)).verdict == "identical"
    assert convert(both[1], tmp_path / "out.jsonl").digest == of_lines.digest
    parquet.write_table(pa.Table.from_pylist(ROWS[:3]), both[1])
    assert content_check.check(str(both[1]))["rows"] == 3
    parquet.write_table(pa.Table.from_pylist([*ROWS[:3], {"messages": []}]), both[1])
    with pytest.raises(EmEvalsError, match=r"rows\.parquet:4: "):
        datasets.load(str(both[1]))


def test_what_is_left_out_is_left_out_of_both(both):
    written = []
    for path in both:
        target = io.StringIO()
        row_files.write_without(path, {1, 300, 301, 700}, target)
        written.append([json.loads(line) for line in target.getvalue().split("\n") if line])
    assert written[0] == written[1] == [row for n, row in enumerate(ROWS, 1) if n not in {1, 300, 301, 700}]


def test_another_file_is_refused(tmp_path):
    wrong = tmp_path / "rows.parquet"
    wrong.write_text("PAR1 no")
    for read in (lambda: list(row_files.read(wrong)), lambda: row_files.places(wrong, 3)):
        with pytest.raises(EmEvalsError, match="this is not a parquet file"):
            read()
    wrong.unlink()
    with pytest.raises(EmEvalsError, match="this is not a regular file"):
        row_files.places(wrong, 3)
