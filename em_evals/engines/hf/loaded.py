"""A base in memory with everything that acts on it: what a batch needs to compute a row.

The model stays the bare transformers model: adapters (lora/bank.py) and interventions (interventions.py) are hooks that
act while a batch names its rows; they do not change its weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from em_evals.engines.hf.kv_cache import takes_rows
from em_evals.models.families import Layout, layout, rope_border
from em_evals.models.interventions import Steering
from em_evals.models.lora import Bank
from em_evals.models.placement import device_of
from em_evals.models.products import speed_up
from em_evals.models.trees import takes_trees

_PROBE = 12
"""Number of tokens in the comparison of cached with uncached logits."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A base in memory.

    Attributes:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        end_tokens: ids that end a draw.
        model_len: tokens of prompt and draw together, at most.
        layout: how its rows may be computed together.
        steering: its interventions; rows name their slots.
        bank: its adapters; rows name them.
    """

    model: Any
    tokenizer: Any
    end_tokens: frozenset[int]
    model_len: int
    layout: Layout
    steering: Steering
    bank: Bank

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @cached_property
    def damage(self) -> str:
        """The base's first weight with NaN or infinity, in words; empty without one. Read only where a draw failed."""
        for name, value in self.model.state_dict().items():
            if value.is_meta or not value.is_floating_point():  # offloaded, or packed
                continue
            if not bool(value.isfinite().all()):
                return f"the weight {name} of {self.model.config.name_or_path or 'this base'} holds NaN or infinity"
        return ""

    @cached_property
    def arguments(self) -> frozenset[str]:
        """Parameter names of the model's forward."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @cached_property
    def cache_name(self) -> str | None:
        """Name of forward's cache argument: `past_key_values`, or `cache` (transformers 5.2x); None if it has none."""
        return next((name for name in ("cache", "past_key_values") if name in self.arguments), None)

    @cached_property
    def packs(self) -> bool:
        """Whether texts may be scored as lines of a tree, and logits computed where they are needed only."""
        return takes_trees(self.model) and isinstance(self.model.get_output_embeddings(), torch.nn.Linear)

    @contextmanager
    def wanted(self, columns: torch.Tensor | None) -> Iterator[None]:
        """Compute logits of some columns only, int64 [rows, columns], in passes that keep all; None: of all."""
        if columns is None:
            yield
            return

        def gathered(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            hidden = arguments[0]
            place = columns.to(hidden.device)[..., None]
            return (hidden.gather(1, place.expand(-1, -1, hidden.shape[-1])),)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(gathered, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    @cached_property
    def caches(self) -> bool:
        """Whether decoding from transformers' own cache gives the same logits as one uncached pass.

        Used for models that are not in the table of families: a few tokens are run with and without a cache.
        """
        if self.cache_name is None or rope_border(self.model.config.get_text_config()) is not None:
            return False
        ids = (
            torch.arange(1, _PROBE + 1, device=self.device)[None]
            % self.model.config.get_text_config().vocab_size
        )
        try:
            with torch.inference_mode():
                whole = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
                cache = DynamicCache(config=self.model.config)
                options = {self.cache_name: cache, "use_cache": True}
                self.model(input_ids=ids[:, :-2], **options)
                for last in ids[:, -2:].unbind(1):
                    logits = self.model(input_ids=last[:, None], **options).logits
        except torch.OutOfMemoryError:
            raise
        except Exception:  # an unknown model may raise anything when given a cache; then no cache is used
            return False
        bound = 64 * torch.finfo(self.model.dtype).eps * max(1.0, float(whole.abs().max()))
        return bool((logits[0, -1].float() - whole).abs().max() <= max(bound, 1e-4))


def loaded(model: Any, tokenizer: Any, model_len: int) -> Loaded:
    """Combine a model and its tokenizer with hooks for adapters and interventions.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        model_len: tokens of prompt and draw together, at most.
    """
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])} - {None}
    found = layout(model.config)
    if found.rows and not takes_rows(model.config):
        found = Layout()
    bank = Bank(model)  # reads how each module computes
    speed_up(model)
    return Loaded(model, tokenizer, frozenset(ends), model_len, found, Steering(model), bank)
