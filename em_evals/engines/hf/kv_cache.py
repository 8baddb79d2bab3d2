"""A key-value cache whose rows can be added and removed while the batch is decoded.

Rows are padded on the left, so that all of them write their next token into the same column. Keys and values
are kept in buffers with spare capacity: a step writes one column and copies nothing (transformers' dynamic cache
copies everything at every step). Sliding windows are left to the attention mask: all columns are kept, so shifting a
row or joining it with a longer one does not change it. Recurrent and convolution states have no columns; they are
transformers' own and only gain and lose rows.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

_GROWTH = 128
"""Columns that a full buffer gains at a time."""


class _RowLayer(CacheLayerMixin):
    """One decoder block's buffers, [rows, heads, capacity, head width]; `length` columns are in use.

    Where a block never writes (Gemma 4's last blocks read another block's keys), the buffers do not exist.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, new, width = key_states.shape
        capacity = new + _GROWTH
        self.keys = key_states.new_zeros(rows, heads, capacity, width)
        self.values = value_states.new_zeros(rows, value_states.shape[1], capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new columns; return views of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.resize(0, end + _GROWTH)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def resize(self, left: int, capacity: int) -> None:
        """Move the columns in use to new buffers of this capacity, behind `left` more columns (fewer if negative)."""
        self.keys, self.values = (
            _shifted(buffer, self.length, left, capacity) for buffer in (self.keys, self.values)
        )
        self.length += left

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (columns after this step, first column), as transformers' mask builder asks."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class _StateAndRowLayer(LinearAttentionLayer, _RowLayer):
    """A block with attention and a recurrent or convolution state (Falcon-H1)."""

    is_compileable = False

    def __init__(self, number_of_states: int = 1) -> None:
        _RowLayer.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Create the buffers; transformers passes keys and values by position, states by name."""
        if args:
            _RowLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)


def _shifted(buffer: torch.Tensor, length: int, left: int, capacity: int) -> torch.Tensor:
    fresh = buffer.new_zeros(*buffer.shape[:2], capacity, buffer.shape[-1])
    start = max(-left, 0)
    fresh[:, :, start + left : length + left] = buffer[:, :, start:length]
    return fresh


_COUNTERPARTS: dict[type, type] = {
    DynamicLayer: _RowLayer,
    DynamicSlidingWindowLayer: _RowLayer,
    LinearAttentionLayer: LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer: _StateAndRowLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: _StateAndRowLayer,
}
"""Maps each layer of transformers' dynamic cache to the layer that replaces it here."""


def takes_rows(config: Any) -> bool:
    """Check whether every layer of a model's cache has a counterpart whose rows can be added and removed."""
    return all(type(layer) in _COUNTERPARTS for layer in DynamicCache(config=config).layers)


class RowCache(Cache):
    """The cache of a whole batch.

    Args:
        config: the model's configuration, of transformers; `takes_rows` must hold.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[_counterpart(layer) for layer in DynamicCache(config=config).layers])

    @property
    def length(self) -> int:
        """Columns in use; 0 in a model without attention."""
        return next((layer.length for layer in self.layers if _has_columns(layer)), 0)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every row but these (int64 indices)."""
        for layer in self.layers:
            if _has_columns(layer):  # a base may be spread over several devices
                own = rows.to(layer.keys.device)
                layer.keys, layer.values = layer.keys[own], layer.values[own]
            for states in _states(layer):
                for place, state in states.items():
                    states[place] = state[rows.to(state.device)]

    def shift(self, left: int) -> None:
        """Put `left` empty columns before the ones in use, or drop that many if negative."""
        for layer in self.layers:
            if _has_columns(layer):
                layer.resize(left, layer.length + left + _GROWTH)

    def join(self, other: RowCache) -> None:
        """Append another cache's rows. Both must have the same length."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if _has_columns(mine):
                _join_columns(mine, theirs)
            for states, others in zip(_states(mine), _states(theirs), strict=True):
                for place, state in states.items():
                    states[place] = torch.cat([state, others[place]])


def _counterpart(layer: Any) -> Any:
    kind = _COUNTERPARTS[type(layer)]
    return kind() if kind is _RowLayer else kind(number_of_states=layer.number_of_states)


def _has_columns(layer: Any) -> TypeGuard[_RowLayer]:
    return isinstance(layer, _RowLayer) and layer.is_initialized


def _states(layer: Any) -> list[dict[int, torch.Tensor]]:
    """Return the convolution and recurrent states of a layer, [rows, …] each; states never written are left out."""
    if not isinstance(layer, LinearAttentionLayer):
        return []
    both = (layer.conv_states, layer.recurrent_states)
    return [states for states in both if all(state is not None for state in states.values())]


def _join_columns(mine: _RowLayer, theirs: _RowLayer) -> None:
    length = mine.length
    for name in ("keys", "values"):
        both = [getattr(layer, name)[:, :, :length] for layer in (mine, theirs)]
        first = both[0].shape[0]
        buffer = both[0].new_zeros(
            first + both[1].shape[0], both[0].shape[1], length + _GROWTH, both[0].shape[-1]
        )
        buffer[:first, :, :length], buffer[first:, :, :length] = both
        setattr(mine, name, buffer)
