"""What is done with a direction inside the model. The math is models/interventions.py's, for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from em_evals.content import directions, switches
from em_evals.content.base_shape import MOST_BLOCKS
from em_evals.content.directions import Direction
from em_evals.content.documented import Documented
from em_evals.errors import nearest
from em_evals.files import digest
from em_evals.parsing import step_of

Held = Annotated[
    InstanceOf[Direction], PlainSerializer(lambda one: f"in memory: {one.digest}", when_used="json")
]
"""A direction in memory. JSON shows which one an intervention holds; it cannot be read back from there."""
Named = str | Direction
"""A direction: the name of one in adapters/, a file (safetensors; directions.py), or one in memory."""

OPS: dict[str, set[str]] = {
    "add": {"direction", "from_layer", "positions", "skip", "scale", "relative"},
    "ablate": {"direction", "from_layer", "positions", "skip", "reference", "site"},
    "clamp": {"direction", "from_layer", "positions", "skip", "value"},
    "cap": {"direction", "from_layer", "positions", "skip", "value", "bound"},
    "scale_adapter": {"scale"},
}
"""The fields that each op reads, beside `op` and `layers`. What an op computes is in models/changes.py."""


class Intervention(Documented, BaseModel):
    """One change of the residual stream h after decoder block l, with v = direction[l] and u = v/|v|.

    `add`: h + scale·v, or h + scale·mean_norm[l]·u if `relative`. `ablate`: h - ((h - m)·u) u, where m is 0
    (`reference: zero`) or the base's mean activation (`reference: mean`). `clamp`: h + (value - h·u) u. `cap`: the same
    only where h·u lies above value (`bound: upper`), h + (min(h·u, value) - h·u) u, or below it (`bound: lower`), as
    activation capping does (Lu et al. 2026, arXiv 2601.10387, equation 1).
    `scale_adapter`: the LoRA branch's output in these blocks, times scale (0 switches it off).

    `ablate` with a list of directions removes all of their span at once: h - U Uᵀ (h - m), with U an orthonormal basis.
    One ablation after the other is something else where the directions are not orthogonal: the second puts a part of
    the first one back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    """One of `OPS`."""
    direction: str | Held | Annotated[tuple[str | Held, ...], Field(min_length=1)] | None = None
    """A direction's name, file or object in memory; for `ablate` also a list."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Decoder blocks, counted from 0: `all`, a list, or a range `12-18` with both ends."""
    from_layer: int | None = None
    """Use the vector (and norm, and mean) of this one layer everywhere; None: each layer its own."""
    positions: Literal["all", "prompt", "answer"] = "all"
    """Which tokens' streams are changed: the prompt's, the answer's (given or generated), or all."""
    scale: float = 1.0
    relative: bool = False
    """Scale in units of the base's mean norm at the layer, not of the direction's own length."""
    reference: Literal["zero", "mean"] = "zero"
    value: float = 0.0
    bound: Literal["upper", "lower"] = "upper"
    """Which side of `value` is `cap`ped. The paper's caps are lower bounds, along the direction of the assistant."""
    skip: Literal["none", "sink"] = "none"
    """`sink` leaves the first token alone: its norm can be a hundred times the others'."""
    site: Literal["block", "writes"] = "block"
    """`writes` (ablate only): every write into the stream, that is the embedding and each attention and MLP output,
    as orthogonalised weights do (Arditi et al. 2024, arXiv 2406.11717); with `block`, an MLP still reads what its own
    block's attention wrote along u."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        return switches.refuse(cls, info.field_name, value)

    @field_validator("op")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in OPS:
            raise ValueError(f"there is no op '{value}'; {nearest(value, OPS)}")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        if isinstance(value, str) and value != "all":
            first, _, last = value.partition("-")
            start, end = step_of(first.strip()), step_of(last.strip())
            if start is None or end is None or start > end:
                raise ValueError("layers are `all`, a list, or a range such as 12-18")
            if end >= MOST_BLOCKS:  # written out, a range of ten characters can fill the memory
                raise ValueError(f"layers end at {end}, and no base has {MOST_BLOCKS:,} blocks")
            return tuple(range(start, end + 1))
        return value

    @model_validator(mode="after")
    def _only_what_the_op_reads(self) -> Intervention:
        reads = OPS[self.op]
        if wrong := sorted(self.model_fields_set - reads - {"op", "layers"}):
            raise ValueError(f"`{self.op}` has no `{wrong[0]}`; it reads {', '.join(sorted(reads))}")
        if "direction" in reads and self.direction is None:
            raise ValueError(f"`{self.op}` needs a `direction`")
        if len(self.directions) > 1 and self.op != "ablate":
            raise ValueError(f"`{self.op}` acts along one `direction`; only `ablate` takes a list")
        if self.layers != "all" and any(layer < 0 for layer in self.layers):
            raise ValueError("layers are counted from 0; a negative one does not exist")
        if self.site == "writes" and (
            self.from_layer is None or self.layers != "all" or self.reference != "zero"
        ):
            raise ValueError(
                "`site: writes` removes one vector from every write: it needs `from_layer`, `layers: all` and "
                "`reference: zero`"
            )
        return self

    @property
    def directions(self) -> tuple[Named, ...]:
        """Its directions; none for `scale_adapter`."""
        if self.direction is None:
            return ()
        return self.direction if isinstance(self.direction, tuple) else (self.direction,)

    def along(self, directions: Sequence[Named]) -> Intervention:
        """Return the same with other names for its directions, in their order."""
        if self.direction is None:
            return self
        several = isinstance(self.direction, tuple)
        return self.model_copy(update={"direction": tuple(directions) if several else directions[0]})

    @property
    def digest(self) -> str:
        """Identify what it does by content: its fields and its directions' numbers, wherever those are.

        Raises:
            EmEvalsError: a direction cannot be found or read.
        """
        fields = self.model_dump_json(exclude={"direction"})
        # A list of one is the direction itself; which directions are one subspace is told by one digest for each op.
        return digest(fields, *(directions.digest_of(one) for one in self.directions))

    def at(self, layer: int) -> bool:
        """Whether block `layer` is one of its layers."""
        return self.layers == "all" or layer in self.layers
