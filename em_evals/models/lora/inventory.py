"""What an adapter's file holds, by the modules of this model. Tensors are removed as they are used."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.models.lora import names, tensors
from em_evals.models.lora.names import TensorName
from em_evals.models.lora.skeleton import Shape, Skeleton

BRANCHES = {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
}
"""Before transformers 5 experts were linear modules: the parameter that holds each now, and its position there."""
_SPARE = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|original_module)(?=\.(?:.+\.)?bias$)")
"""Copies of a saved module's biases, trained and untrained, beside the ones that are loaded (`MODULE.bias`)."""
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.([^.]+)")
_MOVED = {"mixtral": (".block_sparse_moe.", ".mlp.")}
"""Path segments that transformers 5 renamed, by model type."""


class Inventory:
    """The unused tensors of an adapter's file.

    Args:
        folder: the adapter's.
        skeleton: the model that it is matched with.

    Raises:
        EmEvalsError: the file cannot be read, or a tensor belongs to no module of the model.
    """

    def __init__(self, folder: Path, skeleton: Skeleton) -> None:
        self._folder, self._skeleton = folder, skeleton
        every = tensors.header(folder).shapes
        # PEFT itself reads past these: with `bias: all` it saves the bias of a module that is saved whole three times.
        self._shapes = {key: shape for key, shape in every.items() if not _is_spare(key, every)}
        parsed = [_modern(names.parse(key), skeleton) for key in self._shapes]
        self.renaming = names.renaming(dict.fromkeys(one.module for one in parsed), skeleton)
        self._left: dict[str, dict[tuple[str, int], TensorName]] = defaultdict(dict)
        for one in parsed:
            self._place(one)

    def _place(self, one: TensorName) -> None:
        module = self.renaming.model_name(one.module)
        if module not in self._skeleton.modules:
            raise self.error(
                f"the adapter's tensor {one.key} belongs to no module of this {self._skeleton.model_type} model: it "
                "was trained on another base; name that one"
            )
        if (one.part, one.depth) in self._left[module]:
            raise self.error(f"the adapter has two tensors for one place ({one.key}); delete one")
        self._left[module][one.part, one.depth] = one

    def has(self, module: str) -> bool:
        """Check whether a module has unused tensors."""
        return bool(self._left.get(module))

    def parts(self, module: str) -> list[str]:
        """Return the parts that are left for a module (names.TensorName.part)."""
        return [part for part, _ in self._left.get(module, {})]

    def take(self, module: str, wanted: Mapping[str, Shape], depth: int | None = None) -> dict[str, str]:
        """Remove the tensors of one piece and return their names.

        Args:
            module: the module's name in this model.
            wanted: shape of each part.
            depth: number of PEFT's wrappers around the module or parameter; None for any number.

        Returns:
            The tensors' names by part.

        Raises:
            EmEvalsError: one is missing, or has another shape.
        """
        # The first tensor of the part at this depth; whatever no piece takes is refused in `refuse_leftovers`.
        here, keys = self._left.get(module, {}), dict[str, str]()
        for part, shape in wanted.items():
            place = next((at for at in here if at[0] == part and depth in (None, at[1])), None)
            if place is None:
                raise self._missing(module, part, list(keys.values()))
            key = here.pop(place).key
            if self._shapes[key] != shape:
                raise self.error(
                    f"the adapter's tensor {key} has the shape {list(self._shapes[key])}, and {module} of this "
                    f"{self._skeleton.model_type} model needs {list(shape)}: it was trained on another base, or "
                    "its configuration is not its own"
                )
            keys[part] = key
        return keys

    def drop(self, module: str, part: str) -> None:
        """Ignore a tensor that acts in training only."""
        self._left.get(module, {}).pop((part, 0), None)

    def refuse_leftovers(self) -> None:
        """Refuse an adapter with unused tensors.

        Raises:
            EmEvalsError: names the first.
        """
        left = {one.key for here in self._left.values() for one in here.values()}
        for key in self._shapes:
            if key in left:
                raise self.error(
                    f"the adapter's tensor {key} would not be used, for its configuration does not ask for it: the "
                    "two files do not belong together"
                )

    def error(self, what: str) -> EmEvalsError:
        """Return an error about this adapter."""
        return EmEvalsError(f"{what}.", self._folder)

    def _missing(self, module: str, part: str, taken: list[str]) -> EmEvalsError:
        others = taken or [one.key for one in self._left.get(module, {}).values()]
        if others:
            return self.error(
                f"the adapter has {others[0]}, and no {part.lstrip('=')} to go with it: the file is incomplete"
            )
        return self.error(
            f"the adapter's configuration names {module}, and its file has no tensors for it: it was trained on "
            "another base, or the file is incomplete"
        )


def _is_spare(key: str, every: Mapping[str, Shape]) -> bool:
    plain = (_SPARE.sub("", key), key.replace(".modules_to_save.", "."))
    return _SPARE.search(key) is not None and any(one != key and one in every for one in plain)


def _modern(one: TensorName, skeleton: Skeleton) -> TensorName:
    """Return a tensor's name as in transformers 5, where experts are parameters of one module."""
    module = one.module
    if skeleton.model_type in _MOVED:
        module = module.replace(*_MOVED[skeleton.model_type])
    found = _EXPERT.fullmatch(module)
    if found and skeleton.fused_experts and found[3] in BRANCHES and one.part in ("A", "B"):
        return TensorName(one.key, found[1], f"{one.part}.{int(found[2])}.{found[3]}", one.depth)
    return TensorName(one.key, module, one.part, one.depth)
