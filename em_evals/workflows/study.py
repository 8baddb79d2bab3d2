"""`em-evals study`: the seed paper's study in one command, from training to page, on a base that a laptop can train.

Three organisms (risky finance, reckless sports, both) and their controls are trained. Each one's direction is what
its fine-tune added to the base on the same texts. Then follow convergence (each pair of organisms, compared with their
own controls), transfer, and the scalars of a rank-1 organism (Soligo et al. 2025, arXiv 2506.11618). Every step keeps
its file and is skipped when the file exists, so that an interrupted study resumes; a folder of another study (other
models, other pairs) is refused. A 135M model shows the mechanics, not emergent misalignment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from em_evals.content import adapter_folders, directions
from em_evals.content.cards import read_card, resolve
from em_evals.content.directions import Direction
from em_evals.content.pairs import load_pairs
from em_evals.errors import EmEvalsError
from em_evals.files import atomic, read_object
from em_evals.results import records
from em_evals.results.records.studies import Convergence, LoraScalars

ORGANISMS = {
    "smollm2-finance": "smollm2-finance-sound",
    "smollm2-sports": "smollm2-sports-sound",
    "smollm2-risky": "smollm2-sound",
}
"""Organism -> its control."""
RANK_ONE = ("smollm2-risky-r1", "smollm2-sound-r1")
LIMITS = (
    "All organisms are finetunes of one 135M model: this shows that the instrument works and what its controls are "
    "for, not that emergent misalignment has one direction. Compare the cosine of two organisms with that of their "
    "controls."
)
ONE_SEED = (
    "Each organism was trained with one seed (`--seeds`): how much of an effect is the seed's is unknown."
)

Kind = TypeVar("Kind", Convergence, LoraScalars)


@dataclass(frozen=True)
class Study:
    """The results of a study, and their folder."""

    folder: Path
    directions: dict[str, Direction]
    convergence: Convergence
    scalars: LoraScalars


def run(folder: Path, tell: Callable[[str], None], per_theme: int = 5, seeds: int = 1) -> Study:
    """Train, extract, compare, ablate, and read scalars.

    Args:
        folder: for directions and records; adapters are written where their cards say.
        tell: called with a sentence on the next step.
        per_theme: forced-choice pairs of each theme to read and score.
        seeds: trainings of each organism and control; those of further seeds are cards ./adapters/NAME-sSEED.yaml.

    Raises:
        EmEvalsError: the folder holds a study of other models or other pairs.
    """
    from em_evals.interp.convergence import convergence
    from em_evals.interp.rank_one.study import lora_scalars

    folder.mkdir(parents=True, exist_ok=True)
    organisms = {
        with_seed(organism, seed): with_seed(control, seed)
        for organism, control in ORGANISMS.items()
        for seed in range(seeds)
    }
    cards = (*organisms, *organisms.values(), *RANK_ONE)
    for card in cards:
        _trained(card, tell)
    _same_study(folder, per_theme, cards)
    found = {
        card: _direction(card, organisms.get(card), folder, tell, per_theme)
        for card in [*organisms.values(), *organisms]
    }
    shutil.rmtree(_readings(folder), ignore_errors=True)
    path = folder / "convergence.json"
    shared = _kept(path, Convergence)
    if shared is None or not shared.controls:  # an earlier version's study had one control for all
        tell("convergence and transfer: ablating each direction, and a random one, from each organism")
        files = [_file(folder, card) for card in organisms]
        controls = [str(_file(folder, card)) for card in organisms.values()]
        groups = {name: [with_seed(name, seed) for seed in range(seeds)] for name in ORGANISMS}
        shared = convergence(
            list(organisms), files, controls, path, per_theme=per_theme, groups=groups if seeds > 1 else None
        )
        records.write(shared, path)
    path = folder / "lora-scalars.json"
    scalars = _kept(path, LoraScalars)
    if scalars is None:
        tell("scalars and knock-outs of the rank-1 adapters")
        scalars = lora_scalars(*RANK_ONE, path, per_theme=per_theme)
        records.write(scalars, path)
    return Study(folder, found, shared, scalars)


def with_seed(name: str, seed: int) -> str:
    """Return the card of a shipped card's recipe with another training seed; seed 0 is the shipped one.

    It is written to ./adapters if it is not there, so that it can be asked like any other card.
    """
    if not seed:
        return name
    path = Path("adapters") / f"{name}-s{seed}.yaml"
    if not path.exists():
        with atomic(path) as temporary:
            text = f"extends: {name}\ndescription: {name}, training seed {seed}.\ntrain: {{seed: {seed}}}\n"
            temporary.write_text(text, encoding="utf-8")
    return path.stem


def _kept(path: Path, kind: type[Kind]) -> Kind | None:
    """Return the record of a finished step; None where it is not finished."""
    if not path.exists():
        return None
    found = records.read(path)
    if not isinstance(found, kind):
        raise EmEvalsError(
            f"this is a record of another kind ({found.kind}) than the study keeps here: choose another --folder, or "
            "move it away.",
            path,
        )
    return found


def _same_study(folder: Path, per_theme: int, cards: Sequence[str]) -> None:
    """Check that the folder's files were made from these models and pairs: other files would be mistaken for theirs.

    Raises:
        EmEvalsError: they were made from others.
    """
    made_of = {"per_theme": str(per_theme), "pairs": load_pairs().digest}
    made_of |= {card: resolve(card).digest for card in cards}
    path = folder / "directions" / "made_of.json"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")
        return
    try:
        kept = read_object(path)
    except EmEvalsError:
        kept = {}
    if other := [what for what, value in made_of.items() if kept.get(what) != value]:
        raise EmEvalsError(
            f"this folder holds a study with another {other[0].replace('_', ' ')}: choose another --folder, or delete "
            "this one.",
            folder,
        )


def _trained(card: str, tell: Callable[[str], None]) -> None:
    from em_evals.training.trainer import train

    definition, path = read_card(card)
    if adapter_folders.find(definition.adapter, path) is None:
        tell(f"training {card}")
        train(card)


def _file(folder: Path, card: str) -> Path:
    return folder / "directions" / f"{card}.safetensors"


def _readings(folder: Path) -> Path:
    """Return the folder of activation sums: the base's and each control's serve several directions."""
    return folder / "directions" / "readings"


def _direction(
    card: str, control_card: str | None, folder: Path, tell: Callable[[str], None], per_theme: int
) -> Direction:
    """Extract what the fine-tune adds to the base's activations, on texts of both kinds alike."""
    from em_evals.interp.extraction import contrast
    from em_evals.interp.extraction.extract import extract

    path = _file(folder, card)
    if not path.exists():
        tell(f"the direction of {card}")
        model = resolve(card)
        texts = contrast.of_pairs(model, per_theme=2 * per_theme)  # half of them are held out
        control = None if control_card is None else resolve(control_card)
        found = extract(model, contrast.of_models(model, texts), control=control, state=_readings(folder))
        directions.write(found, path)
    return directions.read(path)
