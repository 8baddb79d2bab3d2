"""Tensors of a GGUF file, within the file's own size: each length that it states is checked before it is believed.

The package `gguf` loops over stated lengths, past the file's end: 281 bytes kept it busy for minutes. Read are tensors
of plain numbers; quantized ones are refused by name.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of metadata, by its type's number."""
_NUMBERS = {0: "f4", 1: "f2", 24: "i1", 25: "i2", 26: "i4", 27: "i8", 28: "f8"}
"""NumPy's dtypes of tensors that hold plain numbers, by GGML's number."""
_DIMENSIONS = 4  # GGML has no more
_DEPTH = 4  # arrays of arrays


def tensors(path: Path, prefix: str) -> dict[str, NDArray[np.generic]]:
    """Return the tensors whose names begin with a prefix.

    Raises:
        ValueError: the file is damaged, or such a tensor is quantized.
        OSError: it cannot be read.
    """
    file = _Reader(np.memmap(path, mode="r").data)
    if file.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := file.version()) not in _VERSIONS:
        raise ValueError(f"version {version} of GGUF is not read")
    count, keys = file.numbers("QQ")
    alignment = 32
    for _ in range(keys):
        name, (kind,) = file.text(), file.numbers("I")
        if name == "general.alignment" and kind == _UINT32:
            (alignment,) = file.numbers("I")
        else:
            file.skip(kind)
    if alignment == 0 or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment} bytes")
    listed = [_listed(file) for _ in range(count)]
    if len({name for name, *_ in listed}) < len(listed):
        raise ValueError("two tensors have one name")
    start = -(-file.place // alignment) * alignment
    return {
        name: file.array(name, start + offset, kind, shape)
        for name, shape, kind, offset in listed
        if name.startswith(prefix)
    }


def _listed(file: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Return a tensor's name, shape, kind and place behind the header."""
    name, (dimensions,) = file.text(), file.numbers("I")
    if dimensions > _DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = file.numbers("Q" * dimensions)
    kind, offset = file.numbers("IQ")
    return name, shape[::-1], kind, offset


class _Reader:
    """A file's bytes, and the place up to which they have been read.

    Every step takes at least four bytes or fails, so that no stated count takes longer than the file is long.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 0
        self.order = "<"

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        start = self.step(size)
        return bytes(self.data[start : self.place])

    def step(self, size: int) -> int:
        """Go over bytes; return where they begin."""
        start, end = self.place, self.place + size
        if end > len(self.data):
            raise ValueError("it ends too early, or states lengths beyond its end")
        self.place = end
        return start

    def numbers(self, kinds: str) -> tuple[int, ...]:
        """Return the next numbers, of these kinds of `struct`."""
        form = self.order + kinds
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def version(self) -> int:
        """Return the format's version; the order of bytes is found by it."""
        (version,) = self.numbers("I")
        if version & 0xFFFF == 0:  # written for machines of the other order
            self.order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        return version

    def text(self) -> str:
        """Return the next text."""
        (size,) = self.numbers("Q")
        return self.take(size).decode("utf-8")

    def skip(self, kind: int, depth: int = 0) -> None:
        """Go over a value of metadata."""
        if kind in _SIZES:
            self.step(_SIZES[kind])
        elif kind == _STRING:
            self.step(self.numbers("Q")[0])
        elif kind == _ARRAY and depth < _DEPTH:
            inner, count = self.numbers("IQ")
            if inner in _SIZES:
                self.step(_SIZES[inner] * count)
                return
            for _ in range(count):
                self.skip(inner, depth + 1)
        else:
            raise ValueError(f"metadata of the unknown type {kind}")

    def array(self, name: str, start: int, kind: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Return a tensor's numbers."""
        if kind not in _NUMBERS:
            raise ValueError(f"the tensor {name[:60]} is quantized (GGML type {kind}); save it as float32")
        dtype, count = np.dtype(self.order + _NUMBERS[kind]), math.prod(shape)
        if start + count * dtype.itemsize > len(self.data):
            raise ValueError(f"the tensor {name[:60]} ends behind the file's end")
        found = np.frombuffer(self.data, dtype, count, start).reshape(shape)
        return found.astype(dtype.newbyteorder("="))
