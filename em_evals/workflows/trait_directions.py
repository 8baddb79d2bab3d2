"""From a trait to its direction files: from prompts alone, or from rollouts, a judge and a filter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.traits import Trait
from em_evals.errors import EmEvalsError
from em_evals.interp.traits import extract as prompts
from em_evals.interp.traits.extract import PositionName
from em_evals.interp.traits.judged import POSITIONS, Settings, extract_judged
from em_evals.interp.traits.layer import Steering, choose
from em_evals.workflows.trait_rollouts import Sampling, rollouts

_MAIN = POSITIONS[0]


def from_prompts(
    card: ResolvedCard, trait: Trait, position: PositionName, seed: int, output: Path, overwrite: bool = False
) -> Path:
    """Extract a trait's direction from its prompts alone, unless its file is there; return the file.

    Raises:
        EmEvalsError: the file that is there is of another model, trait, position or seed; see also `extract.extract`.
    """
    path = output / f"{trait.name}.safetensors"
    if not overwrite and path.exists():
        _same(path, card, trait, {"position": position, "seed": seed})
        return path
    state = path.with_suffix(".partial")
    directions.write(prompts.extract(card, trait, prompts.Settings(position, seed), state), path)
    shutil.rmtree(state, ignore_errors=True)
    return path


def missing_from_prompts(card: ResolvedCard, trait: Trait, folder: Path) -> Path:
    """Return a trait's direction for a map: the file that is there, however it was extracted, else from its prompts.

    Raises:
        EmEvalsError: the file that is there is of another model or trait; see also `extract.extract`.
    """
    path = folder / f"{trait.name}.safetensors"
    if path.exists():
        _same(path, card, trait, {})
        return path
    return from_prompts(card, trait, "last_prompt", 0, folder)


def _same(path: Path, card: ResolvedCard, trait: Trait, settings: Mapping[str, Any]) -> None:
    """Refuse a direction that is there, but is not what this command would extract.

    Raises:
        EmEvalsError: names what differs.
    """
    known = directions.read(path).metadata
    wanted = {"card": card.name, "trait": trait.name, **settings}
    differs = [key for key, value in settings.items() if known.get(key) != value]
    differs += ["card"] if known.get("card_digest") != card.digest else []
    differs += ["trait"] if known.get("trait_digest") != trait.digest else []
    if differs:
        # Of a card or trait that was edited since, the names are equal.
        told = "; ".join(f"{key} {known.get(key, 'unknown')}, now {wanted[key]}" for key in differs)
        raise EmEvalsError(
            f"this direction was extracted with other settings or another version of them ({told}): name another "
            "folder, or replace it with `em-evals trait extract --overwrite`.",
            path,
        )


def from_answers(
    card: ResolvedCard,
    trait: Trait,
    named: str,
    answers: Sequence[Path] | Sampling | None,
    settings: Settings,
    steering: Steering | None,
    output: Path,
    overwrite: bool = False,
) -> Path:
    """Extract a trait's directions from judged answers, unless they are there.

    Args:
        card: the model that answers and reads.
        trait: the trait.
        named: its name or file.
        answers: logs of `em_evals/trait`, or how to sample them.
        settings: of filter and extraction.
        steering: how the layer is chosen; None: it is not.
        output: `TRAIT.safetensors` (answer mean), `prompt_mean/TRAIT.safetensors` and `last_prompt/TRAIT.safetensors`.
        overwrite: extract again.

    Returns:
        The file of the answer mean.

    Raises:
        EmEvalsError: a file that is there is of another model, trait or seed; see also `trait_rollouts.rollouts`,
            `extract_judged` and `layer.choose`.
    """
    name = f"{trait.name}.safetensors"
    paths = {position: output / ("" if position == _MAIN else position) / name for position in POSITIONS}
    if not overwrite and all(path.exists() for path in paths.values()):
        for position, path in paths.items():
            _same(path, card, trait, {"position": position, "seed": settings.seed})
        return paths[_MAIN]
    logs = (
        [rollouts(card, trait, named, answers, output / "rollouts")]
        if isinstance(answers, Sampling)
        else answers
    )
    state = output / f"{trait.name}.partial"
    found = extract_judged(card, trait, logs or [], settings, state=state)
    if steering is not None:
        chosen = choose(card, trait, named, found[_MAIN], steering, output / "steered" / trait.name)
        known = chosen.as_metadata()
        found[_MAIN] = replace(found[_MAIN], metadata=found[_MAIN].metadata | known)
    for position, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        directions.write(found[position], path)
    shutil.rmtree(state, ignore_errors=True)
    return paths[_MAIN]
