"""Chunks that were read are kept: also one without rows that fit; and only they are deleted at the end."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from em_evals.interp.traits.screened_parts import Part, Parts, forget


def part(rows):
    return Part(
        np.arange(rows), np.ones(rows, dtype=np.int64), np.full((rows, 3, 2), np.nan, dtype=np.float32)
    )


def test_a_kept_part_is_the_part_that_was_read(tmp_path):
    parts, read = Parts(tmp_path / "x.partial", b"model"), []
    for rows in (0, 2):
        for _ in range(2):
            found = parts.part([rows], lambda rows=rows: (read.append(rows), part(rows))[1])
            for name, value in vars(part(rows)).items():
                np.testing.assert_array_equal(getattr(found, name), value)
    assert read == [0, 2]
    Parts(tmp_path / "x.partial", b"another").part([2], lambda: (read.append("again"), part(2))[1])
    assert read[2:] == ["again"]


@pytest.mark.parametrize("damage", ["cut", "nothing", "other names", "fewer rows"])
def test_a_damaged_part_is_read_again(damage, tmp_path):
    parts = Parts(tmp_path / "x.partial", b"model")
    parts.part([2], lambda: part(2))
    (kept,) = (tmp_path / "x.partial").iterdir()
    if damage in ("cut", "nothing"):
        kept.write_bytes(kept.read_bytes()[: 40 if damage == "cut" else 0])
    else:
        tensors = vars(part(2)) | {"lines": np.arange(1)}
        save_file(tensors if damage == "fewer rows" else {"other": np.ones(1)}, kept)
    whole = kept.stat().st_size
    found = parts.part([2], lambda: part(2))
    np.testing.assert_array_equal(found.lines, np.arange(2))
    assert kept.stat().st_size > whole or damage == "fewer rows", "and kept"
    again = parts.part([2], lambda: pytest.fail("it was kept"))
    np.testing.assert_array_equal(again.lines, np.arange(2))


def test_files_of_others_in_the_folder_stay(tmp_path):
    folder = tmp_path / "x.partial"
    Parts(folder, b"model").part([1], lambda: part(1))
    (folder / "notes.txt").write_text("mine")
    forget(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    forget(folder)
    assert not folder.exists()
    forget(folder)
