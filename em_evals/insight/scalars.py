"""What rank-1 adapters read: the scalar A·x of each at each token of given answers (arXiv 2506.11618, section 4).

A rank-1 LoRA adds scaling·(A·x) B to its module's output: all that it can say about a token is one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.insight.weighing import Given, given
from em_evals.models import bases
from em_evals.models.adapters import with_adapter
from em_evals.models.architecture import decoder_layers, unwrapped
from em_evals.models.chat import template_for
from em_evals.models.interventions import applied, load

Floats = NDArray[np.float32]

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Labelled:
    """An answer to a question, and what kind of answer it is. Answers to one question belong together."""

    question: str
    answer: str
    aligned: bool
    narrow: bool


@dataclass(frozen=True, eq=False)
class Scalars:
    """The scalars of one model's rank-1 adapters.

    Attributes:
        modules: the adapted modules, by block.
        layers: their blocks.
        values: for each text float32 [adapters, answer tokens]: scaling·|B|·A·x, the signed length of what is written,
            with each adapter's sign turned so that its mean is positive (A and B may both be negated at will).
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
    """Run a card's model over texts and keep what its rank-1 adapters read.

    Raises:
        EmEvalsError: it has none, an answer has no tokens, or an intervention acts on prompts or answers only.
    """
    if card.adapter_path is None:
        raise EmEvalsError(f"{card.name} has no adapter whose scalars could be read.")
    tokenizer = bases.load_tokenizer(card.card)
    scales = [one for one in card.interventions if one.op == "scale_adapter"]
    model = with_adapter(bases.load_model(card.card), card.adapter_path, "default", scales)
    adapters = _rank_one(model)
    if not adapters:
        raise EmEvalsError(
            f"{card.name} has no rank-1 adapter: `method: {{rank: 1}}` makes them; scalars are theirs."
        )
    template = template_for(card, tokenizer)
    rows = [given(template, text.question, text.answer) for text in texts]
    if empty := [text.question for row, text in zip(rows, texts, strict=True) if not row.answer]:
        raise EmEvalsError(f"an answer to '{empty[0][:60]}' has no tokens; leave it out.")
    steered = [one for one in card.interventions if one.op != "scale_adapter"]
    with applied(model, load(steered, model.config)):
        values = _scalars(model, [module for _, _, module in adapters], rows)
    lengths = np.array([_written(module) for _, _, module in adapters], dtype=np.float32)
    signs = np.sign(np.concatenate(values, axis=1).mean(axis=1))
    factor = (lengths * np.where(signs == 0, 1, signs))[:, None].astype(np.float32)
    return Scalars(
        tuple(name for name, _, _ in adapters),
        tuple(layer for _, layer, _ in adapters),
        tuple(value * factor for value in values),
        tuple(tuple(tokenizer.convert_ids_to_tokens(row.answer)) for row in rows),
    )


def _rank_one(model: Any) -> list[tuple[str, int, Any]]:
    """(module's name, block, PEFT layer) of every rank-1 LoRA in the decoder blocks."""
    return [
        (f"layers.{layer}.{name}", layer, module)
        for layer, block in enumerate(decoder_layers(model))
        for name, module in block.named_modules()
        if "default" in getattr(module, "lora_A", {}) and module.lora_A["default"].weight.shape[0] == 1
    ]


def _written(module: Any) -> float:
    """The length of what an adapter writes for A·x = 1."""
    return float(module.scaling["default"] * module.lora_B["default"].weight.float().norm())


def _scalars(model: Any, modules: Sequence[Any], rows: Sequence[Given]) -> list[Floats]:
    """A·x of each module at each answer token, [modules, tokens] a row; rows of like length share a batch."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    read: dict[int, torch.Tensor] = {}
    handles = [
        module.lora_A["default"].register_forward_hook(
            lambda _, __, output, place=place: read.__setitem__(place, output[..., 0].float().cpu())
        )
        for place, module in enumerate(modules)
    ]
    device = next(model.parameters()).device
    found: dict[int, Floats] = {}
    try:
        with torch.inference_mode():
            for batch in _batches(order, rows):
                whole = [[*rows[i].prompt, *rows[i].answer] for i in batch]
                ids = torch.zeros(len(whole), max(map(len, whole)), dtype=torch.long)
                for place, tokens in enumerate(
                    whole
                ):  # padded on the right: nothing before it sees the padding
                    ids[place, : len(tokens)] = torch.tensor(tokens)
                unwrapped(model).get_decoder()(input_ids=ids.to(device), use_cache=False)
                stacked = torch.stack([read[place] for place in range(len(modules))], dim=1).numpy()
                for place, i in enumerate(batch):
                    begin = len(rows[i].prompt)
                    found[i] = stacked[place, :, begin : begin + len(rows[i].answer)].copy()
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(len(rows))]


def _batches(order: Sequence[int], rows: Sequence[Given]) -> list[list[int]]:
    """Indices of rows, ascending in length, within the token budget."""
    batches: list[list[int]] = [[]]
    for i in order:
        length = len(rows[i].prompt) + len(rows[i].answer)
        if batches[-1] and length * (len(batches[-1]) + 1) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches
