"""Which rows of a batch may share a forward pass: those that get the same numbers as when each is alone.

Rotary embeddings with longrope or dynamic NTK choose their frequencies by the largest position in the batch, so a
short row beside a long one is rotated otherwise. Sparse attention breaks ties among equal scores by the row's padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def groups(config: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Split a batch's rows.

    Args:
        config: of the text model.
        lengths: tokens of each row.

    Returns:
        Indices of rows, in ascending order within each group; one group where nothing stands against it.
    """
    if getattr(config, "index_topk", None):
        return [[row] for row in range(len(lengths))]
    found: dict[tuple[int, ...], list[int]] = {}
    for row, length in enumerate(lengths):
        found.setdefault(tuple(side(length) for side in _sides(config)), []).append(row)
    return list(found.values())


def forget(model: Any) -> None:
    """Set dynamic NTK back to the frequencies of a short row: it keeps those of the longest one that it has seen."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        layers = kinds.items() if isinstance(kinds, dict) else [(None, kinds)]
        for layer, kind in layers:
            if "dynamic" not in str(kind):
                continue
            prefix = f"{layer}_" if layer else ""
            original = getattr(module, f"{prefix}original_inv_freq")
            current = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def depends_on_neighbours(config: Any) -> bool:
    """Whether rows of some lengths cannot share a pass."""
    return bool(getattr(config, "index_topk", None)) or any(True for _ in _sides(config))


def remembers(config: Any) -> bool:
    """Whether a pass depends on the lengths of earlier ones (`forget`)."""
    return any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(config))


def _sides(config: Any) -> Iterator[Any]:
    """Functions of a row's length; rows for which all are equal are rotated alike."""
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", "default"))
        limit = int(config.max_position_embeddings)
        if kind == "longrope":
            limit = int(rope.get("original_max_position_embeddings") or limit)
            yield lambda length, limit=limit: int(length > limit)
        elif "dynamic" in kind:
            yield lambda length, limit=limit: max(length, limit)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary embeddings' settings; some models have one for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    inner = [one for one in ropes.values() if isinstance(one, dict)]
    return inner or [ropes]


def split(
    config: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The batch's groups: the indices of their rows, and ids, lengths and labels without padding that no row needs."""
    for rows in groups(config, lengths.tolist()):
        if len(rows) == len(lengths):
            yield rows, ids, lengths, labelled
            continue
        taken = torch.tensor(rows, device=ids.device)
        longest = int(lengths[taken].max())
        yield rows, ids[taken, :longest], lengths[taken], labelled[taken, : longest - 1]
