"""Parse the names of the tensors in an adapter's file: which module, and which part of an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from em_evals.models.lora.skeleton import Skeleton

_PREFIX = "base_model.model."
_ADAPTER = r"(?:\.[^.]+)?"
_PARTS = {
    "A": re.compile(rf"(.+)\.lora_A{_ADAPTER}\.weight"),
    "B": re.compile(rf"(.+)\.lora_B{_ADAPTER}\.weight"),
    "B.bias": re.compile(rf"(.+)\.lora_B{_ADAPTER}\.bias"),
    "embedding_A": re.compile(rf"(.+)\.lora_embedding_A{_ADAPTER}"),
    "embedding_B": re.compile(rf"(.+)\.lora_embedding_B{_ADAPTER}"),
    "magnitude": re.compile(rf"(.+)\.lora_magnitude_vector{_ADAPTER}?(?:\.weight)?"),
    "tokens": re.compile(rf"(.+)\.token_adapter\.trainable_tokens_delta{_ADAPTER}"),
    "velora": re.compile(rf"(.+)\.lora_velora_embed{_ADAPTER}"),
}
_WRAPPER = ".base_layer"
_SAVED = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")


@dataclass(frozen=True)
class TensorName:
    """One tensor.

    Attributes:
        key: its name in the file.
        module: the module's name in the adapter's own model.
        part: A, B, B.bias, embedding_A, embedding_B, magnitude, tokens, velora, or `=NAME` for a whole parameter.
        depth: number of PEFT's wrappers around the module or parameter.
    """

    key: str
    module: str
    part: str
    depth: int


def parse(key: str) -> TensorName:
    """Parse a tensor's name."""
    name = key.removeprefix(_PREFIX).replace("_orig_mod.", "")
    for part, pattern in _PARTS.items():
        if found := pattern.fullmatch(name):
            return _unwrapped(key, found[1], part)
    module, _, parameter = _SAVED.sub("", name).rpartition(".")
    return _unwrapped(key, module, f"={parameter}")


def _unwrapped(key: str, module: str, part: str) -> TensorName:
    depth = 0
    while module.endswith(_WRAPPER):
        module, depth = module.removesuffix(_WRAPPER), depth + 1
    return TensorName(key, module, part, depth)


@dataclass(frozen=True)
class Renaming:
    """Maps module names between the adapter's model and this one: equal except for one prefix.

    Attributes:
        old: the text decoder's prefix in the adapter's names, with its dot; "" for none.
        new: the same in this model's.
        head: the output matrix's name in the adapter's names, and in this model's.
    """

    old: str = ""
    new: str = ""
    head: tuple[str, str] = ("", "")

    def model_name(self, name: str) -> str:
        """Return this model's name of a module of the adapter's."""
        if name == self.head[0]:
            return self.head[1]
        return self.new + name.removeprefix(self.old) if self and name.startswith(self.old) else name

    def adapter_name(self, name: str) -> str:
        """Return the adapter's name of a module of this model's."""
        if name == self.head[1]:
            return self.head[0]
        return self.old + name.removeprefix(self.new) if self and name.startswith(self.new) else name

    def __bool__(self) -> bool:
        return self.old != self.new


def renaming(modules: Iterable[str], skeleton: Skeleton) -> Renaming:
    """Find the one change of prefix that gives every module of an adapter a place in this model.

    A composite model nests its text decoder one name deeper than the text model does, and libraries save either. The
    part from the list of blocks on must be equal: a block's number is never changed.

    Args:
        modules: the adapter's names of the modules that it changes.
        skeleton: this model's.

    Returns:
        The renaming; one that changes nothing where all names exist, or where no single change is enough.
    """
    missing = [name for name in modules if name not in skeleton.modules]
    if not missing:
        return Renaming()
    new = f"{skeleton.decoder}." if skeleton.decoder else ""
    head = next((name for name in missing if skeleton.head and _last(name) == _last(skeleton.head)), "")
    # A name without a place whatever the prefix is left for the error about it.
    found = {_stem(name, new, skeleton.modules) for name in missing if name != head} - {None}
    # Two different prefixes would need two renamings: report the names as they are.
    if len(found) > 1:
        return Renaming()
    return Renaming(next(iter(found), new) or "", new, (head, skeleton.head or "") if head else ("", ""))


def _stem(name: str, new: str, modules: Mapping[str, object]) -> str | None:
    """Return the prefix of a module's name before the part that this model has behind `new`; None if there is none."""
    # Move segments from `rest` to `before`, but never past a block's number.
    rest, before = name, ""
    while rest:
        if new + rest in modules:
            return before
        part, dot, rest = rest.partition(".")
        if part.isdecimal():
            return None
        before += part + dot
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]
