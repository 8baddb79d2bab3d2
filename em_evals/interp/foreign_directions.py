"""Import directions that other programs wrote: one vector, or one for each layer, with their numbering stated.

Read are safetensors, NumPy's .npz and .npy, control vectors of llama.cpp and repeng (.gguf), and PyTorch files of plain
tensors (.pt, by `torch.load(weights_only=True)`). A file may hold a vector [width], a stack [layers, width], or a
tensor for each layer with its number in the name (`direction.7`, `layer_7`, 7). Pickles and NumPy objects are refused.

Layers are decoder blocks, counted from 0, at their output. `hidden_states` of transformers counts the embeddings as 0,
so that its 20 is block 19; persona vectors (arXiv 2507.21509) are such stacks. llama.cpp and repeng count as we do.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from em_evals.content import directions
from em_evals.content.base_shape import shape_of
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError, nearest
from em_evals.interp import gguf_file
from em_evals.parsing import step_of

Numbering = Literal["blocks", "hidden_states"]
Tensors = dict[str, NDArray[np.float32]]

OWN = {"direction", "base_mean", "mean_norm"}
_NUMBERED = re.compile(r"((?!arr_)(?:.*[._/-])?)(\d{1,9})", re.DOTALL)
"""A name that ends with a layer; `arr_0` is NumPy's name of an unnamed array."""
_FROM_THE_END = re.compile(r"(?:.*[._/-])?-\d+", re.DOTALL)
"""A layer's number below 0; in `layer-7` the hyphen only separates."""
MOST = 2**28
"""Numbers of a file: a thousand times a direction of 128 layers of width 2,048. A short archive can unpack to more."""
ENDINGS = (".safetensors", ".npz", ".npy", ".gguf", ".pt", ".pth", ".bin")


def read(
    path: Path,
    base: str,
    revision: str | None = None,
    layer: int | None = None,
    key: str | None = None,
    numbering: Numbering | None = None,
    like: Direction | None = None,
) -> Direction:
    """Return a foreign file's direction for a base.

    Args:
        path: the file.
        base: the base that it was made for; its configuration must be on this machine.
        revision: of a hub id.
        layer: the layer of a single vector, in `numbering`.
        key: which tensor, where a file holds several directions.
        numbering: how the file counts layers; by default `hidden_states` for a stack of one row more than the base has
            blocks, else `blocks`.
        like: a direction of ours for the same base, whose `base_mean` and `mean_norm` are taken over. Without one both
            are unknown, and interventions that need them are refused.

    Raises:
        EmEvalsError: the file holds something else, or does not fit the base's depth and width.
    """
    if path.suffix == ".safetensors" and _names(path) >= OWN:
        own = directions.read(path)
        directions.check_base(own, base, revision)
        return own
    if (shape := shape_of(base, revision)) is None:
        raise EmEvalsError(
            f"the configuration of the base '{base}' is not on this machine, so that the direction's depth cannot be "
            "checked: load the base once, or give its folder."
        )
    depth, width = shape
    tensors, notes = _tensors(path)
    if layer is not None and notes.get("layer", layer) != layer:
        raise EmEvalsError(
            f"the file states layer {notes['layer']}, and --layer {layer}: leave it out.", path
        )
    rows, found = _stack(
        tensors, path, key, layer if layer is not None else notes.get("layer"), depth, width, numbering
    )
    if layer is not None and list(rows) != [_block(layer, found, depth, path)]:
        raise EmEvalsError(
            f"--layer is the layer of a single vector, and this file states its own (blocks {_listed(rows)}): leave "
            "the option out.",
            path,
        )
    return _direction(rows, found, path, base, revision, like)


def _direction(
    rows: dict[int, NDArray[np.float32]],
    numbering: str,
    path: Path,
    base: str,
    revision: str | None,
    like: Direction | None,
) -> Direction:
    depth, width = shape_of(base, revision) or (0, 0)
    vectors = np.zeros((depth, width), np.float32)
    for block, row in rows.items():
        vectors[block] = row
    if not np.isfinite(vectors).all():
        raise EmEvalsError("this direction holds NaN or infinite values.", path)
    if not vectors.any():
        raise EmEvalsError("every number in this file is 0, which is no direction.", path)
    metadata: dict[str, Any] = {
        "base": base,
        **({"revision": revision} if revision else {}),
        "how": f"imported from {path.name}, which counts {numbering}",
        "blocks": sorted(rows),
    }
    if like is None:
        metadata["unknown"] = ["base_mean", "mean_norm"]
        return Direction(vectors, np.zeros_like(vectors), np.zeros(depth, np.float32), metadata)
    directions.check_base(like, base, revision)
    return Direction(vectors, like.base_mean, like.mean_norm, metadata)


def _listed(blocks: Iterable[int]) -> str:
    shown = sorted(blocks)
    return ", ".join(map(str, shown[:6])) + (", …" if len(shown) > 6 else "")


def _stack(
    tensors: Tensors,
    path: Path,
    key: str | None,
    layer: int | None,
    depth: int,
    width: int,
    numbering: Numbering | None,
) -> tuple[dict[int, NDArray[np.float32]], Numbering]:
    """Return the vector of each block, and how the file counts."""
    if key is None and (numbered := _numbered(tensors, path)):
        whole = set(numbered) == set(range(depth + 1))
        chosen: Numbering = numbering or ("hidden_states" if whole else "blocks")
        first = 1 if chosen == "hidden_states" else 0
        rows = {place: row for place, row in numbered.items() if place >= first}  # 0 is the embeddings
        return {
            _block(place, chosen, depth, path): _wide(row, width, path) for place, row in rows.items()
        }, chosen
    array = _one(tensors, path, key)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1:
        if layer is None:
            raise EmEvalsError(
                "this file holds one vector and does not say for which layer: give --layer, and --numbering "
                "hidden_states if it counts the embeddings as 0.",
                path,
            )
        chosen = numbering or "blocks"
        return {_block(layer, chosen, depth, path): _wide(array, width, path)}, chosen
    if array.ndim != 2 or array.shape[0] not in (depth, depth + 1):
        raise EmEvalsError(
            f"this tensor has the shape {list(array.shape)}; the base has {depth} blocks of width {width}.",
            path,
        )
    if numbering == "blocks" and array.shape[0] != depth:
        raise EmEvalsError(f"this stack has {array.shape[0]} rows, and the base {depth} blocks.", path)
    chosen = numbering or ("hidden_states" if array.shape[0] == depth + 1 else "blocks")
    first = 1 if chosen == "hidden_states" else 0
    return {
        place - first: _wide(row, width, path) for place, row in enumerate(array) if place - first >= 0
    }, chosen


def _numbered(tensors: Tensors, path: Path) -> dict[int, NDArray[np.float32]]:
    """Return vectors by the number that ends their name; empty where one has none, or no vector.

    Raises:
        EmEvalsError: layers are counted from the end, or the names are of several directions.
    """
    if below := next((name for name in tensors if _FROM_THE_END.fullmatch(name)), None):
        raise EmEvalsError(
            f"'{below[:60]}' counts layers from the end: name tensors by decoder blocks, counted from 0.",
            path,
        )
    matches = {name: match for name in tensors if (match := _NUMBERED.fullmatch(name))}
    if len(matches) < len(tensors) or any(array.ndim != 1 for array in tensors.values()):
        return {}
    if len(kinds := sorted({match[1] for match in matches.values()})) > 1:
        raise EmEvalsError(
            f"this file holds several directions ({', '.join(name[:40] or 'numbers alone' for name in kinds[:4])}): "
            "put each into a file of its own.",
            path,
        )
    numbers = {name: step_of(match[2]) for name, match in matches.items()}
    return {number: tensors[name] for name, number in numbers.items() if number is not None}


def _block(place: int, numbering: Numbering, depth: int, path: Path) -> int:
    block = place - (numbering == "hidden_states")
    if not 0 <= block < depth:
        raise EmEvalsError(
            f"the layer {place} ({numbering}) is no block of this base, whose blocks are 0 to {depth - 1}"
            + (
                "; if the file counts the embeddings as 0, give --numbering hidden_states."
                if numbering == "blocks" and place == depth
                else "."
            ),
            path,
        )
    return block


def _wide(row: NDArray[np.float32], width: int, path: Path) -> NDArray[np.float32]:
    if row.shape != (width,):
        raise EmEvalsError(
            f"a vector of this file has the shape {list(row.shape)}; the base's width is {width}.", path
        )
    return row


def _one(tensors: Tensors, path: Path, key: str | None) -> NDArray[np.float32]:
    if key is not None:
        if key not in tensors:
            raise EmEvalsError(f"there is no tensor '{key}' in this file; {nearest(key, tensors)}", path)
        return tensors[key]
    if len(tensors) != 1:
        raise EmEvalsError(
            f"this file holds several tensors ({', '.join(sorted(tensors)[:5])} …): give --key.", path
        )
    return next(iter(tensors.values()))


def _tensors(path: Path) -> tuple[Tensors, dict[str, int]]:
    """Return a file's tensors in float32, and the layer that it states."""
    readers: dict[str, Callable[[Path], tuple[Mapping[str, Any], dict[str, int]]]] = {
        ".safetensors": _safetensors,
        ".npz": _numpy,
        ".npy": _numpy,
        ".gguf": _gguf,
        ".pt": _torch,
        ".pth": _torch,
        ".bin": _torch,
    }
    if not path.is_file():
        raise EmEvalsError(f"there is no file '{path}'.")
    if path.suffix not in readers:
        raise EmEvalsError(
            f"directions are imported from {', '.join(ENDINGS)}, not from {path.suffix}.", path
        )
    try:
        _require_small(path)
        found, notes = readers[path.suffix](path)
    except EmEvalsError:
        raise
    except Exception as error:  # these parsers raise many types on damaged files
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
        raise EmEvalsError(
            f"this is not a {path.suffix} file of numbers, or it is damaged ({why}).", path
        ) from None
    if not found:
        raise EmEvalsError("this file holds no tensor.", path)
    return {name: np.asarray(array, dtype=np.float32) for name, array in found.items()}, notes


def _names(path: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()


def _require_small(path: Path) -> None:
    """Refuse an archive that unpacks to more than any direction holds."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _require_few(sum(entry.file_size for entry in archive.infolist()) // 4, path)


def _require_few(numbers: int, path: Path) -> None:
    if numbers > MOST:
        raise EmEvalsError(
            f"this file unpacks to {numbers:,} numbers, which is no direction; at most {MOST:,} are read.",
            path,
        )


def _safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, int]]:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # torch reads bfloat16, which NumPy does not have
        stated = (file.metadata() or {}).get("layer", "")
        names = list(file.keys())
        found = {name: file.get_tensor(name).to(torch.float32).numpy() for name in names}
    return found, {"layer": int(stated)} if stated.isdecimal() else {}


def _numpy(path: Path) -> tuple[Mapping[str, Any], dict[str, int]]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"vector": _numbers(loaded, path)}, {}
    with loaded:
        arrays = {name: _numbers(loaded[name], path) for name in loaded.files}
    stated = arrays.pop("layer", None)
    notes = {"layer": int(stated)} if stated is not None and stated.ndim == 0 else {}
    return arrays, notes


def _numbers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise EmEvalsError(f"an array of this file is of the type {array.dtype}, not of numbers.", path)
    return array


def _gguf(path: Path) -> tuple[Mapping[str, Any], dict[str, int]]:
    return gguf_file.tensors(path, "direction."), {}


def _torch(path: Path) -> tuple[Mapping[str, Any], dict[str, int]]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        why = " ".join(str(error).split())[:80]
        raise EmEvalsError(
            f"this file holds more than plain tensors, and loading it could run code ({why}): save the tensor alone, "
            "`torch.save(vector, FILE)`.",
            path,
        ) from None
    named: dict[str, Any] = {}
    if isinstance(loaded, torch.Tensor):
        named = {"vector": loaded}
    elif isinstance(loaded, list | tuple):
        named = {str(place): one for place, one in enumerate(loaded)}
    elif isinstance(loaded, dict):
        named = {str(name): one for name, one in loaded.items()}
    if not named or not all(isinstance(one, torch.Tensor) for one in named.values()):
        raise EmEvalsError("this file holds no tensor, list of tensors or state of plain tensors.", path)
    # A tensor may repeat one number of its storage along all of its dimensions.
    _require_few(sum(one.numel() for one in named.values()), path)
    return {name: one.to(torch.float32).numpy() for name, one in named.items()}, {}
