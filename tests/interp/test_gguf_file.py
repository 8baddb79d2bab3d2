"""GGUF files: as the package `gguf` reads them, and within their own size where they lie."""

import struct
import time

import numpy as np
import pytest

from em_evals.interp.gguf_file import tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "direction.1": RNG.normal(size=8).astype(np.float32),
    "direction.2": RNG.normal(size=(2, 3)).astype(np.float16),
    "direction.3": RNG.normal(size=5),
    "direction.4": np.arange(4, dtype=np.int32),
    "other": np.zeros(2, np.float32),
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(keys: int, count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, count, keys)


@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
def test_a_file_is_read_as_the_package_reads_it(order, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "controlvector", endianess=getattr(gguf.GGUFEndian, order))
    writer.add_custom_alignment(64)
    writer.add_array("names", ["a", "", "bcd"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_bool("yes", True)
    writer.add_float64("half", 0.5)
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = tensors(path, "direction.")
    theirs = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    assert list(found) == [name for name in ARRAYS if name.startswith("direction.")]
    for name, array in found.items():
        assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
        assert np.array_equal(array, ARRAYS[name]) and np.array_equal(array, theirs[name])


LIES = {
    "an array of 2^62 texts": header(1) + text("a") + struct.pack("<IIQ", 9, 8, 2**62),
    "an array of 2^62 numbers": header(1) + text("a") + struct.pack("<IIQ", 9, 4, 2**62),
    "an array of 2^62 arrays": header(1) + text("a") + struct.pack("<IIQ", 9, 9, 2**62) + struct.pack("<IQ", 9, 1) * 9,
    "a text of 2^63 bytes": header(1) + struct.pack("<Q", 2**63),
    "2^64 - 1 keys": header(2**64 - 1),
    "2^64 - 1 tensors": header(0, 2**64 - 1),
    "2^31 dimensions": header(0, 1) + text("direction.1") + struct.pack("<I", 2**31),
    "2^62 numbers": header(0, 1) + text("direction.1") + struct.pack("<IQIQ", 1, 2**62, 0, 0),
    "a place of 2^63": header(0, 1) + text("direction.1") + struct.pack("<IQIQ", 1, 1, 0, 2**63),
    "no magic": b"GGML" + bytes(20),
    "version 9": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "an unknown type": header(1) + text("a") + struct.pack("<I", 77),
    "an alignment of 0": header(1) + text("general.alignment") + struct.pack("<II", 4, 0),
    "nothing": b"GG",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_at_once(lie, tmp_path):
    (tmp_path / "a.gguf").write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\w"):
        tensors(tmp_path / "a.gguf", "direction.")
    assert time.process_time() - started < 1


def test_a_quantized_tensor_is_refused_by_name(tmp_path):
    entry = text("direction.1") + struct.pack("<IQIQ", 1, 32, 8, 0)
    (tmp_path / "a.gguf").write_bytes((header(0, 1) + entry).ljust(128, b"\0"))
    with pytest.raises(ValueError, match=r"direction\.1 is quantized"):
        tensors(tmp_path / "a.gguf", "direction.")
    assert tensors(tmp_path / "a.gguf", "other") == {}
