"""The logit lens: what a vector of the residual stream says through the base's final norm and output matrix.

nostalgebraist 2020; used on differences by arXiv 2510.13900. Which module is the final norm is found on a forward pass
and not by its name: it turns the last block's output into the output matrix's input.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder, decoder_layers, unwrapped
from em_evals.models.invariants import first, random_ids, same

_VECTORS, _ROWS = 128, 16384
"""Vectors, and rows of the output matrix, that are computed at once."""


class Unembedding:
    """The final norm and output matrix of a base, computed in float32 whatever the base's dtype.

    Args:
        model: a causal language model of transformers; adapters and hooks must be off.
        tokens: number of the tokenizer's tokens; further rows of the matrix are padding.

    Raises:
        EmEvalsError: something else than a norm lies between the last block and the output matrix.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        plain = unwrapped(model)
        head = plain.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            raise EmEvalsError(
                f"{plain.config.model_type} has no plain output matrix: no logit lens can be read."
            )
        norm = _final_norm(plain, head)
        self._norm = _without_hooks(norm).float() if norm is not None else None
        self._weight = head.weight.detach()[:tokens]
        self._bias = head.bias.detach()[:tokens].float() if head.bias is not None else None

    @torch.inference_mode()
    def logits(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return float32 [vectors, tokens] for [vectors, width]. A soft cap or scale of the logits is left out."""
        given = torch.as_tensor(np.asarray(vectors, dtype=np.float32)).to(self._weight.device)
        if self._norm is not None:
            given = self._norm(given[:, None])[:, 0]
        parts = [given @ rows.float().T for rows in torch.split(self._weight, _ROWS)]
        found = torch.cat(parts, dim=1)
        if self._bias is not None:
            found += self._bias
        return np.asarray(found.cpu().numpy())

    def standardized(self, vectors: NDArray[np.floating]) -> Iterator[NDArray[np.float32]]:
        """Yield each vector's logits [tokens] minus their mean, over their standard deviation."""
        for begin in range(0, len(vectors), _VECTORS):
            found = self.logits(vectors[begin : begin + _VECTORS])
            found -= found.mean(1, keepdims=True)
            deviation = found.std(1, keepdims=True)
            yield from found / np.where(deviation > 0, deviation, 1)


def _without_hooks(module: Any) -> Any:
    """Return a copy of a module. Hooks hold on to the engine's adapters, and a copy of those is a copy of the base."""
    bare = copy.copy(module)
    bare.__dict__ = dict(module.__dict__)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(bare, name, OrderedDict())
    return copy.deepcopy(bare)


def _final_norm(model: Any, head: Any) -> Any:
    """Return the module between the last block and the output matrix; None where there is none."""
    last, given, passed = [], [], []

    def through(module: Any, arguments: Any, output: Any) -> None:
        if arguments and isinstance(arguments[0], torch.Tensor):
            passed.append((module, arguments[0], first(output)))

    with ExitStack() as stack, torch.inference_mode():
        stack.callback(
            decoder_layers(model)[-1].register_forward_hook(lambda _, __, out: last.append(first(out))).remove
        )
        stack.callback(head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0])).remove)
        for child in decoder(model).children():
            if not isinstance(child, torch.nn.ModuleList | torch.nn.Embedding):
                stack.callback(child.register_forward_hook(through).remove)
        model(input_ids=random_ids(model), use_cache=False)
    if same(last[-1], given[-1]):
        return None
    for module, before, after in passed:
        alike = before.shape == last[-1].shape == given[-1].shape
        if alike and same(before, last[-1]) and same(after, given[-1]):
            return module
    raise EmEvalsError(
        f"{model.config.model_type} does more than norm between its last block and its output matrix: no logit lens "
        "can be read."
    )
