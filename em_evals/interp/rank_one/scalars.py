"""What rank-1 adapters read: each one's scalar A·x at each token of given answers (arXiv 2506.11618, section 4).

A rank-1 LoRA adds scaling·(A·x) B to its module's output: one number per token is all that it contributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from em_evals.content.cards import ResolvedCard
from em_evals.engines.hf.loaded import Loaded
from em_evals.engines.pool import base_in_memory
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.fixed_answers import given
from em_evals.models.architecture import decoder
from em_evals.models.chat import template_for
from em_evals.models.families import layout
from em_evals.models.lora import Bank, LowRank
from em_evals.models.placement import device_of
from em_evals.models.text_batches import by_length, padded

Floats = NDArray[np.float32]

_BATCH_TOKENS = 4096


class Labelled(BaseModel):
    """An answer to a question, and its kind. Answers to one question belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    aligned: bool
    narrow: bool


@dataclass(frozen=True, eq=False)
class Scalars:
    """The scalars of one model's rank-1 adapters.

    Attributes:
        modules: the adapted modules, by block.
        layers: their blocks.
        values: for each text float32 [adapters, answer tokens]: scaling·|B|·A·x, the signed length of what is written,
            with each adapter's sign chosen so that its mean is positive (A and B may both be negated).
        tokens: for each text its answer's tokens.
    """

    modules: tuple[str, ...]
    layers: tuple[int, ...]
    values: tuple[Floats, ...]
    tokens: tuple[tuple[str, ...], ...]

    @property
    def means(self) -> Floats:
        """[texts, adapters]: the mean over each answer's tokens."""
        return np.stack([value.mean(axis=1) for value in self.values])


def read(card: ResolvedCard, texts: Sequence[Labelled]) -> Scalars:
    """Run a card's model over texts and record what its rank-1 adapters read.

    Raises:
        EmEvalsError: it has none, an answer has no tokens, or an intervention acts on prompts or answers only.
    """
    if card.adapter_path is None:
        raise EmEvalsError(f"{card.name} has no adapter whose scalars could be read.")
    engine = base_in_memory(card.card)
    with engine.activations(card.adapter_path, card.interventions) as base:
        name = engine.adapters.name(base.bank, card.adapter_path, card.interventions)
        return _read(card, texts, base, str(name))


def _read(card: ResolvedCard, texts: Sequence[Labelled], base: Loaded, name: str) -> Scalars:
    adapters = _rank_one(base.bank, name)
    if not adapters:
        raise EmEvalsError(
            f"{card.name} has no rank-1 adapter: `method: {{rank: 1}}` makes them; scalars are theirs."
        )
    template = template_for(card, base.tokenizer)
    rows = [given(template, text.question, text.answer) for text in texts]
    if empty := [text.question for row, text in zip(rows, texts, strict=True) if not row.answer]:
        raise EmEvalsError(f"an answer to '{empty[0][:60]}' has no tokens; leave it out.")
    modules = [(base.model.get_submodule(one.module), one.part) for one in adapters]
    values = _scalars(base.model, modules, rows)
    lengths = np.array([one.part.scaling * float(one.part.b.norm()) for one in adapters], dtype=np.float32)
    signs = np.sign(np.concatenate(values, axis=1).mean(axis=1))
    factor = (lengths * np.where(signs == 0, 1, signs))[:, None].astype(np.float32)
    return Scalars(
        tuple(one.name for one in adapters),
        tuple(one.layer for one in adapters),
        tuple(value * factor for value in values),
        tuple(tuple(base.tokenizer.convert_ids_to_tokens(row.answer)) for row in rows),
    )


@dataclass(frozen=True, eq=False)
class _RankOne:
    """A rank-1 LoRA in the decoder blocks: its module's name in the model and for display, its block, A and B."""

    module: str
    name: str
    layer: int
    part: LowRank


def _rank_one(bank: Bank, name: str) -> list[_RankOne]:
    skeleton = bank.fit(name).skeleton
    found = []
    for module, part in bank.parts(name).items():
        layer = skeleton.block(module)
        if layer is not None and part.rank == 1:
            found.append(
                _RankOne(module, f"layers.{module.removeprefix(f'{skeleton.blocks}.')}", layer, part)
            )
    return found


def _scalars(model: Any, modules: Sequence[tuple[Any, LowRank]], rows: Sequence[Text]) -> list[Floats]:
    """Compute A·x of each module at each answer token, [modules, tokens] per row; rows are batched by length."""
    read: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, place=place, part=part: read.__setitem__(
                place, part.inner(inputs[0].to(part.a.device))[..., 0].float().cpu()
            )
        )
        for place, (module, part) in enumerate(modules)
    ]
    device = device_of(model)
    found: dict[int, Floats] = {}
    try:
        with torch.inference_mode():
            for batch in by_length(rows, _BATCH_TOKENS, layout(model.config)):
                ids = padded([rows[i] for i in batch])
                decoder(model)(input_ids=ids.to(device), use_cache=False)
                stacked = torch.stack([read[place] for place in range(len(modules))], dim=1).numpy()
                for place, i in enumerate(batch):
                    begin = len(rows[i].prompt)
                    found[i] = stacked[place, :, begin : begin + len(rows[i].answer)].copy()
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(len(rows))]
