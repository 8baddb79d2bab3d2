"""The matching behind plan.py: what the configuration asks for is looked up in the file, and nothing may be left over."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from em_evals.errors import EmEvalsError
from em_evals.models.lora import config as configs
from em_evals.models.lora import names, tensors
from em_evals.models.lora.config import AdapterConfig
from em_evals.models.lora.names import Renaming, TensorName
from em_evals.models.lora.patterns import Patterns
from em_evals.models.lora.plan import Piece, Plan
from em_evals.models.lora.skeleton import ModuleShape, Shape, Skeleton
from em_evals.models.lora.tensors import Header

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.([^.]+)")
_BRANCHES = {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
}
"""Experts before transformers 5 were linear modules, each alone: the parameter that holds each now, and its place there."""
_MOVED = {"mixtral": (".block_sparse_moe.", ".mlp.")}
"""Modules that transformers 5 calls otherwise, by model type."""


def plan(folder: Path, skeleton: Skeleton) -> Plan:
    """Match an adapter's tensors with a model's modules, one by one.

    Raises:
        EmEvalsError: an option that is refused, a tensor without a module, a module without its tensors, half of a pair,
            or a wrong shape; names the first.
    """
    return _Matching(folder, skeleton).plan()


class _Matching:
    def __init__(self, folder: Path, skeleton: Skeleton) -> None:
        self._folder, self._skeleton = folder, skeleton
        self._config: AdapterConfig = configs.read(folder)
        self._header: Header = tensors.header(folder)
        parsed = [_modern(names.parse(key), skeleton) for key in self._header.shapes]
        self._renaming: Renaming = names.renaming(dict.fromkeys(one.module for one in parsed), skeleton)
        self._left = self._placed(parsed)
        self._patterns = Patterns(self._config, self._linear())
        self._whole: set[tuple[str, str]] = set()
        """Parameters that are saved as a whole, by module and name."""

    def plan(self) -> Plan:
        builders = (self._saved, self._tokens, self._low_ranks, self._parameters, self._biases, self._copies)
        pieces = [piece for build in builders for piece in build()]
        order = {name: place for place, name in enumerate(self._skeleton.modules)}
        self._refuse_leftovers()
        if not pieces:
            raise self._error("this adapter changes nothing: its file holds no tensor that a model would use")
        pieces.sort(key=lambda piece: order[piece.module])
        return Plan(self._folder, self._config, tuple(pieces), self._skeleton, self._renaming)

    # What is in the file

    def _placed(self, parsed: list[TensorName]) -> dict[str, dict[tuple[str, int], TensorName]]:
        """The file's tensors by this model's modules, and there by part and depth."""
        placed: dict[str, dict[tuple[str, int], TensorName]] = defaultdict(dict)
        for one in parsed:
            module = self._renaming.model_name(one.module)
            if module not in self._skeleton.modules:
                raise self._error(
                    f"the adapter's tensor {one.key} belongs to no module of this {self._skeleton.model_type} model: it "
                    "was trained on another base; name that one"
                )
            if (one.part, one.depth) in placed[module]:
                raise self._error(f"the adapter has two tensors for one place ({one.key}); delete one")
            placed[module][one.part, one.depth] = one
        return placed

    def _linear(self) -> list[str]:
        """What `all-linear` stands for, in the adapter's names."""
        return [
            self._renaming.adapter_name(name)
            for name, shape in self._skeleton.modules.items()
            if shape.kind in ("linear", "transposed") and name != self._skeleton.head
        ]

    def _candidates(self) -> Iterator[tuple[str, str, ModuleShape]]:
        """(name here, name there, shape) of each module that the adapter may be about.

        Towers of other modalities count only where the file has something for them: an adapter that was trained on the
        text model knows nothing of them.
        """
        for name, shape in self._skeleton.modules.items():
            if self._skeleton.is_text(name) or name in self._left:
                yield name, self._renaming.adapter_name(name), shape

    def _take(
        self, module: str, wanted: Mapping[str, Shape], depth: int = 0, any_depth: bool = False
    ) -> dict[str, str]:
        """Take the tensors of one piece out of what is left.

        Args:
            module: the module's name here.
            wanted: shape of each part.
            depth: wrappers of PEFT around what it belongs to.
            any_depth: accept any number of wrappers.
        """
        here, keys = self._left.get(module, {}), {}
        for part, shape in wanted.items():
            place = next((at for at in here if at[0] == part and (any_depth or at[1] == depth)), None)
            if place is None:
                raise self._missing(module, part, [key for key in keys.values()])
            one = here.pop(place)
            found = self._header.shapes[one.key]
            if found != shape:
                raise self._error(
                    f"the adapter's tensor {one.key} has the shape {list(found)}, and {module} of this "
                    f"{self._skeleton.model_type} model needs {list(shape)}: it was trained on another base, or its "
                    "configuration is not its own"
                )
            keys[part] = one.key
        return keys

    # What the configuration asks for

    def _low_ranks(self) -> Iterator[Piece]:
        for name, there, shape in self._candidates():
            targeted = self._patterns.targets(there) or (
                name in self._tied_head() and self._embedding_targeted()
            )
            if not targeted or shape.kind == "other":
                continue
            if shape.kind == "convolution" or shape.own_forward:
                if name in self._left:
                    raise self._error(
                        f"the adapter has a LoRA on {name}, whose class is not run with one: train it without this module"
                    )
                continue
            rank = self._patterns.rank(there)
            scaling = self._config.scaling(rank, self._patterns.alpha(there))
            width, height = shape.width
            if shape.kind == "embedding":
                wanted = {"embedding_A": (rank, width), "embedding_B": (height, rank)}
            else:
                wanted = {"A": (rank, width), "B": (height, rank)}
                if self._config.lora_bias:
                    wanted["B.bias"] = (height,)
            if self._config.use_dora:
                wanted["magnitude"] = (height,)
            keys = self._take(name, wanted)
            self._left.get(name, {}).pop(("velora", 0), None)  # the backward pass's alone
            self._refuse_conversion(name, shape)
            yield Piece("embedding" if shape.kind == "embedding" else "low_rank", name, keys, rank, scaling)

    def _tied_head(self) -> list[str]:
        """The output matrix, where PEFT was asked to train it as the embedding that it is."""
        head = self._skeleton.head
        return [head] if head is not None and self._skeleton.tied and self._config.ensure_weight_tying else []

    def _embedding_targeted(self) -> bool:
        return self._patterns.targets(self._renaming.adapter_name(self._skeleton.embedding))

    def _refuse_conversion(self, name: str, shape: ModuleShape) -> None:
        init = self._config.converted
        if init and (shape.kind == "embedding" or (shape.kind == "transposed" and init == "olora")):
            raise self._error(f"`init_lora_weights: {init}` is not supported on {name}, as in PEFT")

    def _parameters(self) -> Iterator[Piece]:
        for name, there, shape in self._candidates():
            chosen = self._targeted(name, there, shape)
            experts = [at for at in self._left.get(name, {}) if at[0].count(".") == 2]
            if experts:
                yield from self._lone_experts(name, shape)
                continue
            for place, parameter in enumerate(chosen):
                # PEFT wraps once for each parameter, the first one innermost.
                yield self._parameter(name, there, shape, parameter, len(chosen) - 1 - place)

    def _targeted(self, name: str, there: str, shape: ModuleShape) -> list[str]:
        """The parameters of a module that carry a LoRA."""
        chosen = [one for one in shape.parameters if self._patterns.targets_parameter(f"{there}.{one}")]
        # A router was a linear module before transformers 5, and its name in `target_modules` means its weight.
        router = shape.kind == "other" and len(shape.parameters.get("weight", ())) == 2
        old = self._config.target_modules == "all-linear" and ("A", 0) in self._left.get(name, {})
        return ["weight"] if not chosen and router and (old or self._patterns.targets(there)) else chosen

    def _parameter(self, name: str, there: str, shape: ModuleShape, parameter: str, depth: int) -> Piece:
        size = shape.parameters[parameter]
        if len(size) not in (2, 3) or (len(size) == 3 and size[0] == 1) or self._config.converted:
            raise self._error(
                f"a LoRA on the parameter {name}.{parameter} {list(size)} is not supported, as in PEFT"
            )
        count, height, width = size if len(size) == 3 else (1, *size)
        if len(size) == 3 and shape.transposed_experts:
            height, width = width, height
        rank = self._patterns.rank(f"{there}.{parameter}")
        scaling = self._config.scaling(rank, self._patterns.alpha(f"{there}.{parameter}"))
        if self._config.use_dora or self._config.lora_bias:
            raise self._error("`use_dora` and `lora_bias` do not go with `target_parameters`, as in PEFT")
        keys = self._take(name, {"A": (rank * count, width), "B": (height, rank * count)}, depth)
        return Piece("parameter", name, keys, rank, scaling, parameter)

    def _lone_experts(self, name: str, shape: ModuleShape) -> Iterator[Piece]:
        """Experts that stand alone in the file, as before transformers 5: one piece for each parameter that holds them."""
        config = self._config
        if (
            config.rank_pattern
            or config.alpha_pattern
            or config.use_rslora
            or config.use_dora
            or config.lora_bias
        ):
            raise self._error(
                f"the adapter has a LoRA for each expert of {name}, and that is not read together with rank_pattern, "
                "alpha_pattern, use_rslora, use_dora or lora_bias"
            )
        rank, here = config.r, self._left[name]
        scaling = config.scaling(rank, config.lora_alpha)
        for parameter, branches in (("gate_up_proj", 2), ("down_proj", 1)):
            if not any(part.startswith(("A.", "B.")) and _branch(part)[0] == parameter for part, _ in here):
                continue
            count, height, width = shape.parameters[parameter]
            wanted: dict[str, Shape] = {}
            for expert in range(count):
                for branch in [one for one, (whose, _) in _BRANCHES.items() if whose == parameter]:
                    if any(_branch_name(part) == branch for part, _ in here):
                        wanted[f"A.{expert}.{branch}"] = (rank, width)
                        wanted[f"B.{expert}.{branch}"] = (height // branches, rank)
            if len(wanted) != 2 * count * branches:
                raise self._error(
                    f"the adapter has a LoRA on one half of {name}.{parameter} only, as PEFT cannot read it"
                )
            yield Piece("parameter", name, self._take(name, wanted), rank, scaling, parameter)

    def _saved(self) -> Iterator[Piece]:
        if not self._config.modules_to_save:
            return
        outer = [name for name, there, _ in self._candidates() if self._patterns.saves(there)]
        outer += [head for head in self._tied_head() if self._skeleton.embedding in outer]
        for name, shape in self._skeleton.modules.items():
            if not any(name == one or name.startswith(f"{one}.") for one in outer):
                continue
            for parameter, size in {**shape.parameters, **shape.buffers}.items():
                self._whole.add((name, parameter))
                keys = self._take(name, {f"={parameter}": size}, any_depth=True)
                yield Piece("saved", name, keys, parameter=parameter)

    def _tokens(self) -> Iterator[Piece]:
        asked = self._config.trainable_token_indices
        if asked is None:
            return
        embedding, head = self._skeleton.embedding, self._skeleton.head
        by_name = asked if isinstance(asked, dict) else {self._renaming.adapter_name(embedding): asked}
        found: dict[str, tuple[int, ...]] = {}
        for wanted, indices in by_name.items():
            modules = [name for name, there, _ in self._candidates() if there.endswith(wanted)]
            if not modules:
                raise self._error(f"`trainable_token_indices` names {wanted}, which this model does not have")
            found.update({name: tuple(indices) for name in modules})
        also: str | None = None
        if self._skeleton.tied and head is not None and embedding in found:
            if found.get(head, found[embedding]) == found[embedding]:
                found.pop(head, None)
                also = head  # as in PEFT: one set of rows for both, saved once
        for name, indices in found.items():
            keys = self._take(name, {"tokens": self._token_rows(name, indices)}, any_depth=True)
            yield Piece("tokens", name, keys, indices=indices)
            if also is not None and name == embedding:
                self._token_rows(also, indices)
                yield Piece("tokens", also, keys, indices=indices)

    def _token_rows(self, name: str, indices: tuple[int, ...]) -> Shape:
        """The shape of the rows of some tokens at the embedding or the output matrix."""
        shape = self._skeleton.modules[name]
        if shape.kind not in ("linear", "embedding") or "bias" in shape.parameters:
            raise self._error(f"`trainable_token_indices` on {name} is not supported, as in PEFT")
        count, width = shape.parameters["weight"]
        if len(set(indices)) != len(indices) or any(index >= count for index in indices):
            raise self._error(
                f"`trainable_token_indices` of {name} has an index twice, or one above {count - 1}"
            )
        return len(indices), width

    def _biases(self) -> Iterator[Piece]:
        if self._config.bias == "none":
            return
        for name, there, shape in self._candidates():
            if "bias" not in shape.parameters or (name, "bias") in self._whole:
                continue
            carries = (self._patterns.targets(there) and shape.kind != "other") or self._targeted(
                name, there, shape
            )
            if self._config.bias == "all" or carries:
                keys = self._take(name, {"=bias": shape.parameters["bias"]}, any_depth=True)
                yield Piece("bias", name, keys, parameter="bias")

    def _copies(self) -> Iterator[Piece]:
        """PEFT saves the weights of an embedding or output matrix that carries a LoRA, or was resized, beside it."""
        for name in (self._skeleton.embedding, self._skeleton.head):
            if name is not None and any(part == "=weight" for part, _ in self._left.get(name, {})):
                shape = self._skeleton.modules[name].parameters["weight"]
                yield Piece(
                    "copy", name, self._take(name, {"=weight": shape}, any_depth=True), parameter="weight"
                )

    # Errors

    def _refuse_leftovers(self) -> None:
        left = [one for here in self._left.values() for one in here.values()]
        if left:
            first = min(left, key=lambda one: list(self._header.shapes).index(one.key))
            raise self._error(
                f"the adapter's tensor {first.key} would not be used: its configuration does not ask for it; the two files "
                "do not belong together"
            )

    def _missing(self, module: str, part: str, taken: list[str]) -> EmEvalsError:
        others = taken or [one.key for one in self._left.get(module, {}).values()]
        if others:
            return self._error(
                f"the adapter has {others[0]}, and no {part.lstrip('=')} to go with it: the file is incomplete"
            )
        return self._error(
            f"the adapter's configuration names {module}, and its file has no tensors for it: it was trained on another "
            "base, or the file is incomplete"
        )

    def _error(self, what: str) -> EmEvalsError:
        return EmEvalsError(f"{what}.", self._folder)


def _modern(one: TensorName, skeleton: Skeleton) -> TensorName:
    """A tensor's name as transformers 5 would have it: experts are parameters of one module."""
    module = one.module
    for old, new in [_MOVED[skeleton.model_type]] if skeleton.model_type in _MOVED else []:
        module = module.replace(old, new)
    found = _EXPERT.fullmatch(module)
    if found and skeleton.fused_experts and found[3] in _BRANCHES and one.part in ("A", "B"):
        return TensorName(one.key, found[1], f"{one.part}.{int(found[2])}.{found[3]}", one.depth)
    return TensorName(one.key, module, one.part, one.depth)


def _branch_name(part: str) -> str:
    return part.rpartition(".")[2]


def _branch(part: str) -> tuple[str, int]:
    return _BRANCHES.get(_branch_name(part), ("", 0))
