"""directions.py's arithmetic by hand, and exports as the other programs read them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from em_evals.cli import app
from em_evals.content import direction_algebra, direction_exports, directions
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError


def made(vectors, **metadata):
    array = np.asarray(vectors, dtype=np.float32)
    return Direction(array, np.ones_like(array), np.ones(len(array), np.float32), metadata)


ONE = made([[3, 4], [1, 0]], base="a/B")
OTHER = made([[4, 3], [0, 2]], base="mirror/b")


def test_arithmetic_is_that_of_vectors_layer_by_layer():
    assert np.allclose(direction_algebra.unit(ONE), [[0.6, 0.8], [1, 0]])
    assert np.allclose(direction_algebra.cosine(ONE, OTHER), [0.96, 0])
    found = direction_algebra.combine([(1, ONE), (-0.5, OTHER)], how="by hand")
    assert np.allclose(found.vectors, [[1, 2.5], [1, -1]]) and np.allclose(found.base_mean, 1)
    assert found.metadata == {"base": "a/B", "how": "by hand"}
    rest = direction_algebra.orthogonalise(ONE, OTHER)
    assert np.allclose((rest.vectors * OTHER.vectors).sum(1), 0, atol=1e-6)
    assert np.allclose(ONE.vectors - rest.vectors, [[4 * 24 / 25, 3 * 24 / 25], [0, 0]])
    assert np.isfinite(direction_algebra.unit(made([[0, 0]]))).all()


def test_what_rounding_leaves_is_no_vector():
    vectors = np.array([[3e-5, 4e-5], [3e-7, 4e-7], [0, 0]], np.float32)
    found = Direction(vectors, np.zeros_like(vectors), np.array([1, 1, 0], np.float32))
    assert direction_algebra.beyond_rounding(found).tolist() == [True, False, False]


def test_random_directions_have_the_cosines_that_are_promised():
    chance = np.random.default_rng(0)
    pairs = chance.normal(size=(2, 20_000, 48))
    cosines = abs((pairs[0] * pairs[1]).sum(1)) / np.linalg.norm(pairs, axis=2).prod(0)
    assert (cosines < direction_algebra.random_cosine(48)).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("other", [made([[1, 2]]), made([[1, 2], [3, 4]], base="someone/else")])
def test_directions_of_different_bases_are_not_mixed(other):
    for act in (
        direction_algebra.cosine,
        direction_algebra.orthogonalise,
        lambda a, b: direction_algebra.combine([(1, a), (1, b)]),
    ):
        with pytest.raises(EmEvalsError, match="different bases"):
            act(ONE, other)


def test_values_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(EmEvalsError, match="`vectors` of this direction holds NaN"):
        made([[1, np.nan]])
    path, one = tmp_path / "d.safetensors", made([[1, 2]])
    wide = {"direction": np.array([[1e300, 1]]), "base_mean": one.base_mean, "mean_norm": one.mean_norm}
    for vectors in ([[1, np.nan]], [[1, -np.inf]], wide["direction"]):
        save_file({**wide, "direction": np.asarray(vectors, dtype=np.float64)}, path)
        with pytest.raises(EmEvalsError, match=r"d\.safetensors: .* beyond float32\. Extract it again"):
            directions.read(path)
    save_file({**wide, "direction": np.array([[1, 2]], dtype=np.int8)}, path)
    with pytest.raises(EmEvalsError, match="the tensor `direction` of this direction file holds I8"):
        directions.read(path)


@pytest.mark.parametrize(
    "told, sentence",
    [
        ({"base": 3}, "wrong at `base`"),
        ({"questions": "gender"}, "wrong at `questions`"),
        ({"movement": {"a": [None, "x"]}}, "wrong at `movement.a.1`"),
        ({"reliability": [0.5]}, "`reliability` of this direction file has 1 entries for 2 layers"),
        (["base"], "not a JSON object"),
    ],
)
def test_metadata_of_other_types_are_refused(tmp_path, told, sentence):
    one, path = made([[1, 2], [3, 4]]), tmp_path / "d.safetensors"
    tensors = {"direction": one.vectors, "base_mean": one.base_mean, "mean_norm": one.mean_norm}
    save_file(tensors, path, metadata={"em_evals": json.dumps(told)})
    with pytest.raises(EmEvalsError, match=sentence):
        directions.read(path)


def test_a_control_vector_is_what_llama_cpp_reads(tmp_path):
    gguf = pytest.importorskip("gguf")
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    direction_exports.to_gguf(made(vectors), tmp_path / "d.gguf", "qwen2")
    reader = gguf.GGUFReader(tmp_path / "d.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2" and fields["controlvector.layer_count"] == 3
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert sorted(tensors) == ["direction.1", "direction.2", "direction.3"], "llama.cpp has none for layer 0"
    assert all(np.array_equal(tensors[f"direction.{i}"], vectors[i]) for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("output", "option"), [("d.gguf", ["--layer", "1"]), ("d.safetensors", ["--architecture", "qwen2"])]
)
def test_an_export_refuses_what_it_does_not_read(output, option, workdir):
    directions.write(ONE, workdir / "one.safetensors")
    done = CliRunner().invoke(app, ["direction", "export", "one.safetensors", "-o", output, *option])
    assert f"{option[0]} does not apply to a .{output.split('.')[1]} file" in str(done.exception)
    assert not (workdir / output).exists()


def test_one_layer_is_a_plain_file(tmp_path):
    from safetensors.numpy import load_file

    direction_exports.to_safetensors(ONE, tmp_path / "one.safetensors", 1)
    assert np.array_equal(load_file(tmp_path / "one.safetensors")["direction"], [1, 0])
    with pytest.raises(EmEvalsError, match="its layers are 0 to 1"):
        direction_exports.to_safetensors(ONE, tmp_path / "one.safetensors", 2)
