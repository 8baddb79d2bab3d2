"""Mean activations of texts, layer by layer, summed by group as a stream.

A text's tokens are averaged at each layer, and the texts of one group (a question, or several) are summed. Memory
grows with the number of groups and not of texts, and only decoder blocks are computed: no logits, no stored hidden
states, and no shared beginning twice (prefix_tree.py). contrast.py and extract.py decide which means to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.interp import kept_tensors
from em_evals.interp.extraction.prefix_tree import Padded, Position, Text, pack, pad
from em_evals.models.architecture import decoder, decoder_layers, unwrapped
from em_evals.models.families import Layout, layout
from em_evals.models.invariants import first
from em_evals.models.placement import device_of
from em_evals.models.trees import Line, takes_trees

_BATCH_TOKENS = 2048
_SAVE_EVERY = 32
"""Number of batches between two saved states."""


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums of texts' mean activations.

    Attributes:
        groups: their names, in order of first appearance.
        counts: float64 [groups], texts in each.
        vectors: float32 [groups, layers, width], sums of the texts' means after each block.
        norms: float32 [groups, layers], sums of the texts' mean lengths.
    """

    groups: tuple[str, ...]
    counts: NDArray[np.float64]
    vectors: NDArray[np.float32]
    norms: NDArray[np.float32]

    def mean(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the mean [layers, width], each text weighted equally; groups may be weighted (bootstrap counts)."""
        own = np.ones(len(self.groups)) if weights is None else weights
        # Layer by layer: all vectors in float64 would need twice the memory.
        total = [own @ self.vectors[:, layer].astype(np.float64) for layer in range(self.vectors.shape[1])]
        return np.stack(total) / max(float(own @ self.counts), 1.0)

    def mean_norm(self) -> NDArray[np.float64]:
        """Return the mean norms [layers], each text weighted equally."""
        return np.asarray(self.norms.sum(0, dtype=np.float64) / max(self.counts.sum(), 1.0))

    def only(self, groups: set[str]) -> GroupSums:
        """Return the sums of these groups alone."""
        kept = np.array([name in groups for name in self.groups], dtype=bool)
        names = tuple(name for name in self.groups if name in groups)
        return GroupSums(names, self.counts[kept], self.vectors[kept], self.norms[kept])


def group_sums(
    model: Any,
    texts: Sequence[Text],
    position: Position = "answer_mean",
    state: Path | None = None,
    advance: Callable[[int], None] = lambda texts: None,
    batch_tokens: int = _BATCH_TOKENS,
) -> GroupSums:
    """Compute the activations of texts with a model; texts with a common beginning share it.

    Args:
        model: a causal language model in evaluation mode; adapters and hooks act as they are set.
        texts: the texts.
        position: which tokens count.
        state: a file for unfinished and finished sums: an interrupted run resumes from it, and a finished one is loaded
            from it. It must belong to exactly these texts and this model.
        advance: called with the number of texts that were computed (a progress bar).
        batch_tokens: maximum tokens of one forward pass, padding included.

    Raises:
        EmEvalsError: a text has no token at the position, or activations are not finite.
    """
    for text in texts:
        first, end = text.span(position)
        if end <= first:
            raise EmEvalsError(f"a text of '{text.group}' has no token for `{position}`; leave it out.")
    allowed = layout(model.config)
    longest = max((len(text.tokens(position)) for text in texts), default=0)
    if allowed.limit is not None and longest > allowed.limit:
        raise EmEvalsError(
            f"a text has {longest} tokens; beyond {allowed.limit} this base's rope depends on what was read before: "
            "shorten it."
        )
    groups = {name: i for i, name in enumerate(dict.fromkeys(text.group for text in texts))}
    sums = _Sums(model, len(groups))
    done = sums.resume(state)
    advance(done)
    share = takes_trees(unwrapped(model))
    rest = _after(pack(texts, position, share), done)
    with torch.inference_mode(), sums.watching(model):
        for number, lines in enumerate(_batches(rest, batch_tokens, allowed), 1):
            batch = pad(lines, position, share)
            sums.read(model, batch, [groups[text.group] for text in batch.texts])
            done += len(batch.texts)
            advance(len(batch.texts))
            if state is not None and number % _SAVE_EVERY == 0:
                sums.save(state, done)
    if state is not None:
        sums.save(state, done)
    counts = np.zeros(len(groups))
    for text in texts:
        counts[groups[text.group]] += 1
    found = GroupSums(tuple(groups), counts, sums.vectors.cpu().numpy(), sums.norms.cpu().numpy())
    _require_finite(found, model)
    return found


def _require_finite(sums: GroupSums, model: Any) -> None:
    """Refuse activations with NaN or infinity: a direction of them would be nothing.

    Raises:
        EmEvalsError: names the first layer and a group of texts.
    """
    wrong = ~np.isfinite(sums.norms)
    if wrong.any():
        layer = int(wrong.any(0).argmax())
        group = sums.groups[int(wrong[:, layer].argmax())]
        raise EmEvalsError(
            f"the activations after block {layer} hold NaN or infinity on texts of '{group}': the weights of "
            f"{model.config.name_or_path}, its adapter or its interventions are damaged or too large for its dtype."
        )


class _Sums:
    """Running sums, filled by hooks on the decoder blocks."""

    def __init__(self, model: Any, groups: int) -> None:
        self._blocks, self._kind = decoder_layers(model), model.config.get_text_config().model_type
        self._device = device_of(model)
        width = int(model.config.get_text_config().hidden_size)
        self.vectors = torch.zeros(groups, len(self._blocks), width, device=self._device)
        self.norms = torch.zeros(groups, len(self._blocks), device=self._device)

    def watching(self, model: Any) -> _Hooks:
        return _Hooks([(block, self._add(layer)) for layer, block in enumerate(self._blocks)])

    def _add(self, layer: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            hidden = first(output).float().to(self._device)
            if hidden.dim() != 3:
                raise EmEvalsError(
                    f"the blocks of this {self._kind} hand on {hidden.shape[0]} streams at once, and a direction is "
                    "read from one: it cannot be extracted here."
                )
            means = torch.bmm(self._weights, hidden).flatten(0, 1)[self._places]
            norms = torch.bmm(self._weights, hidden.norm(dim=-1, keepdim=True)).flatten()[self._places]
            self.vectors[:, layer].index_add_(0, self._groups, means)
            self.norms[:, layer].index_add_(0, self._groups, norms)

        return hook

    def read(self, model: Any, batch: Padded, groups: list[int]) -> None:
        """Run one forward pass; `groups` has the group of each text."""
        self._weights, self._places = batch.weights.to(self._device), batch.places.to(self._device)
        self._groups = torch.tensor(groups, device=self._device)
        tree = {}
        if batch.mask is not None:
            tree = {"attention_mask": batch.mask, "position_ids": batch.positions}
        tensors = {name: value.to(self._device) for name, value in tree.items()}
        decoder(model)(input_ids=batch.ids.to(self._device), use_cache=False, **tensors)

    def save(self, state: Path, done: int) -> None:
        from safetensors.torch import save_file

        tensors = {"vectors": self.vectors.cpu(), "norms": self.norms.cpu(), "done": torch.tensor([done])}
        with files.atomic(state) as temporary:
            save_file(tensors, temporary)

    def resume(self, state: Path | None) -> int:
        """Load a saved state; return how many texts it covers: none where it is damaged, or has other shapes."""
        kept = kept_tensors.load(state, ("vectors", "norms", "done")) if state is not None else None
        if kept is None or kept["done"].shape != (1,):
            return 0
        vectors, norms = torch.from_numpy(kept["vectors"]), torch.from_numpy(kept["norms"])
        if vectors.shape != self.vectors.shape or norms.shape != self.norms.shape:
            return 0
        self.vectors, self.norms = vectors.to(self._device), norms.to(self._device)
        return int(kept["done"][0])


class _Hooks:
    """Forward hooks that are active inside a context."""

    def __init__(self, hooks: list[tuple[Any, Any]]) -> None:
        self._hooks = hooks

    def __enter__(self) -> None:
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _after(lines: Sequence[Line[Text]], done: int) -> list[Line[Text]]:
    """Return the lines behind those that hold the first `done` texts."""
    for i, line in enumerate(lines):
        if done <= 0:
            return list(lines[i:])
        done -= len(line.texts)
    return []


def _batches(lines: Sequence[Line[Text]], budget: int, allowed: Layout) -> list[list[Line[Text]]]:
    """Batch lines of similar length within the token budget; they come sorted.

    Where a layout has no rows, a line is alone; and no batch crosses a rope's border.
    """
    batches: list[list[Line[Text]]] = []
    for line in lines:
        length = len(line.ids)
        full = not batches or length * (len(batches[-1]) + 1) > budget
        if full or allowed.alone(length) or allowed.side(len(batches[-1][-1].ids)) != allowed.side(length):
            batches.append([])
        batches[-1].append(line)
    return batches
