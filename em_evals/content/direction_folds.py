"""A direction on folds of its questions: evidence for its reliability, and material of its null distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 16

_NAMES = {"vectors": "folds", "means": "fold_means", "weights": "fold_weights"}
"""Field -> its tensor in the file."""
NAMES = tuple(_NAMES.values())
"""The tensors of a file."""


@dataclass(frozen=True, eq=False)
class Folds:
    """The direction within each fold of the questions.

    Attributes:
        vectors: float32 [folds, layers, width], mean of the positive minus mean of the negative texts of a fold.
        means: float32 [folds, layers, width], the base's mean activation on a fold's texts.
        weights: float32 [folds], a fold's texts (twice the harmonic mean of both sides'); 0 where a side has none.
    """

    vectors: NDArray[np.float32]
    means: NDArray[np.float32]
    weights: NDArray[np.float32]

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of the file."""
        import numpy as np

        return {name: np.ascontiguousarray(getattr(self, field)) for field, name in _NAMES.items()}

    @classmethod
    def read(cls, found: Mapping[str, Any], shape: tuple[int, ...], path: Path) -> Folds | None:
        """Return the folds among a file's tensors; None where there are none.

        Raises:
            EmEvalsError: some are missing, not finite, or of another shape than the direction.
        """
        if not any(name in found for name in NAMES):
            return None
        import numpy as np

        given = {field: found.get(name) for field, name in _NAMES.items()}
        wanted = {"vectors": (FOLDS, *shape), "means": (FOLDS, *shape), "weights": (FOLDS,)}
        for field, value in given.items():
            if value is None or value.shape != wanted[field] or not np.isfinite(value).all():
                raise EmEvalsError(
                    f"`{_NAMES[field]}` of this direction file is missing or damaged; extract it again.", path
                )
        return cls(**{field: np.asarray(value, dtype=np.float32) for field, value in given.items()})

    def without(self, along: NDArray[Any]) -> Folds:
        """Return the folds with a unit direction ([layers, width]) projected out of their vectors and means."""
        vectors, means = (
            (one - (one * along).sum(-1, keepdims=True) * along).astype("float32")
            for one in (self.vectors, self.means)
        )
        return Folds(vectors, means, self.weights)


def fold_of(question: str) -> int:
    """Return a question's fold, by the digest of its id: the same in every direction that knows the question."""
    return int(files.digest(question), 16) % FOLDS
