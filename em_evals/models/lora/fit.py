"""How an adapter fits a model: what it does at which module, with which tensors (found by matching.py).

Every tensor of the file has a module, and every module that the configuration names has its tensors; otherwise there is
no fit but an error with the first name that does not fit. No weights are loaded or changed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models.lora.config import AdapterConfig
from em_evals.models.lora.names import Renaming
from em_evals.models.lora.skeleton import Skeleton

What = Literal["low_rank", "embedding", "parameter", "bias", "saved", "tokens", "copy"]


@dataclass(frozen=True)
class Piece:
    """What an adapter does at one module.

    Attributes:
        what: `low_rank`: B(A x) added to a linear module; `embedding`: the same on an embedding; `parameter`: B A
            added to a parameter; `bias`, `saved`: a parameter's own values; `tokens`: own values of some rows;
            `copy`: a copy of the base's weights, which must be equal to them.
        module: the module's name in this model.
        keys: the tensors' names in the file, by their part (names.py). Separate experts in the file have
            `A.EXPERT.BRANCH` and `B.EXPERT.BRANCH`.
        rank: of the two matrices.
        scaling: the factor of their product.
        parameter: the parameter's name in the module, for kinds that change a parameter.
        indices: the rows, of `tokens`.
    """

    what: What
    module: str
    keys: Mapping[str, str]
    rank: int = 0
    scaling: float = 1.0
    parameter: str = ""
    indices: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is scaling · B A x and nothing else."""
        return self.what == "low_rank" and set(self.keys) == {"A", "B"}

    @property
    def words(self) -> str:
        """A description for error messages."""
        if self.what == "low_rank":
            extra = "DoRA" if "magnitude" in self.keys else "lora_bias" if "B.bias" in self.keys else "a LoRA"
            return f"{extra} on {self.module}"
        return {
            "embedding": f"a LoRA on the embedding {self.module}",
            "parameter": f"a LoRA on the parameter {self.module}.{self.parameter} (target_parameters)",
            "bias": f"the bias of {self.module} (bias)",
            "saved": f"the whole of {self.module} (modules_to_save)",
            "tokens": f"some tokens of {self.module} (trainable_token_indices)",
            "copy": f"a copy of {self.module}",
        }[self.what]


@dataclass(frozen=True)
class Fit:
    """Everything that an adapter does.

    Attributes:
        folder: the folder of its files.
        config: its configuration.
        pieces: in the order of the model's modules.
        skeleton: the model that it was matched with.
        renaming: from its module names to this model's.
    """

    folder: Path
    config: AdapterConfig
    pieces: tuple[Piece, ...]
    skeleton: Skeleton
    renaming: Renaming = field(default_factory=Renaming)

    def beyond(self) -> Iterator[Piece]:
        """Return the pieces that are not a plain LoRA on a linear module."""
        return (piece for piece in self.pieces if not piece.plain and piece.what != "copy")

    def factors(self, scales: Any) -> dict[str, float]:
        """Return the factor on each module's scaling from every `scale_adapter` of a card.

        Raises:
            EmEvalsError: the adapter has nothing in the blocks that one names, or something that no scale can multiply.
        """
        factors: dict[str, float] = {}
        for one in scales:
            touched = [piece for piece in self.pieces if self._within(piece, one)]
            if not touched:
                raise EmEvalsError(
                    f"`scale_adapter` names layers {_layers(one)}, and the adapter has none there."
                )
            for piece in touched:
                if piece.what not in ("low_rank", "parameter") or "magnitude" in piece.keys:
                    raise EmEvalsError(
                        f"`scale_adapter` multiplies a LoRA's output; this adapter has {piece.words} in these layers, "
                        "which has no scale: leave these layers out."
                    )
            for module in {piece.module for piece in touched}:
                factors[module] = factors.get(module, 1.0) * one.scale
        return factors

    def _within(self, piece: Piece, scale: Intervention) -> bool:
        block = self.skeleton.block(piece.module)
        return block is not None and scale.at(block)


def _layers(one: Intervention) -> str:
    return one.layers if isinstance(one.layers, str) else str(list(one.layers))
