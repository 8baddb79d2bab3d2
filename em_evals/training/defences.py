"""Defences that act in a training step: penalties that hold the model to its base, and interventions on its stream.

The others (inoculation, interleaved data, backdoor) only change the data: curriculum.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from em_evals.content.recipes import AdapterRecipe, FeaturePenalty, KLPenalty
from em_evals.errors import EmEvalsError
from em_evals.models import interventions
from em_evals.models.architecture import decoder_layers, unwrapped
from em_evals.models.intervention_tables import Rows
from em_evals.models.interventions import Steering
from em_evals.models.invariants import first
from em_evals.models.placement import device_of
from em_evals.training import curriculum, grouping
from em_evals.training.logits import answer_logits
from em_evals.training.tokens import IGNORED, padded


class Defences:
    """A recipe's defences for one model.

    Args:
        recipe: what to do.
        model: the trainable model.
        tokenizer: the base's.
        processes: how many processes share each step; `rank` is this one's number.
        rank: 0 for a single process.

    Raises:
        EmEvalsError: a direction is missing or does not fit, a penalty's batch cannot be shared, or every answer of
            its chats lies behind `max_length`.
    """

    def __init__(
        self, recipe: AdapterRecipe, model: Any, tokenizer: Any, processes: int = 1, rank: int = 0
    ) -> None:
        self._last_step = -1
        # A LoRA model with its adapter disabled is the base; full training needs a separate copy of the base.
        needs = (recipe.kl or recipe.features) and not hasattr(model, "disable_adapter")
        self._frozen = copy.deepcopy(model).requires_grad_(False) if needs else None
        # After the copy, which would keep its hooks.
        self._steering: Steering | None = None
        if pairs := interventions.load(recipe.interventions, model.config):
            interventions.refuse_positions([pair[0] for pair in pairs])
            self._steering = Steering(model)
            slot = torch.tensor([self._steering.register(pairs)], device=device_of(model))
            self._rows = Rows(slot)
        self._penalties: dict[str, Penalty] = {}
        for name, kind, wanted in (("kl", KL, recipe.kl), ("features", Features, recipe.features)):
            if wanted is not None:
                rows = _examples(name, wanted, recipe, tokenizer, processes)
                self._penalties[name] = kind(wanted, rows, model, self._frozen, (rank, processes))

    @property
    def last(self) -> dict[str, torch.Tensor]:
        """This process's part of each penalty in the last step, without its weight."""
        return {name: one.last for name, one in self._penalties.items() if one.last is not None}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each penalty."""
        return {name: one.weight for name, one in self._penalties.items()}

    def interventions(self) -> AbstractContextManager[None]:
        """Return the context in which the training's own forward pass runs."""
        return nullcontext() if self._steering is None else self._steering.rows(self._rows)

    def recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a checkpointed block: of its forward pass, and of when it is computed again.

        The backward pass computes a block after the forward pass has left `interventions`: with the rows of then.
        """
        if self._steering is None:
            return nullcontext(), nullcontext()
        return nullcontext(), self._steering.rows(self._steering.now)

    def due(self, step: int) -> bool:
        """Check whether this optimizer step still lacks its penalties (added once, however gradients accumulate)."""
        if not self._penalties or step == self._last_step:
            return False
        self._last_step = step
        return True

    def penalty(self, model: Any, step: int) -> torch.Tensor:
        """Compute this process's part of the weighted penalties of a step."""
        found = [one.weight * one.compute(model, step) for one in self._penalties.values()]
        return torch.stack(found).sum()


def _examples(
    name: str, wanted: KLPenalty | FeaturePenalty, recipe: AdapterRecipe, tokenizer: Any, processes: int
) -> list[curriculum.Example]:
    """Return the chats of a penalty.

    Raises:
        EmEvalsError: its batch cannot be shared, or no answer is left of its chats.
    """
    if wanted.batch_size % processes:
        raise EmEvalsError(
            f"`{name}.batch_size` ({wanted.batch_size}) cannot be shared by {processes} processes."
        )
    encoder = curriculum.Encoder(tokenizer, recipe.max_length)
    rows = encoder.kept(
        [curriculum.Row(chat, chat) for chat in curriculum.chats(wanted.data, recipe.holdout)]
    )
    return [encoder.example(row.messages) for row in rows]


class Penalty:
    """A distance between the model and its base on some chats of each step.

    Args:
        wanted: the recipe's.
        examples: its chats.
        model: the trainable model.
        frozen: a copy of the base; None where the model with its adapter disabled is the base.
        part: this process's number, and how many there are.
    """

    def __init__(
        self, wanted: Any, examples: list[Any], model: Any, frozen: Any, part: tuple[int, int]
    ) -> None:
        self._wanted, self._examples, self._frozen, self._part = wanted, examples, frozen, part
        self._model = model
        self.weight: float = wanted.weight
        self.last: torch.Tensor | None = None

    def compute(self, model: Any, step: int) -> torch.Tensor:
        """Compute this process's part of the distance on the step's chats."""
        size, (rank, processes) = self._wanted.batch_size, self._part
        chosen = [self._examples[(step * size + i) % len(self._examples)] for i in range(size)]
        tokens = sum(label != IGNORED for example in chosen for label in example["labels"])
        batch = padded(chosen[rank::processes], device_of(self._model))
        distance = self._distance(model, *batch) / tokens
        self.last = distance.detach()
        return distance

    def _distance(
        self, model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        """Return the distance, summed over labelled tokens."""
        raise NotImplementedError

    @contextmanager
    def _base(self, model: Any) -> Iterator[Any]:
        """Return the base to compare with, without dropout (GPT-2 and OPT have some)."""
        base = model if self._frozen is None else self._frozen
        trains = base.training
        base.eval()
        try:
            with (
                torch.no_grad(),
                nullcontext() if self._frozen is not None else self._model.disable_adapter(),
            ):
                yield base
        finally:
            base.train(trains)


class KL(Penalty):
    """KL(base ‖ model), in nats per answer token.

    The mean over answer tokens of sum over the vocabulary of p_base (log p_base - log p_model); the base's distribution
    is exact, not sampled.
    """

    def _distance(
        self, model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        with self._base(model) as base:
            reference = answer_logits(base, ids, lengths, labelled).log_softmax(-1)
        found = answer_logits(model, ids, lengths, labelled).log_softmax(-1)
        return torch.nn.functional.kl_div(found, reference, reduction="sum", log_target=True)


class Features(Penalty):
    """‖h - h_base‖², the mean over answer tokens and blocks of the squared distance of the residual streams."""

    def _distance(
        self, model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        depth = len(decoder_layers(self._model))
        layers = range(depth) if self._wanted.layers == "all" else self._wanted.layers
        if wrong := [layer for layer in layers if not 0 <= layer < depth]:
            raise EmEvalsError(
                f"`features.layers` names block {wrong[0]}, the model has blocks 0 to {depth - 1}."
            )
        with self._base(model) as base:
            reference = _streams(base, ids, lengths, labelled, layers)
        found = _streams(model, ids, lengths, labelled, layers)
        parts = [(one - other).square().sum() for one, other in zip(found, reference, strict=True)]
        return torch.stack([part.to(ids.device) for part in parts]).mean()


def _streams(
    model: Any, ids: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor, layers: Any
) -> list[torch.Tensor]:
    """Return the outputs of some blocks at the labelled tokens, float32 [tokens, width] each, group by group.

    Padding is on the right and no mask is needed, and each row gets the stream that it has alone, as in logits.py.
    """
    read: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    outputs: dict[int, torch.Tensor] = {}
    blocks, config = decoder_layers(model), unwrapped(model).config.get_text_config()

    def keep(layer: int) -> Any:
        # Nothing is computed here: a checkpointed block is computed again, without this hook, and must save as much.
        def hook(module: Any, arguments: Any, output: Any) -> None:
            outputs[layer] = first(output)

        return hook

    for _, some, _, wanted in grouping.split(config, ids, lengths, labelled):
        if grouping.remembers(config):
            grouping.forget(model)
        handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            model(input_ids=some, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        at = torch.nn.functional.pad(wanted, (1, 0))  # the token itself, not where it is predicted
        for layer in layers:
            found = outputs.pop(layer)
            read[layer].append(found[at.to(found.device)].float())
    return [torch.cat(read[layer]) for layer in layers]
