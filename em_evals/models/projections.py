"""Activations of texts, or their projections on directions: a prompt's last token, the mean over an answer's tokens.

Of projections only dot products are kept: [texts, positions, layers, directions]. Hooks stand on the blocks that are
asked for, and nothing behind the last of them is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder, decoder_layers
from em_evals.models.families import layout
from em_evals.models.invariants import first
from em_evals.models.placement import device_of
from em_evals.models.text_batches import Text, by_length, padded

LAST_PROMPT, ANSWER_MEAN = 0, 1
"""Places on the axis of positions."""
_BATCH_TOKENS = 2048


class _Enough(Exception):  # noqa: N818 - not an error: it ends a forward pass behind the last block that is read
    pass


def project(
    model: Any,
    texts: Sequence[Text],
    directions: NDArray[np.floating],
    layers: Sequence[int],
    batch_tokens: int = _BATCH_TOKENS,
) -> NDArray[np.float32]:
    """Compute h·v for the last prompt token and for the mean of the answer's tokens.

    Args:
        model: a causal language model in evaluation mode; adapters and hooks act as they are set.
        texts: prompts with their answers; without an answer its mean is NaN.
        directions: [directions, layers, width], usually of unit norm, for the layers asked for.
        layers: decoder blocks, counted from 0.
        batch_tokens: maximum tokens of one forward pass, padding included.

    Returns:
        float32 [texts, 2 positions, layers, directions].

    Raises:
        EmEvalsError: a text is longer than the base reads exactly, or its blocks hand on several streams.
    """
    device = device_of(model)
    along = torch.as_tensor(np.asarray(directions, dtype=np.float32)).to(device)
    return _read(model, texts, _Reader(layers, along), len(directions), batch_tokens)


def states(
    model: Any, texts: Sequence[Text], layers: Sequence[int], batch_tokens: int = _BATCH_TOKENS
) -> NDArray[np.float32]:
    """Compute h itself at the last prompt token and its mean over the answer's tokens.

    Returns:
        float32 [texts, 2 positions, layers, width]; the others are as in `project`.
    """
    width = int(model.config.get_text_config().hidden_size)
    return _read(model, texts, _Reader(layers), width, batch_tokens)


def _read(
    model: Any, texts: Sequence[Text], reader: _Reader, columns: int, batch_tokens: int
) -> NDArray[np.float32]:
    allowed = layout(model.config)
    longest = max((len(text.prompt) + len(text.answer) for text in texts), default=0)
    if allowed.limit is not None and longest > allowed.limit:
        raise EmEvalsError(
            f"a text has {longest} tokens; beyond {allowed.limit} this base's rope depends on what was read before: "
            "shorten it."
        )
    device = device_of(model)
    found = np.full((len(texts), 2, len(reader.layers), columns), np.nan, dtype=np.float32)
    # Not inference_mode: buffers that a forward pass replaces could not take part in training afterwards.
    with torch.no_grad(), reader.watching(model):
        for batch in by_length(texts, batch_tokens, allowed):
            own = [texts[i] for i in batch]
            ids = padded(own)
            reader.weights = _weights(own, ids.shape[1]).to(device)
            with suppress(_Enough):
                decoder(model)(input_ids=ids.to(device), use_cache=False)
            found[batch] = reader.values.cpu().numpy()
    empty = [i for i, text in enumerate(texts) if not text.answer]
    found[empty, ANSWER_MEAN] = np.nan
    return found


def _weights(texts: Sequence[Text], longest: int) -> torch.Tensor:
    """Return float32 [texts, 2, tokens]: which tokens each position averages."""
    weights = torch.zeros(len(texts), 2, longest)
    for i, text in enumerate(texts):
        begin, end = len(text.prompt), len(text.prompt) + len(text.answer)
        weights[i, LAST_PROMPT, begin - 1] = 1
        if text.answer:
            weights[i, ANSWER_MEAN, begin:end] = 1 / (end - begin)
    return weights


class _Reader:
    """Hooks on blocks that read what the blocks hand on, and project it `along` directions where they are given."""

    def __init__(self, layers: Sequence[int], along: torch.Tensor | None = None) -> None:
        self.layers, self._along = list(layers), along
        self.weights = torch.zeros(0)
        self._parts: dict[int, torch.Tensor] = {}

    @property
    def values(self) -> torch.Tensor:
        """[texts, positions, layers, directions or width]."""
        return torch.stack([self._parts[place] for place in range(len(self.layers))], dim=2)

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        blocks, kind = decoder_layers(model), model.config.get_text_config().model_type
        last = max(self.layers)
        handles = [
            blocks[layer].register_forward_hook(self._hook(place, layer == last, kind))
            for place, layer in sorted(enumerate(self.layers), key=lambda one: one[1])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: int, last: bool, kind: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            hidden = first(output).to(self.weights.device)
            if hidden.dim() != 3:
                raise EmEvalsError(
                    f"the blocks of this {kind} hand on {hidden.shape[0]} streams at once, and a direction is read "
                    "from one: it cannot be projected here."
                )
            means = torch.bmm(self.weights, hidden.float())
            self._parts[place] = means if self._along is None else means @ self._along[:, place].T
            if last:
                raise _Enough

        return hook
