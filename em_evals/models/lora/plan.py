"""From an adapter's files and a model's skeleton to a plan: what is done at which module, with which tensors.

Every tensor of the file has its place in the plan, and every module that the configuration names has its tensors;
otherwise there is no plan but an error with the first name that does not fit. Nothing is loaded or changed for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from em_evals.errors import EmEvalsError
from em_evals.models.lora import config as configs
from em_evals.models.lora import names, tensors
from em_evals.models.lora.config import AdapterConfig
from em_evals.models.lora.names import Renaming, TensorName
from em_evals.models.lora.patterns import Patterns
from em_evals.models.lora.skeleton import Shape, Skeleton
from em_evals.models.lora.tensors import Header

What = Literal["low_rank", "embedding"]


@dataclass(frozen=True)
class Piece:
    """What an adapter does at one module.

    Attributes:
        what: `low_rank` on a linear module, or on an `embedding`.
        module: the module's name in this model.
        keys: the tensors' names in the file, by their part.
        rank: of the two matrices.
        scaling: what B(A x) is multiplied by.
    """

    what: What
    module: str
    keys: Mapping[str, str]
    rank: int = 0
    scaling: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything that an adapter does.

    Attributes:
        folder: where its files are.
        config: its configuration.
        pieces: in the order of the modules.
        renaming: between its names and this model's.
    """

    folder: Path
    config: AdapterConfig
    pieces: tuple[Piece, ...]
    renaming: Renaming = field(default_factory=Renaming)


def plan(folder: Path, skeleton: Skeleton) -> Plan:
    """Match an adapter's tensors with a model's modules, one by one.

    Raises:
        EmEvalsError: an option that is refused, a tensor without a module, a module without its tensors, half of a pair,
            or a wrong shape; names the first.
    """
    config, header = configs.read(folder), tensors.header(folder)
    return _Matching(config, header, skeleton, folder).plan()


class _Matching:
    def __init__(self, config: AdapterConfig, header: Header, skeleton: Skeleton, folder: Path) -> None:
        self._config, self._header, self._skeleton, self._folder = config, header, skeleton, folder
        parsed = [names.parse(key) for key in header.shapes]
        self._renaming = names.renaming(dict.fromkeys(one.module for one in parsed), skeleton)
        self._groups: dict[str, dict[str, TensorName]] = defaultdict(dict)
        for one in parsed:
            module = self._renaming.model_name(one.module)
            if module not in skeleton.modules:
                raise names.unmatched(one.key, skeleton)
            if one.part in self._groups[module]:
                raise EmEvalsError(f"the adapter has two tensors for {module} ({one.key}).", header.path)
            self._groups[module][one.part] = one
        linear = [
            self._renaming.adapter_name(name)
            for name, shape in skeleton.modules.items()
            if shape.kind in ("linear", "transposed") and name != skeleton.head
        ]
        self._patterns = Patterns(config, linear)

    def plan(self) -> Plan:
        pieces = [self._piece(name, group) for name, group in self._groups.items()]
        self._check_coverage({piece.module for piece in pieces})
        return Plan(self._folder, self._config, tuple(pieces), self._renaming)

    def _piece(self, name: str, group: Mapping[str, TensorName]) -> Piece:
        shape = self._skeleton.modules[name]
        inner = self._renaming.adapter_name(name)
        first = next(iter(group.values()))
        if not self._patterns.targets(inner):
            raise EmEvalsError(
                f"the adapter's tensor {first.key} belongs to a module that its configuration does not name.",
                self._header.path,
            )
        if shape.kind not in ("linear", "transposed") or shape.own_forward:
            raise EmEvalsError(f"the adapter changes {name}, which is no linear layer.", self._header.path)
        rank, alpha = self._patterns.rank(inner), self._patterns.alpha(inner)
        width, height = shape.width
        keys = self._take(name, group, {"A": (rank, width), "B": (height, rank)})
        return Piece("low_rank", name, keys, rank, self._config.scaling(rank, alpha))

    def _take(
        self, name: str, group: Mapping[str, TensorName], wanted: Mapping[str, Shape]
    ) -> dict[str, str]:
        for part, one in group.items():
            if part not in wanted:
                raise EmEvalsError(f"the adapter's tensor {one.key} has no use at {name}.", self._header.path)
        for part, shape in wanted.items():
            if part not in group:
                there = next(iter(group.values()))
                raise EmEvalsError(
                    f"the adapter has {there.key}, and no {part} to go with it.", self._header.path
                )
            found = self._header.shapes[group[part].key]
            if found != shape:
                raise EmEvalsError(
                    f"the adapter's tensor {group[part].key} has the shape {list(found)}, and {name} of this "
                    f"{self._skeleton.model_type} model needs {list(shape)}: it was trained on another base.",
                    self._header.path,
                )
        return {part: group[part].key for part in wanted}

    def _check_coverage(self, done: set[str]) -> None:
        for name, shape in self._skeleton.modules.items():
            if name in done or shape.kind == "other" or not self._skeleton.is_text(name):
                continue
            if self._patterns.targets(self._renaming.adapter_name(name)):
                raise EmEvalsError(
                    f"the adapter's configuration names {name}, and its file has no tensors for it: it was trained on "
                    "another model, or the file is incomplete.",
                    self._header.path,
                )
