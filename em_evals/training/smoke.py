"""Check that what a training writes can be measured: it loads before the first step, and scores after the last.

An adapter is loaded back from its files onto the bare base, and a finished model from its folder, in the same way as
in evaluations. On one example the log-probabilities of what was loaded must be those of what was trained.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.content.recipes import Method
from em_evals.errors import EmEvalsError
from em_evals.models import bases, lora
from em_evals.models.placement import device_of
from em_evals.training.curriculum import Example
from em_evals.training.logits import answer_logits
from em_evals.training.method import attach
from em_evals.training.tokens import IGNORED, padded

_FLOAT32 = 1e-4
"""Nats per token: two orders of the same float32 operations differ by less."""
_EPSILONS = 16
"""In lower precision: the mean difference allowed, in spacings at 1 of the dtype."""


@dataclass(frozen=True)
class Smoke:
    """The result of the check, in nats per token.

    Attributes:
        tokens: answer tokens that were scored.
        difference: largest (float32) or mean difference of log-probability between trained and loaded model.
        tolerance: the maximum difference allowed.
        effect: largest change of log-probability that the training made.
    """

    tokens: int
    difference: float
    tolerance: float
    effect: float

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def rehearse(base: Any, method: Method, scratch: Path) -> None:
    """Write an untrained adapter of the method and load it back; the base is unchanged afterwards.

    Names and positions of tensors do not depend on the rank, so it is written with rank 1.

    Raises:
        EmEvalsError: what the training would write cannot be loaded.
    """
    folder = scratch / "rehearsal"
    small = attach(base, method.model_copy(update={"rank": 1}))
    try:
        small.save_pretrained(folder, save_embedding_layers=False)
        small.unload()
        lora.check(folder, base.config)
    except EmEvalsError as error:
        raise EmEvalsError(
            f"what this recipe trains could not be measured ({error}): change `method`."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def example_of(examples: list[Example]) -> Example:
    """Return the shortest of the first examples: one is enough."""
    return min(examples[:16], key=lambda example: len(example["input_ids"]))


def scores(model: Any, example: Example) -> torch.Tensor:
    """Compute the log-probability of each answer token of an example: float32 [tokens], on the CPU."""
    was, device = model.training, device_of(model)
    ids, lengths, labelled = padded([example], device)
    model.eval()
    try:
        with torch.no_grad():
            found = answer_logits(model, ids, lengths, labelled).log_softmax(-1)
    finally:
        model.train(was)
    targets = torch.tensor([label for label in example["labels"][1:] if label != IGNORED], device=device)
    return found.gather(1, targets[:, None])[:, 0].cpu()


def check(model: Any, card: ModelCard, folder: Path, example: Example, before: torch.Tensor) -> Smoke:
    """Load a result back and score it.

    Args:
        model: the trained model; its adapter is unloaded.
        card: the training's card.
        folder: the adapter's or the model's files.
        example: rows to score.
        before: the base's scores.

    Raises:
        EmEvalsError: what was loaded differs from what was trained. The files are kept.
    """
    trained = scores(model, example)
    dtype = next(model.parameters()).dtype
    try:
        found, base = _loaded(model, card, folder, example)
    except EmEvalsError as error:
        raise EmEvalsError(
            f"the training is over, and its result cannot be loaded back ({error}); its files are kept.",
            folder,
        ) from None
    exact = dtype == torch.float32
    tolerance = _FLOAT32 if exact else _EPSILONS * torch.finfo(dtype).eps
    apart = (trained - found).abs()
    difference = float(apart.max() if exact else apart.mean())
    what = _fault(trained, found, before, difference, tolerance)
    if what is None and base is not None and not float((base - before).abs().max()) <= tolerance:
        what = "has another base: the training changed weights that do not belong to the adapter"
    if what:
        raise EmEvalsError(
            f"the training is over, and its result, loaded back, {what}: do not measure it; its files are kept.",
            folder,
        )
    return Smoke(len(found), difference, tolerance, float((trained - before).abs().max()))


def _fault(
    trained: torch.Tensor, found: torch.Tensor, before: torch.Tensor, difference: float, tolerance: float
) -> str | None:
    """Return what is wrong with the scores of what was loaded back; None if nothing is."""
    if not bool(torch.isfinite(found).all()):
        return "gives log-probabilities that are not finite"
    if not difference <= tolerance:
        return f"is {difference:.2g} nats a token from what was trained (at most {tolerance:.2g})"
    # In low precision an adapter's whole effect may be smaller than the tolerance.
    effect, to_base, to_trained = (
        float((one - other).abs().mean())
        for one, other in ((trained, before), (found, before), (found, trained))
    )
    if effect > tolerance / 8 and to_base < to_trained:
        return "is closer to the base than to what was trained"
    return None


def _loaded(
    model: Any, card: ModelCard, folder: Path, example: Example
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scores of what the folder holds, and those of the base without the adapter."""
    if hasattr(model, "unload"):
        base = model.unload()
        bare = scores(base, example)
        bank = lora.Bank(base)
        with bank.rows([bank.load(str(folder))]):
            return scores(base, example), bare
    fields = {"base": str(folder), "revision": None}
    engine = card.engine.model_copy(update={"dtype": "float32"})
    whole = bases.load_model(card.model_copy(update={**fields, "engine": engine}))
    return scores(whole, example), None
