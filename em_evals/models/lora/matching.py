"""Match an adapter's configuration with its file: every module has its tensors, every tensor a use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em_evals.models.lora import config as configs
from em_evals.models.lora import folders
from em_evals.models.lora import skeleton as skeletons
from em_evals.models.lora.config import AdapterConfig
from em_evals.models.lora.fit import Fit, Piece
from em_evals.models.lora.inventory import BRANCHES, Inventory
from em_evals.models.lora.patterns import Patterns
from em_evals.models.lora.skeleton import ModuleShape, Shape, Skeleton


def match(folder: Path, skeleton: Skeleton) -> Fit:
    """Match an adapter's tensors with a model's modules, one by one.

    Raises:
        EmEvalsError: an option that is refused, a tensor without a module, a module without its tensors, half of a
            pair, or a wrong shape; names the first.
    """
    config = configs.read(folder)
    return _Matching(config, Inventory(folder, skeleton), skeleton).fit(folder)


def check(adapter: str | Path, config: Any) -> Fit:
    """Match an adapter with the model that a base's configuration describes, before any weight is loaded.

    Args:
        adapter: its folder or hub id.
        config: the base's configuration, of transformers.

    Returns:
        What the adapter does at which module.

    Raises:
        EmEvalsError: as `match`.
    """
    return match(folders.locate(str(adapter)), skeletons.of_config(config))


class _Matching:
    """One builder for each kind of piece; each removes its tensors from the inventory."""

    def __init__(self, config: AdapterConfig, inventory: Inventory, skeleton: Skeleton) -> None:
        self._config, self._inventory, self._skeleton = config, inventory, skeleton
        self._adapter_name = inventory.renaming.adapter_name
        linear = [
            self._adapter_name(name)
            for name, shape in skeleton.modules.items()
            if shape.kind in ("linear", "transposed") and name != skeleton.head
        ]
        self._patterns = Patterns(config, linear)
        self._whole: set[tuple[str, str]] = set()
        """Parameters that are saved as a whole, by module and name."""

    def fit(self, folder: Path) -> Fit:
        """Run all builders; no tensor may be left."""
        # `_saved` comes before `_biases` and `_copies`: `=bias` and `=weight` of a module that is saved whole are its.
        builders = (
            self._saved,
            self._tokens,
            self._low_ranks,
            self._parameters,
            self._biases,
            self._copies,
        )
        pieces = [piece for build in builders for piece in build()]
        self._inventory.refuse_leftovers()
        if not pieces:
            raise self._inventory.error("this adapter changes nothing")
        order = {name: place for place, name in enumerate(self._skeleton.modules)}
        pieces.sort(key=lambda piece: order[piece.module])
        return Fit(folder, self._config, tuple(pieces), self._skeleton, self._inventory.renaming)

    def _candidates(self) -> Iterator[tuple[str, str, ModuleShape]]:
        """Yield (name here, name in the adapter, shape) of each module that the adapter may change.

        Towers of other modalities count only where the file has tensors for them: an adapter that was trained on the
        text model does not know them.
        """
        for name, shape in self._skeleton.modules.items():
            if self._skeleton.is_text(name) or self._inventory.has(name):
                yield name, self._adapter_name(name), shape

    # LoRA on modules

    def _low_ranks(self) -> Iterator[Piece]:
        for name, there, shape in self._candidates():
            if shape.kind == "other" or not self._carries(name, there):
                continue
            if shape.kind == "convolution" or not shape.takes_lora:
                if self._inventory.has(name):
                    raise self._inventory.error(
                        f"the adapter has a LoRA on {name}, whose class cannot have one: train without this module"
                    )
                continue
            self._refuse_conversion(name, shape)
            rank = self._patterns.rank(there)
            scaling = self._config.scaling(rank, self._patterns.alpha(there))
            keys = self._inventory.take(name, self._wanted(shape, rank), depth=0)
            self._inventory.drop(name, "velora")  # used in the backward pass only
            yield Piece("embedding" if shape.kind == "embedding" else "low_rank", name, keys, rank, scaling)

    def _carries(self, name: str, there: str) -> bool:
        """Check whether a module carries a LoRA; a tied output matrix does where PEFT trains it with the embedding."""
        embedding = self._adapter_name(self._skeleton.embedding)
        return self._patterns.targets(there) or (
            name in self._tied_head() and self._patterns.targets(embedding)
        )

    def _tied_head(self) -> list[str]:
        head, embedding = self._skeleton.head, self._skeleton.embedding
        # PEFT knows an embedding by this name alone: GPT-2's `wte` is not tied, whatever is asked for.
        known = embedding.rpartition(".")[2] == "embed_tokens"
        asked = self._config.ensure_weight_tying and self._skeleton.tied and known
        return [head] if head is not None and asked else []

    def _wanted(self, shape: ModuleShape, rank: int) -> dict[str, Shape]:
        """Return the parts of a LoRA on a module, with their shapes."""
        width, height = shape.width
        names = ("embedding_A", "embedding_B") if shape.kind == "embedding" else ("A", "B")
        wanted: dict[str, Shape] = {names[0]: (rank, width), names[1]: (height, rank)}
        if self._config.lora_bias:
            wanted["B.bias"] = (height,)
        if self._config.use_dora:
            wanted["magnitude"] = (height,)
        return wanted

    def _refuse_conversion(self, name: str, shape: ModuleShape) -> None:
        """Refuse what PEFT's own initializations fail on."""
        init = self._config.converted
        if init == "olora" and shape.kind == "transposed":
            raise self._inventory.error(f"`init_lora_weights: {init}` is not supported on {name}, as in PEFT")
        copied = any("=weight" in self._inventory.parts(one) for one in (name, self._skeleton.embedding))
        if init and name == self._skeleton.head and (copied or self._skeleton.tied):
            raise self._inventory.error(
                f"`init_lora_weights: {init}` on {name} takes its start out of the base's output matrix itself, which "
                f"the file or a tied embedding then shares: {configs.CONVERT}"
            )
        if self._config.lora_bias and shape.kind == "embedding":
            raise self._inventory.error(f"`lora_bias` is not supported on the embedding {name}, as in PEFT")

    # LoRA on parameters

    def _parameters(self) -> Iterator[Piece]:
        for name, there, shape in self._candidates():
            if any(part.count(".") == 2 for part in self._inventory.parts(name)):
                yield from self._lone_experts(name, shape)
                continue
            chosen = self._targeted(name, there, shape)
            for place, parameter in enumerate(chosen):
                # PEFT nests one wrapper per parameter, the first one innermost.
                yield self._parameter(name, there, shape, parameter, len(chosen) - 1 - place)

    def _targeted(self, name: str, there: str, shape: ModuleShape) -> list[str]:
        """Return the parameters of a module that carry a LoRA."""
        chosen = [one for one in shape.parameters if self._patterns.targets_parameter(f"{there}.{one}")]
        # A router was a linear module before transformers 5, and its name in `target_modules` means its weight.
        router = shape.kind == "other" and len(shape.parameters.get("weight", ())) == 2
        old = self._config.target_modules == "all-linear" and "A" in self._inventory.parts(name)
        return ["weight"] if not chosen and router and (old or self._patterns.targets(there)) else chosen

    def _parameter(self, name: str, there: str, shape: ModuleShape, parameter: str, depth: int) -> Piece:
        size = shape.parameters[parameter]
        if self._config.converted:
            raise self._inventory.error(
                f"`init_lora_weights: {self._config.converted}` on the parameter {name}.{parameter} is not supported: "
                f"{configs.CONVERT}"
            )
        if len(size) not in (2, 3) or (len(size) == 3 and size[0] == 1):
            raise self._inventory.error(
                f"a LoRA on the parameter {name}.{parameter} {list(size)} is not supported, as in PEFT"
            )
        if shape.kind == "convolution":
            raise self._inventory.error(
                f"a LoRA on the parameter {name}.{parameter} is not supported: mixers read a convolution's weight past "
                "its call, where PEFT's LoRA does not act"
            )
        if (name, parameter) in self._whole:
            raise self._inventory.error(
                f"the adapter saves {name} as a whole and has a LoRA on its {parameter}, which PEFT cannot load"
            )
        if self._config.use_dora or self._config.lora_bias:
            raise self._inventory.error(
                "`use_dora` and `lora_bias` do not go with `target_parameters`, as in PEFT"
            )
        # PEFT stores the matrices of all experts in one: the rank's dimension is `count` times as long.
        count, height, width = size if len(size) == 3 else (1, *size)
        if len(size) == 3 and shape.transposed_experts:
            height, width = width, height
        rank = self._patterns.rank(f"{there}.{parameter}")
        scaling = self._config.scaling(rank, self._patterns.alpha(f"{there}.{parameter}"))
        wanted = {"A": (rank * count, width), "B": (height, rank * count)}
        return Piece("parameter", name, self._inventory.take(name, wanted, depth), rank, scaling, parameter)

    def _lone_experts(self, name: str, shape: ModuleShape) -> Iterator[Piece]:
        """Yield a piece for each parameter of experts that are separate in the file, as before transformers 5."""
        config = self._config
        if (
            config.rank_pattern
            or config.alpha_pattern
            or config.use_rslora
            or config.use_dora
            or config.lora_bias
        ):
            raise self._inventory.error(
                f"the adapter has a LoRA for each expert of {name}, which is not read together with rank_pattern, "
                "alpha_pattern, use_rslora, use_dora or lora_bias"
            )
        there = {part.rpartition(".")[2] for part in self._inventory.parts(name)}
        scaling = config.scaling(config.r, config.lora_alpha)
        for parameter, halves in (("gate_up_proj", 2), ("down_proj", 1)):
            branches = [one for one, (whose, _) in BRANCHES.items() if whose == parameter and one in there]
            if not branches:
                continue
            if len(branches) != halves:
                raise self._inventory.error(
                    f"the adapter has a LoRA on one half of {name}.{parameter} only, which PEFT cannot load"
                )
            # Of a fused gate_up_proj each branch writes its half of the output rows.
            count, height, width = shape.parameters[parameter]
            wanted: dict[str, Shape] = {}
            for expert in range(count):
                for branch in branches:
                    wanted[f"A.{expert}.{branch}"] = (config.r, width)
                    wanted[f"B.{expert}.{branch}"] = (height // halves, config.r)
            yield Piece(
                "parameter", name, self._inventory.take(name, wanted, depth=0), config.r, scaling, parameter
            )

    # What is saved as a whole

    def _saved(self) -> Iterator[Piece]:
        if not self._config.modules_to_save:
            return
        outer = [name for name, there, _ in self._candidates() if self._patterns.saves(there)]
        outer += [head for head in self._tied_head() if self._skeleton.embedding in outer]
        for one in outer:
            if holder := next((other for other in outer if one.startswith(f"{other}.")), None):
                raise self._inventory.error(
                    f"`modules_to_save` names {holder} and {one} inside it, which PEFT cannot load"
                )
        for name, shape in self._skeleton.modules.items():
            if not any(name == one or name.startswith(f"{one}.") for one in outer):
                continue
            for parameter, size in {**shape.parameters, **shape.buffers}.items():
                self._whole.add((name, parameter))
                keys = self._inventory.take(name, {f"={parameter}": size})
                yield Piece("saved", name, keys, parameter=parameter)

    def _tokens(self) -> Iterator[Piece]:
        found = self._token_indices()
        embedding, head = self._skeleton.embedding, self._skeleton.head
        shared = self._skeleton.tied and embedding in found and head is not None
        if shared and found.get(str(head), found[embedding]) == found[embedding]:
            found.pop(str(head), None)  # as in PEFT: one set of rows for both, saved once
        for name, indices in found.items():
            keys = self._inventory.take(name, {"tokens": self._token_rows(name, indices)})
            yield Piece("tokens", name, keys, indices=indices)
            if shared and name == embedding and head not in found:
                self._token_rows(str(head), indices)
                yield Piece("tokens", str(head), keys, indices=indices)

    def _token_indices(self) -> dict[str, tuple[int, ...]]:
        """Return the tokens with rows of their own, by module name."""
        asked = self._config.trainable_token_indices
        if asked is None:
            return {}
        by_name = asked if isinstance(asked, dict) else {self._adapter_name(self._skeleton.embedding): asked}
        found: dict[str, tuple[int, ...]] = {}
        for wanted, indices in by_name.items():
            modules = [name for name, there, _ in self._candidates() if there.endswith(wanted)]
            if not modules:
                raise self._inventory.error(
                    f"`trainable_token_indices` names {wanted}, which this model does not have"
                )
            found.update({name: tuple(indices) for name in modules})
        return found

    def _token_rows(self, name: str, indices: tuple[int, ...]) -> Shape:
        """Return the shape of some tokens' rows in the embedding or the output matrix."""
        shape = self._skeleton.modules[name]
        if shape.kind not in ("linear", "embedding") or "bias" in shape.parameters:
            raise self._inventory.error(f"`trainable_token_indices` on {name} is not supported, as in PEFT")
        count, width = shape.parameters["weight"]
        if len(set(indices)) != len(indices) or any(index >= count for index in indices):
            raise self._inventory.error(
                f"`trainable_token_indices` of {name} has an index twice, or one above {count - 1}"
            )
        return len(indices), width

    def _biases(self) -> Iterator[Piece]:
        if self._config.bias == "none":
            return
        for name, there, shape in self._candidates():
            if "bias" not in shape.parameters or (name, "bias") in self._whole:
                continue
            carries = shape.kind != "other" and self._carries(name, there)
            if self._config.bias == "all" or carries or self._targeted(name, there, shape):
                keys = self._inventory.take(name, {"=bias": shape.parameters["bias"]})
                yield Piece("bias", name, keys, parameter="bias")

    def _copies(self) -> Iterator[Piece]:
        """Yield copies: PEFT saves the weights of an embedding or output matrix with a LoRA, or resized, as well."""
        for name in (self._skeleton.embedding, self._skeleton.head):
            if name is not None and "=weight" in self._inventory.parts(name):
                keys = self._inventory.take(
                    name, {"=weight": self._skeleton.modules[name].parameters["weight"]}
                )
                yield Piece("copy", name, keys, parameter="weight")
