"""Defences that act in a training step: a KL penalty to the base, and interventions on the residual stream.

The others (inoculation, interleaved data, backdoor) only change the data: curriculum.py.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from em_evals.content.recipes import AdapterRecipe, KLPenalty
from em_evals.errors import EmEvalsError
from em_evals.models import interventions
from em_evals.models.placement import device_of
from em_evals.training import curriculum
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
        EmEvalsError: a direction is missing or does not fit, the penalty's batch cannot be shared, or every answer of
            its chats lies behind `max_length`.
    """

    def __init__(
        self, recipe: AdapterRecipe, model: Any, tokenizer: Any, processes: int = 1, rank: int = 0
    ) -> None:
        self._model = model
        self._interventions = interventions.load(recipe.interventions, model.config)
        self._penalty: KLPenalty | None = recipe.kl
        self._part = (rank, processes)
        self._last_step = -1
        self.weight = recipe.kl.weight if recipe.kl else 0.0
        """The penalty's."""
        self.kl: torch.Tensor | None = None
        """This process's part of the last step's KL(base ‖ model), in nats per token."""
        if self._penalty is None:
            return
        if self._penalty.batch_size % processes:
            raise EmEvalsError(
                f"`kl.batch_size` ({self._penalty.batch_size}) cannot be shared by {processes} processes."
            )
        encoder = curriculum.Encoder(tokenizer, recipe.max_length)
        chats = curriculum.chats(self._penalty.data, recipe.holdout)
        rows = encoder.kept([curriculum.Row(chat, chat) for chat in chats])
        self._examples = [encoder.example(row.messages) for row in rows]
        # A LoRA model with its adapter disabled is the base; full training needs a separate copy of the base.
        self._frozen = (
            None if hasattr(model, "disable_adapter") else copy.deepcopy(model).requires_grad_(False)
        )

    def interventions(self) -> AbstractContextManager[None]:
        """Return the context in which the training's own forward pass runs."""
        return (
            interventions.applied(self._model, self._interventions) if self._interventions else nullcontext()
        )

    def due(self, step: int) -> bool:
        """Check whether this optimizer step still lacks its penalty (added once, however gradients accumulate)."""
        if self._penalty is None or step == self._last_step:
            return False
        self._last_step = step
        return True

    def penalty(self, model: Any, step: int) -> torch.Tensor:
        """Compute this process's part of weight · KL(base ‖ model), in nats per answer token of the step's chats.

        KL = mean over answer tokens of sum over the vocabulary of p_base (log p_base - log p_model); the base's
        distribution is exact, not sampled.
        """
        assert self._penalty is not None  # noqa: S101 - asked for only when due
        size, (rank, processes) = self._penalty.batch_size, self._part
        chosen = [self._examples[(step * size + i) % len(self._examples)] for i in range(size)]
        tokens = sum(label != IGNORED for example in chosen for label in example["labels"])
        device = device_of(self._model)
        batch = padded(chosen[rank::processes], device)
        with torch.no_grad(), self._as_base():
            reference = answer_logits(self._frozen or model, *batch).log_softmax(-1)
        found = answer_logits(model, *batch).log_softmax(-1)
        divergence = torch.nn.functional.kl_div(found, reference, reduction="sum", log_target=True) / tokens
        self.kl = divergence.detach()
        return self.weight * divergence

    def _as_base(self) -> AbstractContextManager[Any]:
        if self._frozen is not None:
            return nullcontext()
        context: AbstractContextManager[Any] = self._model.disable_adapter()
        return context
