"""Export directions for other programs: llama.cpp control vectors, and one layer as a plain safetensors file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from em_evals import files
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError


def to_gguf(direction: Direction, path: Path, architecture: str = "llama") -> None:
    """Write a control vector for llama.cpp's `--control-vector`, which adds `direction.L` after block L.

    llama.cpp adds nothing after block 0, so block 0's vector is omitted. Set scales and layer ranges with llama.cpp's
    own options (`--control-vector-scaled`, `--control-vector-layer-range`).

    Args:
        direction: its raw vectors are written, without normalization.
        path: the .gguf file.
        architecture: a hint that llama.cpp displays (`llama`, `qwen2`, …).
    """
    from gguf import GGUFWriter

    with files.atomic(path) as temporary:
        writer = GGUFWriter(temporary, "controlvector")
        writer.add_string("controlvector.model_hint", architecture)
        writer.add_uint32("controlvector.layer_count", direction.layers - 1)
        for layer in range(1, direction.layers):
            writer.add_tensor(
                f"direction.{layer}", np.ascontiguousarray(direction.vectors[layer], np.float32)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def to_safetensors(direction: Direction, path: Path, layer: int) -> None:
    """Write one layer's vector as a plain safetensors file: tensor `direction`, float32 [width].

    Raises:
        EmEvalsError: the direction has no such layer.
    """
    from safetensors.numpy import save_file

    if not 0 <= layer < direction.layers:
        raise EmEvalsError(
            f"there is no layer {layer} in this direction; its layers are 0 to {direction.layers - 1}."
        )
    metadata = {"layer": str(layer), "base": str(direction.metadata.get("base", ""))}
    with files.atomic(path) as temporary:
        save_file({"direction": np.ascontiguousarray(direction.vectors[layer])}, temporary, metadata)
