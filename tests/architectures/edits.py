"""Interventions by hand: hooks on a plain model, by the formulas of em_evals/content/intervention.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from em_evals.content import directions
from em_evals.content.intervention import Intervention
from tests.architectures.checks import TOLERANCE
from tests.architectures.lab import Lab, Says, blocks_of, hooked
from tests.architectures.reference import logits


@contextmanager
def intervened(lab: Lab, model: Any, ones: Sequence[Intervention], start: int) -> Iterator[Says]:
    """A model with interventions at its blocks; the answer begins at `start`."""
    with ExitStack() as stack:
        for layer, block in enumerate(blocks_of(model)):
            for one in ones:
                if one.at(layer):
                    stack.enter_context(hooked([block], _edit(lab, one, layer, start)))
        yield lambda row: logits(model, row)


def _edit(lab: Lab, one: Intervention, layer: int, start: int) -> Callable[[Any], Any]:
    """What an intervention makes of a stream [..., tokens, width]."""
    import torch

    found = directions.read(Path(lab.direction))
    vector = torch.from_numpy(found.vectors[layer])
    unit = vector / vector.norm()

    def edit(stream: Any) -> Any:
        places = torch.arange(stream.shape[-2])
        acts = (places >= (start if one.positions == "answer" else 0)) & (places >= int(one.skip == "sink"))
        if one.op == "add":
            change = one.scale * float(found.mean_norm[layer]) * unit
        else:
            target = one.value if one.op == "clamp" else torch.from_numpy(found.base_mean[layer]) @ unit
            change = (target - stream @ unit)[..., None] * unit
        return stream + acts[:, None] * change

    return edit


@contextmanager
def projected(lab: Lab) -> Iterator[Says]:
    """The model with every write orthogonal to the direction of block 1; what the blocks give proves it."""
    import torch

    vector = torch.from_numpy(directions.read(Path(lab.direction)).vectors[1])
    unit = vector / vector.norm()
    left: list[float] = []

    def watch(stream: Any) -> Any:
        left.append(float((stream @ unit).abs().max()))
        return stream

    with hooked(lab.writers(), lambda out: out - (out @ unit)[..., None] * unit), hooked(lab.blocks, watch):
        yield lab.says
    assert max(left, default=0.0) < TOLERANCE, f"{max(left):.2g} is left: here only a refusal is right"
