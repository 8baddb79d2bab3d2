"""Mean activations at the first positions of texts, by block and position, as a running sum.

Memory does not grow with the number of texts: sums are kept for a few folds of the texts, which say how reliable a
mean is and what any two random sets of texts differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder, decoder_layers
from em_evals.models.families import layout
from em_evals.models.invariants import first

FOLDS = 16
_BATCH = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PositionMeans:
    """Sums of activations at the first positions.

    Attributes:
        counts: float64 [folds], texts in each.
        sums: float64 [folds, layers, positions, width], of the residual stream after each block.
        norms: float64 [layers, positions], mean norm.
    """

    counts: Floats
    sums: Floats
    norms: Floats

    def mean(self, folds: slice = slice(None)) -> Floats:
        """Return [layers, positions, width], the mean over the texts of some folds."""
        return np.asarray(self.sums[folds].sum(0) / self.counts[folds].sum())

    def by_fold(self) -> Floats:
        """Return [folds, layers, positions, width], each fold's mean."""
        return np.asarray(self.sums / self.counts[:, None, None, None])


def position_means(model: Any, texts: Sequence[tuple[int, ...]]) -> PositionMeans:
    """Compute the means with a model; adapters and hooks act as they are set.

    Args:
        model: a causal language model in evaluation mode.
        texts: token ids, all of one length: without padding any layout of a batch is exact.

    Raises:
        EmEvalsError: activations are not finite, or the blocks hand on several streams.
    """
    blocks = decoder_layers(model)
    folds, positions = min(FOLDS, len(texts)), len(texts[0])
    width = int(model.config.get_text_config().hidden_size)
    sums = np.zeros((folds, len(blocks), positions, width))
    norms = np.zeros((len(blocks), positions))
    fold = np.array([], dtype=int)

    def keep(layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = first(output)
            if hidden.dim() != 3:
                raise EmEvalsError(
                    "the blocks of this base hand on several streams at once; no one can be read."
                )
            values = hidden.float().cpu().double().numpy()
            np.add.at(sums[:, layer], fold, values)
            norms[layer] += np.linalg.norm(values, axis=-1).sum(0)

        return hook

    size = 1 if layout(model.config).alone(positions) else _BATCH
    device = next(model.parameters()).device
    with ExitStack() as stack, torch.inference_mode():
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(keep(layer)).remove)
        for begin in range(0, len(texts), size):
            some = texts[begin : begin + size]
            fold = np.arange(begin, begin + len(some)) % folds
            decoder(model)(input_ids=torch.tensor(some, device=device), use_cache=False)
    if not np.isfinite(norms).all():
        layer = int((~np.isfinite(norms)).any(1).argmax())
        raise EmEvalsError(
            f"the activations after block {layer} hold NaN or infinity: the weights of "
            f"{model.config.name_or_path}, its adapter or its interventions are damaged or too large for its dtype."
        )
    counts = np.bincount(np.arange(len(texts)) % folds).astype(float)
    return PositionMeans(counts, sums, norms / len(texts))
