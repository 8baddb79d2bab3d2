"""Directions of other programs: every format, both numberings, our own exports back; pickles are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from em_evals.content import direction_exports, directions
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp import foreign_directions
from em_evals.interp.foreign_directions import read
from tests.command import em_evals

torch = pytest.importorskip("torch")
DEPTH, WIDTH = 4, 3
STACK = np.arange(1, 1 + DEPTH * WIDTH, dtype=np.float32).reshape(DEPTH, WIDTH)
WITH_EMBEDDINGS = np.concatenate([np.full((1, WIDTH), 99, np.float32), STACK])


@pytest.fixture
def base(tmp_path: Path) -> str:
    (tmp_path / "base").mkdir()
    config = {"model_type": "llama", "num_hidden_layers": DEPTH, "hidden_size": WIDTH}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    return str(tmp_path / "base")


def test_our_own_exports_read_back(base: str, tmp_path: Path) -> None:
    own = Direction(STACK, STACK * 2, np.ones(DEPTH, np.float32), {"base": base})
    directions.write(own, tmp_path / "own.safetensors")
    assert read(tmp_path / "own.safetensors", base) == own
    direction_exports.to_gguf(own, tmp_path / "own.gguf")
    back = read(tmp_path / "own.gguf", base, like=own)
    assert np.array_equal(back.vectors[1:], STACK[1:]) and not back.vectors[0].any(), (
        "llama.cpp has no block 0"
    )
    assert np.array_equal(back.base_mean, own.base_mean)
    direction_exports.to_safetensors(own, tmp_path / "layer.safetensors", 2)
    back = read(tmp_path / "layer.safetensors", base)
    assert np.array_equal(back.vectors[2], STACK[2]) and back.metadata["blocks"] == [2], (
        "the file says its layer"
    )


def test_stacks_and_numbered_tensors_in_every_format(base: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    torch.save(torch.tensor(WITH_EMBEDDINGS), tmp_path / "evil_response_avg_diff.pt")
    torch.save(
        {f"layer_{i}": torch.tensor(STACK[i], dtype=torch.bfloat16) for i in range(DEPTH)},
        tmp_path / "state.pt",
    )
    torch.save([torch.tensor(row) for row in WITH_EMBEDDINGS], tmp_path / "list.pt")
    np.savez(tmp_path / "a.npz", STACK)
    np.savez(tmp_path / "b.npz", **{str(i): STACK[i] for i in range(DEPTH)})
    np.save(tmp_path / "c.npy", WITH_EMBEDDINGS)
    save_file({"x": STACK}, tmp_path / "d.safetensors")
    names = ("evil_response_avg_diff.pt", "state.pt", "list.pt", "a.npz", "b.npz", "c.npy", "d.safetensors")
    for name in names:
        found = read(tmp_path / name, base)
        assert np.array_equal(found.vectors, STACK), name
        assert found.metadata["base"] == base and found.metadata["blocks"] == [0, 1, 2, 3]


def test_repengs_control_vector_counts_blocks(base: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "r.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer in (1, 3):
        writer.add_tensor(f"direction.{layer}", STACK[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(tmp_path / "r.gguf", base)
    assert found.metadata["blocks"] == [1, 3] and np.array_equal(found.vectors[3], STACK[3])


def test_one_vector_needs_its_layer_and_numbering_counts(base: str, tmp_path: Path) -> None:
    torch.save(torch.tensor(STACK[1]), tmp_path / "layer20.pt")
    with pytest.raises(EmEvalsError, match="give --layer"):
        read(tmp_path / "layer20.pt", base)
    assert read(tmp_path / "layer20.pt", base, layer=2, numbering="hidden_states").metadata["blocks"] == [1]
    assert read(tmp_path / "layer20.pt", base, layer=2).metadata["blocks"] == [2]
    with pytest.raises(
        EmEvalsError, match=r"the layer 4 \(blocks\) is no block of this base, whose blocks are 0 to 3"
    ):
        read(tmp_path / "layer20.pt", base, layer=4)
    output = tmp_path / "o.safetensors"
    done = em_evals(
        "direction", "import", tmp_path / "layer20.pt", "--base", base, "-o", output, "--layer", "1"
    )
    assert done.returncode == 0 and "blocks [1] of 4" in done.stdout
    found = directions.read(output)
    assert found.metadata["unknown"] == ["base_mean", "mean_norm"]
    directions.check_known(found, False, "zero")
    with pytest.raises(EmEvalsError, match="`relative` needs the direction's mean_norm"):
        directions.check_known(found, True, "zero")


def test_what_is_no_direction_of_this_base_is_refused(base: str, tmp_path: Path) -> None:
    torch.save({"vector": torch.zeros(WIDTH), "notes": Path("x")}, tmp_path / "pickle.pt")
    with pytest.raises(EmEvalsError, match="holds more than plain tensors, and loading it could run code"):
        read(tmp_path / "pickle.pt", base)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(
        EmEvalsError, match=r"not a \.npy file|an array of this file is of the type|file of numbers"
    ):
        read(tmp_path / "objects.npy", base)
    np.save(tmp_path / "wide.npy", np.zeros((DEPTH, WIDTH + 1), np.float32))
    with pytest.raises(EmEvalsError, match="the base's width is 3"):
        read(tmp_path / "wide.npy", base)
    np.save(tmp_path / "deep.npy", np.zeros((DEPTH + 3, WIDTH), np.float32))
    with pytest.raises(EmEvalsError, match="the base has 4 blocks of width 3"):
        read(tmp_path / "deep.npy", base)
    np.savez(tmp_path / "two.npz", a=STACK, b=STACK)
    with pytest.raises(EmEvalsError, match="several tensors"):
        read(tmp_path / "two.npz", base)
    assert np.array_equal(read(tmp_path / "two.npz", base, key="b").vectors, STACK)
    with pytest.raises(EmEvalsError, match="not on this machine"):
        read(tmp_path / "two.npz", "nobody/nothing", key="b")


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({f"{i - DEPTH}": STACK[i] for i in range(DEPTH)}, {}, "'-4' counts layers from the end"),
        ({"layer_-1": STACK[0]}, {}, "'layer_-1' counts layers from the end"),
        ({"evil.1": STACK[0], "kind.1": STACK[1]}, {}, r"several directions \(evil\., kind\.\)"),
        ({"evil.1": STACK[0], "kind.2": STACK[1]}, {}, "several directions"),
        ({"v": STACK * 0}, {}, "every number in this file is 0"),
        ({"v": STACK}, {"layer": 2}, "--layer is the layer of a single vector"),
        ({f"layer_{i}": STACK[i] for i in (1, 2)}, {"layer": 2}, r"states its own \(blocks 1, 2\)"),
        ({"layer_1": STACK[1]}, {"layer": 2}, "--layer is the layer of a single vector"),
        ({"v": STACK[1], "layer": np.array(1)}, {"layer": 2}, "the file states layer 1, and --layer 2"),
        ({f"l.{i}": STACK[i - 1] for i in (1, 2, 3, 4)}, {}, "give --numbering hidden_states"),
    ],
)  # fmt: skip
def test_layers_that_would_be_mistaken_are_refused(base, tmp_path, arrays, options, says) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EmEvalsError, match=says):
        read(tmp_path / "a.npz", base, **options)


def test_a_hyphen_between_name_and_number_is_no_minus(base: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"layer-{i}": STACK[i] for i in range(DEPTH)})
    assert np.array_equal(read(tmp_path / "a.npz", base).vectors, STACK)
    np.savez(tmp_path / "b.npz", **{"l.2": STACK[2]})
    assert read(tmp_path / "b.npz", base, layer=2).metadata["blocks"] == [2]


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_a_short_file_that_becomes_gigabytes_is_refused(ending, base, tmp_path, monkeypatch):
    path = tmp_path / f"d{ending}"
    if ending == ".pt":  # a tensor of a tebibyte that repeats one number
        torch.save(torch.zeros(1, dtype=torch.float16).expand(2**20, 2**19), path)
    else:
        monkeypatch.setattr(foreign_directions, "MOST", 1000)
        np.savez_compressed(path, a=np.zeros(2000, np.float32))
    assert path.stat().st_size < 2000
    with pytest.raises(EmEvalsError, match="which is no direction"):
        read(path, base)
