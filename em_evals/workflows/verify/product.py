"""Run the side under test: draws, scores, mean activations. Its base must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.interp.extraction.activations import GroupSums
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.workflows.verify import extraction, plan, template
from em_evals.workflows.verify.asking import CheckResult, Subject, ask, bits, refused
from em_evals.workflows.verify.extraction import Read
from em_evals.workflows.verify.plan import Check
from em_evals.workflows.verify.prompts import Prompts
from em_evals.workflows.verify.verdict import Row

RANDOM = "random.safetensors"
"""The direction of cards without interventions."""
_BITS = "base unchanged"


@dataclass(eq=False)
class Seen:
    """The product's results.

    Attributes:
        prompts: the rows that were requested.
        template: the row of the chat template.
        results: its results, check by check.
        texts: the texts that it read.
        reads: their mean activations.
        bits: the row of the base's weights.
        parameters: number of parameters of the base.
    """

    prompts: Prompts
    template: Row
    parameters: int
    results: list[CheckResult] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    bits: Row | None = None


def observe(card: ResolvedCard, folder: Path, tell: Callable[[str], None]) -> Seen:
    """Run all checks with the product's engine, and close it.

    Args:
        card: the card to verify.
        folder: for the random direction of a card without interventions.
        tell: called with a progress message.

    Raises:
        EmEvalsError: the base cannot be loaded, or what the card describes is refused.
    """
    tell(f"loading {card.card.base}")
    subject = Subject(card.card)
    try:
        found, reason = template.template(card, subject.tokenizer)
        with subject.borrow() as base:
            prompts = Prompts(
                subject.tokenizer, found, base.model.config, subject.model_len, base.device.type
            )
            before = bits(base.model)
            parameters = sum(one.numel() for one in base.model.parameters())
        seen = Seen(prompts, template.row(found, reason), parameters)
        _ask(subject, seen, plan.engine(prompts), tell)
        tell("extraction")
        seen.texts = extraction.texts_of(prompts)
        seen.reads.append(extraction.read(subject, seen.texts, "extraction: the base", None, ()))
        _ask(subject, seen, _own(card, prompts, folder, seen.reads[0].sums), tell)
        if card.adapter_path is not None or card.interventions:
            own = (card.adapter_path, card.interventions)
            seen.reads.append(extraction.read(subject, seen.texts, "extraction: the card", *own))
        with subject.borrow() as base:
            seen.bits = _compared(before, bits(base.model))
        return seen
    finally:
        subject.close()


def _ask(subject: Subject, seen: Seen, checks: Sequence[Check], tell: Callable[[str], None]) -> None:
    for check in checks:
        tell(check.name)
        results = ask(subject, check)
        if results.error is not None and check.own and refused(results.error):
            raise results.error
        seen.results.append(results)


def _own(card: ResolvedCard, prompts: Prompts, folder: Path, sums: GroupSums | Exception) -> list[Check]:
    """Return the checks of the card's adapter and interventions; of random interventions where it has none."""
    checks = []
    scales = tuple(one for one in card.interventions if one.op == "scale_adapter")
    if card.adapter_path is not None:
        checks += plan.adapter(prompts, card.adapter_path, scales)
    if len(scales) < len(card.interventions):
        ops = ", ".join(dict.fromkeys(one.op for one in card.interventions))
        name = f"interventions: the card's ({ops})"
        checks.append(plan.steered(prompts, name, card.interventions, card.adapter_path, own=True))
    elif isinstance(sums, GroupSums):
        for one in _random(sums, folder):
            checks.append(plan.steered(prompts, f"interventions: random {one.op}", (one,)))
    return checks


def _random(sums: GroupSums, folder: Path) -> list[Intervention]:
    """Return one intervention of each op along a random direction, with a visible effect, at every kind of position."""
    made = extraction.random_direction(sums)
    file = folder / RANDOM
    directions.write(made, file)
    layer = made.layers // 2
    every: dict[str, Any] = {"direction": str(file)}
    place = every | {"layers": (layer,)}
    return [
        Intervention(op="add", scale=0.3, relative=True, **place),
        Intervention(op="ablate", reference="mean", skip="sink", **every),
        Intervention(op="clamp", value=0.3 * float(made.mean_norm[layer]), positions="answer", **place),
        Intervention(op="cap", value=0.0, positions="prompt", **every),
    ]


def _compared(before: dict[str, str], after: dict[str, str]) -> Row:
    """Return the row that compares the base's weights before and after all checks."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    compared = "sha256 of every parameter and buffer, before and after all draws"
    reason = f"changed: {changed[0]}" if changed else ""
    word: Any = "wrong" if changed else "ok"
    return Row(_BITS, compared, float(len(changed)), 0.0, "tensors", len(before), word, reason)
