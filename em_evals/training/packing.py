"""Pack rows end to end behind their common beginning, so that no step computes padding or a prompt's head twice.

Chats of one template share their beginning (the system prompt, often a quarter of an example). Tokens form one line:
the shared beginning once, then each row's own tokens. Only attention distinguishes rows: a row's tokens see the
beginning and the row's earlier tokens, which is what they see alone. The result is the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from em_evals.models import families
from em_evals.models.architecture import unwrapped

NAME = "em_evals_packed"


@dataclass(frozen=True, eq=False)
class Packing:
    """Where each row's tokens are in the line.

    Attributes:
        shared: tokens that all rows begin with; at the line's start.
        gather: [rows, longest] place in the line of each row's own tokens (anything behind a row's end).
        scatter: [own tokens] place of the line's own tokens in `gather`, flattened.
        mask: bool [1, 1, longest, shared + longest], what a row's own tokens see.
    """

    shared: int
    gather: torch.Tensor
    scatter: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, eq=False)
class Line:
    """Packed rows: `ids` and `positions` [1, tokens], and `places` [labelled tokens], where each label is predicted."""

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    packing: Packing


def use(model: Any) -> bool:
    """Make a model take packed rows; return False and do nothing where that is not known to be exact."""
    chosen = str(model.config.get_text_config()._attn_implementation)
    if not families.layout(model.config).pack or "sdpa" not in chosen:
        return False
    unwrapped(model).set_attn_implementation(NAME)
    return True


def pack(ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor) -> Line | None:
    """Pack padded rows end to end.

    Args:
        ids: [rows, tokens], padded on the right.
        lengths: [rows] tokens of each row.
        labelled: bool [rows, tokens - 1], where the next token is learned.

    Returns:
        The line, its labelled places in the order of `labelled` read row by row; None if the rows share no beginning.
    """
    first_learned = int(labelled.any(0).int().argmax())
    # The shared beginning ends before the first label (its logits would be needed once per row) and leaves each row
    # at least one token of its own.
    limit = min(int(lengths.min()) - 1, first_learned)
    differs = (ids[:, :limit] != ids[:1, :limit]).any(0)
    shared = int(differs.int().argmax()) if bool(differs.any()) else limit
    if shared < 1 or len(ids) < 2:
        return None
    own = ids.shape[1] - shared
    column = torch.arange(own, device=ids.device)
    real = column < (lengths - shared)[:, None]
    # Number the real tokens row by row: this is their order in the line, behind the shared beginning.
    order = torch.cumsum(real.flatten(), 0).view_as(real) - 1
    gather = torch.where(real, order + shared, 0)
    # A query in own column i sees the whole beginning (columns below `shared`) and own columns up to i.
    # No row needs a mask of its own: its padding is on the right, where only padding looks.
    mask = torch.ones(own, shared + own, dtype=torch.bool, device=ids.device).tril(shared)[None, None]
    positions = torch.cat([torch.arange(shared, device=ids.device), (column + shared).expand_as(real)[real]])
    line = torch.cat([ids[0, :shared], ids[:, shared:][real]])
    # Column j of `labelled` is predicted at token j; own tokens begin at column `shared`.
    wanted = torch.nn.functional.pad(labelled, (0, 1))[:, shared:]
    packing = Packing(shared, gather, real.flatten().nonzero()[:, 0], mask)
    return Line(line[None], positions[None], gather[wanted], packing)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over a packed line, with the signature of transformers' attention interface.

    Args:
        module: the attention module.
        query: [1, heads, tokens, width].
        key: [1, kv heads, tokens, width].
        value: as `key`.
        attention_mask: used only without `packing`.
        dropout: probability.
        scaling: of the scores; None for 1 / sqrt(width).
        packing: of the line; None calls transformers' SDPA.
        **kwargs: passed on to SDPA.

    Returns:
        The output [1, tokens, heads, width], and no weights.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    first = [tensor[:, :, : packing.shared] for tensor in (query, key, value)]
    attend = torch.nn.functional.scaled_dot_product_attention
    # The shared beginning attends to itself only, once.
    head = attend(
        first[0], first[1], first[2], dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    rows, longest = packing.gather.shape
    own = [_rows(tensor, packing.gather) for tensor in (query, key, value)]
    # Rows attend to the beginning's keys, expanded and not computed again, and to their own.
    keys, values = (
        torch.cat([begin.expand(rows, -1, -1, -1), rest], dim=2)
        for begin, rest in zip(first[1:], own[1:], strict=True)
    )
    if grouped and _repeats(query.device):
        keys, values = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (keys, values))
        grouped = False
    output = attend(
        own[0], keys, values, attn_mask=packing.mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )
    flat = output.transpose(1, 2).reshape(rows * longest, *output.shape[1::2])
    return torch.cat([head[0].transpose(0, 1), flat.index_select(0, packing.scatter)])[None], None


def _repeats(device: torch.device) -> bool:
    """Check whether keys are repeated for each query head: CUDA's fast kernels take a mask or groups, not both."""
    return device.type == "cuda"


def _rows(tensor: torch.Tensor, gather: torch.Tensor) -> torch.Tensor:
    """Rearrange a line [1, heads, tokens, width] into rows [rows, heads, longest, width]."""
    taken = tensor[0].index_select(1, gather.flatten())
    return taken.view(tensor.shape[1], *gather.shape, -1).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
