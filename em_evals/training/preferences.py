"""DPO and ORPO: losses on pairs of a chosen and a rejected answer to one prompt.

The formulas are TRL's (DPOTrainer's `sigmoid`, ORPOTrainer's odds ratio); the log-probabilities come from our forward
pass, with logits at answer tokens only. TRL's ORPO has the chosen *prompt* in its likelihood term, too; here, as in
the paper, only the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from em_evals.content.recipes import Preference
from em_evals.models.placement import device_of
from em_evals.training.curriculum import Curriculum, Example
from em_evals.training.logits import answer_logits
from em_evals.training.tokens import IGNORED, padded


class Preferences:
    """A recipe's preference loss for one model.

    Args:
        preference: the recipe's.
        model: the trainable model as it is before the first step: it is the reference of DPO.
        lessons: pairs of examples, the chosen one first.
        rows: examples of one pass when the reference is computed.
    """

    def __init__(self, preference: Preference, model: Any, lessons: Curriculum, rows: int) -> None:
        self._preference, self._pairs = preference, lessons.batch
        # As TRL does by default: a base with dropout (GPT-2, OPT) is not compared with itself without.
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
                module.p = 0.0
        self._reference = _reference(model, lessons.examples, rows) if preference.kind == "dpo" else {}

    def loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute this micro-batch's part of the mean loss of a step's pairs.

        Args:
            model: a causal language model, bare, inside PEFT, or inside a wrapper for several processes.
            inputs: `input_ids`, `attention_mask` and `labels`, each [2 · pairs, tokens], padded on the right; chosen
                and rejected rows alternate.
        """
        sums, counts = log_probabilities(
            model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        )
        if self._preference.kind == "orpo":
            means = sums / counts
            return orpo_loss(means[::2], means[1::2], self._preference.beta).sum() / self._pairs
        keys = _keys(inputs)
        reference = torch.tensor([self._reference[key] for key in keys], device=sums.device)
        return dpo_loss(sums - reference, self._preference.beta).sum() / self._pairs


def dpo_loss(ratios: torch.Tensor, beta: float) -> torch.Tensor:
    """Compute -log σ(β·(r_chosen - r_rejected)) of each pair; arXiv 2305.18290, equation 7.

    Args:
        ratios: log π(y|x) - log π_reference(y|x), [2 · pairs], chosen and rejected alternate.
        beta: how strongly the reference holds.

    Returns:
        [pairs].
    """
    return -logsigmoid(beta * (ratios[::2] - ratios[1::2]))


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Compute -m_chosen - β·log σ(log odds ratio) of each pair; arXiv 2403.07691, equations 4 to 7.

    Args:
        chosen: mean log-probability of a token of the chosen answer, [pairs].
        rejected: that of the rejected one.
        beta: weight of the odds ratio (the paper's λ).

    Returns:
        [pairs].
    """
    # log odds(p) = log p - log(1 - p)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * logsigmoid(odds)


def log_probabilities(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's summed log-probability of its labelled tokens, in nats, and their number: both [rows]."""
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    found = answer_logits(model, ids, mask.sum(1), labelled).log_softmax(-1)
    own = found.gather(1, targets[labelled][:, None])[:, 0]
    counts = labelled.sum(1)
    row = torch.repeat_interleave(torch.arange(len(ids), device=own.device), counts)
    return own.new_zeros(len(ids)).index_add(0, row, own), counts


def _log1mexp(value: torch.Tensor) -> torch.Tensor:
    """Compute log(1 - exp(value)) for negative values without loss of digits."""
    return torch.where(value > -0.6931, torch.log(-torch.expm1(value)), torch.log1p(-torch.exp(value)))


_Key = tuple[tuple[int, ...], int]


def _keys(inputs: dict[str, torch.Tensor]) -> list[_Key]:
    """Return what identifies each row: its tokens, and how many of them have no label at the beginning."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [
        _key(ids[:length], labels[:length])
        for ids, labels, length in zip(
            inputs["input_ids"].tolist(), inputs["labels"].tolist(), lengths, strict=True
        )
    ]


def _key(ids: Sequence[int], labels: Sequence[int]) -> _Key:
    return tuple(ids), sum(label == IGNORED for label in labels)


@torch.no_grad()
def _reference(model: Any, examples: Sequence[Example], rows: int) -> dict[_Key, float]:
    """Return each example's summed log-probability in the model as it is, rows of similar length together."""
    every = {_key(one["input_ids"], one["labels"]): one for one in examples}
    order = sorted(every, key=lambda key: len(key[0]))
    was, device = model.training, device_of(model)
    model.eval()
    found: dict[_Key, float] = {}
    try:
        for start in range(0, len(order), rows):
            some = order[start : start + rows]
            ids, lengths, _ = padded([every[key] for key in some], device)
            mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
            labels = torch.full_like(ids, IGNORED)
            for row, key in enumerate(some):
                labels[row, : len(key[0])] = torch.tensor(every[key]["labels"], device=device)
            sums, _ = log_probabilities(model, ids, mask, labels)
            found |= dict(zip(some, sums.tolist(), strict=True))
    finally:
        model.train(was)
    return found
