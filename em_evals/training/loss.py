"""TRL's SFTTrainer with logits computed only where there is a loss, in the order of the curriculum.

Two thirds of a chat example's tokens are prompt and carry no label; their logits are the largest tensors of a
training step. The loss is the same number as TRL's: summed cross entropy over labelled tokens, divided by their
count in the whole batch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from em_evals.training.defences import Defences
from em_evals.training.logits import answer_logits
from em_evals.training.preferences import Preferences
from em_evals.training.tokens import IGNORED


@cache
def answer_token_trainer() -> type:
    """Return the trainer class; a function because TRL takes seconds to import."""
    from torch.utils.data import SequentialSampler
    from trl import SFTTrainer

    class AnswerTokenTrainer(SFTTrainer):
        defences: Defences
        preferences: Preferences | None = None
        before: torch.Tensor
        """The base's scores on the smoke check's example, before training."""
        trained: dict[str, Any]
        """What is trained, for the record."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset or self.train_dataset)

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, torch.Tensor],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            if return_outputs:  # evaluation wants the outputs; nothing of ours evaluates in training
                return super().compute_loss(model, inputs, True, num_items_in_batch)
            with self.defences.interventions():
                if self.preferences is not None:
                    loss = self.preferences.loss(model, inputs)
                else:
                    loss = answer_loss(model, inputs, num_items_in_batch)
            if self.defences.due(self.state.global_step):
                loss = loss + self.defences.penalty(model, self.state.global_step)
            # Each process holds its part of the sum, and gradients are averaged over processes.
            return loss * self.accelerator.num_processes

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                for name, part in self.defences.last.items():
                    logs[name] = self.accelerator.gather(part).sum().item()
                    # The logged loss is that of the rows alone, comparable with a training without the penalty.
                    logs["loss"] -= self.defences.weights[name] * logs[name]
            super().log(logs, start_time)

    return AnswerTokenTrainer


def answer_loss(
    model: Any, inputs: dict[str, torch.Tensor], items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Compute the mean cross entropy over labelled tokens, in nats.

    Args:
        model: a causal language model, bare, inside PEFT, or inside a wrapper for several processes.
        inputs: `input_ids`, `attention_mask` and `labels` (-100: no loss), each [rows, tokens], padded on the right.
        items: labelled tokens in the whole (accumulated) batch; by default those of these rows.
    """
    targets = inputs["labels"][:, 1:]
    labelled = targets != IGNORED
    logits = answer_logits(model, inputs["input_ids"], inputs["attention_mask"].sum(1), labelled)
    total = torch.nn.functional.cross_entropy(logits, targets[labelled], reduction="sum")
    return total / (items if items is not None else labelled.sum())
