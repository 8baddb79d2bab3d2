"""A trait's direction without a judge: the mean activation under its positive system prompts minus the negative ones.

The prompts alone are read, with the generation prompt and no answer (trait-space monitoring, arXiv 2606.07631, averages
the last token; persona vectors, arXiv 2507.21509, keep it as `prompt_last_diff`). The direction says what the model
represents when it is told to show the trait. That it shows the trait is not measured: such directions separate prompts
of any kind, and the comparison that counts is with other traits (map.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from em_evals.content import direction_algebra
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.traits import Trait, question_id
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import GroupSums
from em_evals.interp.extraction.contrast import Side
from em_evals.interp.extraction.extract import Passes, halves, mean_difference
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.extraction.trust import Sides, measured
from em_evals.models.chat import ChatTemplate, template_for

PositionName = Literal["last_prompt", "prompt_mean"]
WITHOUT_JUDGE = "contrastive prompts, no answers and no judge"


@dataclass(frozen=True)
class Settings:
    """How a trait's direction is extracted: `last_prompt` or `prompt_mean` (the attention sink left out)."""

    position: PositionName = "last_prompt"
    seed: int = 0


def extract(
    card: ResolvedCard, trait: Trait, settings: Settings = Settings(), state: Path | None = None
) -> Direction:
    """Compute direction[l] = mean over questions and positive prompts - the same over negative prompts, after block l.

    Half of the questions find it, the other half tests it. The metadata hold, beside those of
    `extraction.extract`, `prompt_cosine`: the cosine between the directions of two halves of the system prompts.

    Args:
        card: the model that reads; its base alone, or an organism.
        trait: the trait.
        settings: how.
        state: a folder for sums of an interrupted extraction; the caller deletes it.

    Raises:
        EmEvalsError: a prompt is too long, the template takes no system message, or both sides read alike.
    """
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    passes = Passes(card, reading, settings.position, state, f"prompts of {trait.name}")
    sides, base = [], []
    for prompts in (trait.positive, trait.negative):
        texts = _texts(template, prompts, trait.extract, reading.longest)
        sides.append(passes.read(Side((), card), texts))
        base.append(passes.read(Side((), None), texts))
    by_question = Sides(*(_regrouped(side, 1) for side in sides))
    of_base = [_regrouped(side, 1) for side in base]
    found, held_out = halves([question_id(one) for one in trait.extract], split=len(trait.extract) > 1)
    here = by_question.only(found)
    direction = mean_difference(by_question, of_base, found, _provenance(card, trait, settings, here, found))
    if direction is None:
        raise EmEvalsError(
            f"the positive and negative prompts of {trait.name} have the same activations: the template drops system "
            "messages; take a base whose template writes them."
        )
    known = measured(direction, (here, by_question.only(held_out)), seed=settings.seed)
    between = _prompt_cosine(Sides(*(_regrouped(side, 0) for side in sides)))
    known |= {"prompt_cosine": between} if between else {}
    metadata = {**direction.metadata, **known}
    return Direction(direction.vectors, direction.base_mean, direction.mean_norm, metadata, direction.folds)


def _texts(
    template: ChatTemplate, prompts: tuple[str, ...], questions: tuple[str, ...], longest: int
) -> list[Text]:
    """Return every question under every system prompt, ready to be answered; its group is `PROMPT QUESTION`."""
    found = []
    for number, system in enumerate(prompts):
        for question in questions:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            ids = tuple(template.encode(turns))
            if len(ids) > longest:
                raise EmEvalsError(
                    f"'{question[:60]}' under its system prompt has {len(ids)} tokens, and the model reads {longest}: "
                    "shorten it."
                )
            found.append(Text(ids, (), f"{number} {question_id(question)}"))
    return found


def _regrouped(side: GroupSums, part: int) -> GroupSums:
    """Return the sums by prompt (part 0) or by question (part 1)."""
    names = [name.split()[part] for name in side.groups]
    groups = tuple(dict.fromkeys(names))
    member = np.array([[own == name for own in names] for name in groups], dtype=np.float32)
    return GroupSums(
        groups,
        member @ side.counts,
        np.tensordot(member, side.vectors, axes=1),
        member @ side.norms,
    )


def _prompt_cosine(sides: Sides) -> list[float]:
    """Return [layers], the cosine between the directions of the first half of the system prompts and of the others."""
    names = sorted({*sides.positive.groups})
    parts = [sides.only({*half}) for half in (names[::2], names[1::2])]
    if not all(part.both for part in parts):
        return []
    found = np.nan_to_num(direction_algebra.cosines(*(part.difference() for part in parts)))
    return [round(float(value), 6) for value in found]


def _provenance(
    card: ResolvedCard, trait: Trait, settings: Settings, here: Sides, questions: set[str]
) -> dict[str, Any]:
    return {
        "base": card.card.base,
        "revision": card.card.revision,
        "card": card.name,
        "card_digest": card.digest,
        "trait": trait.name,
        "kind": trait.kind,
        "trait_digest": trait.digest,
        "how": f"{trait.name}: positive - negative system prompts ({WITHOUT_JUDGE})",
        "position": settings.position,
        "counts": [int(side.counts.sum()) for side in (here.positive, here.negative)],
        "questions": sorted(questions),
        "seed": settings.seed,
    }
