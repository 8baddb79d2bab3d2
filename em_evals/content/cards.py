"""Model cards: the YAML that defines a model under test, and how `local/NAME` finds one.

A card names a base, an optional LoRA adapter, how that adapter is trained, and how answers are drawn. This is
the only place where cards are validated; nothing here loads a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from em_evals.content import adapter_folders, card_fields, directions, documents, identity, validation_errors
from em_evals.content.card_schema import EngineOptions, GenerationOptions, ModelCard
from em_evals.content.intervention import Intervention, Named
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError, nearest
from em_evals.files import digest, is_file, is_folder
from em_evals.parsing import collector_paused, step_of

__all__ = [
    "EngineOptions",
    "GenerationOptions",
    "ModelCard",
    "ResolvedCard",
    "control_for",
    "list_cards",
    "nested",
    "read_card",
    "resolve",
]


@dataclass(frozen=True)
class ResolvedCard:
    """A card with its name, its file, and its adapter found."""

    name: str
    card: ModelCard
    path: Path | None
    adapter_path: str | None
    """The adapter's folder, or its hub id (`ORG/NAME`, or `ORG/NAME@REVISION`); None for a bare base."""
    interventions: tuple[Intervention, ...] = ()
    """The card's, with directions as absolute paths or in memory."""

    @property
    def digest(self) -> str:
        """Identifies the model behind the name by contents: base, adapter, interventions, and how it is asked.

        A retrained adapter has another digest, so caches never answer with its predecessor's draws.
        """
        # Interventions count by what they do, not by what the card calls their directions.
        plain = self.card.model_copy(update={"interventions": ()})
        fields = card_fields.of_answers(plain)
        parts = [fields, identity.base_digest(self.card.base, self.card.revision)]
        if self.adapter_path is not None:
            folder = Path(self.adapter_path)
            own = identity.adapter_digest(folder) if folder.is_dir() else self._hub_adapter()
            parts.append(own)
        parts += [one.digest for one in self.interventions]
        return digest(*parts)

    def intervened(self, *more: Intervention) -> ResolvedCard:
        """Return the same model with more interventions after its own; their directions are found and checked.

        Raises:
            EmEvalsError: there is no such direction, it was made for another base, or there is no adapter to scale.
        """
        own = self.card.interventions + more
        found = _interventions(more, self.card, self.adapter_path, None)
        card = self.card.model_copy(update={"interventions": own})
        return replace(self, card=card, interventions=self.interventions + found)

    def asked(self, **fields: Any) -> ResolvedCard:
        """Return the same model asked in another way: `thinking`, `template` or `generation` instead of the card's.

        Raises:
            EmEvalsError: a value is wrong.
        """
        own = self.card.model_dump(include=set(fields))
        wanted = {n: own[n] | value if isinstance(value, Mapping) else value for n, value in fields.items()}
        try:
            new = type(self.card).model_validate(wanted | {"base": self.card.base})
        except ValidationError as error:
            key, sentence = validation_errors.explain(error, ModelCard)
            raise EmEvalsError(f"{'.'.join(map(str, key))}: {sentence}") from None
        return replace(self, card=self.card.model_copy(update={name: getattr(new, name) for name in fields}))

    def _hub_adapter(self) -> str:
        """Return a hub adapter's name with the commit on this machine; its files where they have been fetched."""
        name, _, revision = str(self.adapter_path).partition("@")
        folder = identity.fetched(name, identity.ADAPTER_FILES[0], revision or None)
        return identity.adapter_digest(folder) if folder is not None else str(self.adapter_path)


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> ResolvedCard:
    """Find what `local/NAME` means: a card, a PEFT folder, a model folder, `pypi:…` or a hub id.

    Args:
        name: what follows `local/`. `NAME@40` is the model at step 40 of its training.
        overrides: card fields that win over the file's (Inspect's `-M`); an engine option may stand alone.

    Raises:
        EmEvalsError: nothing answers to the name, the card is wrong, or its adapter is missing or was made
            for another base.
    """
    plain, step = _step(name)
    data, path = _card_data(plain)
    if path is None and "base" not in {**data, **(overrides or {})}:
        raise EmEvalsError(
            "this adapter names no base (`base_model_name_or_path`): say -M base=…, or write a card.",
            Path(plain).expanduser() / "adapter_config.json",
        )
    card = _validated(data, path, overrides or {})
    found = _find_adapter(card, plain, path)
    if step is not None:
        found = adapter_folders.checkpoint(found, plain, step)
    if found is not None and (Path(found) / "config.json").is_file():
        # A full finetune: the trained folder is the base.
        card, found = card.model_copy(update={"base": found, "revision": None}), None
    return ResolvedCard(name, card, path, found, _interventions(card.interventions, card, found, path))


@collector_paused()
def list_cards() -> dict[str, ResolvedCard | EmEvalsError]:
    """Every card by name; a broken one is listed with its error. Adapters need not be trained yet."""
    found: dict[str, ResolvedCard | EmEvalsError] = {}
    shelf = _Shelf()
    for name, path in shelf.names.items():
        try:
            card = _validated(_card_data(name, shelf)[0], path, shelf=shelf)
            found[name] = ResolvedCard(name, card, path, adapter_folders.find(card.adapter, path))
        except EmEvalsError as error:
            found[name] = error
    return found


def control_for(name: str) -> str | None:
    """Return the trained card that says `control_of: NAME`; None where there is none."""
    for other, found in list_cards().items():
        if isinstance(found, ResolvedCard) and found.card.control_of == name and found.adapter_path:
            return other
    return None


def read_card(name: str, overrides: Mapping[str, Any] | None = None) -> tuple[ModelCard, Path]:
    """Return a card for training: validated, its adapter not looked for."""
    path = documents.find("adapters", name)
    return _validated(_card_data(name)[0], path, overrides or {}), path


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Let `-M dtype=float32` stand for `-M engine={dtype: float32}`, as users of other providers expect."""
    engine = {key: value for key, value in overrides.items() if key in EngineOptions.model_fields}
    rest = {key: value for key, value in overrides.items() if key not in engine}
    return _merge(rest, {"engine": engine}) if engine else rest


def _validated(
    data: dict[str, Any],
    path: Path | None,
    overrides: Mapping[str, Any] | None = None,
    shelf: _Shelf | None = None,
) -> ModelCard:
    overrides = overrides or {}
    try:
        return ModelCard.model_validate(_merge(data, nested(overrides)))
    except ValidationError as error:
        key, sentence = validation_errors.explain(error, ModelCard)
        if path is not None and not _overridden(key, overrides):
            raise _author(path, key, shelf or _Shelf()).error(sentence, key) from None
        if len(key) == 1 and "unknown key" in sentence:  # an engine option may stand alone
            known = {*ModelCard.model_fields, *EngineOptions.model_fields}
            parts = {"generation": GenerationOptions.model_fields, "train": AdapterRecipe.model_fields}
            part = next((name for name, fields in parts.items() if key[0] in fields), None)
            hint = f"say {part}.{key[0]}=…." if part else nearest(str(key[0]), known)
            sentence = f"unknown key '{key[0]}'; {hint}"
        raise EmEvalsError(f"-M {'.'.join(map(str, key))}: {sentence}") from None


def _author(path: Path, key: documents.KeyPath, shelf: _Shelf) -> documents.Document:
    """Return the card, or the one it extends, in which a wrong value stands."""
    document = shelf.parsed(path)
    while key and key not in document.lines:
        parent = document.data.get("control_of") or document.data.get("extends")
        if parent is None:
            return shelf.parsed(path)
        document = shelf.load(str(parent))
    return document


class _Shelf:
    """The cards on this machine: the names are listed once, and each file is parsed once."""

    def __init__(self) -> None:
        self._parsed: dict[Path, documents.Document] = {}

    @cached_property
    def names(self) -> dict[str, Path]:
        """Every card's file by name."""
        return documents.names("adapters")

    def load(self, name: str) -> documents.Document:
        """Return a card's document, by name or path."""
        return self.parsed(self.names.get(name) or documents.find("adapters", name))

    def parsed(self, path: Path) -> documents.Document:
        """Return the document in a file."""
        if path not in self._parsed:
            self._parsed[path] = documents.load(path)
        return self._parsed[path]


def _card_data(
    name: str, shelf: _Shelf | None = None, seen: tuple[str, ...] = ()
) -> tuple[dict[str, Any], Path | None]:
    """Return the fields behind a name, `extends` followed, and the card's file if it is one."""
    shelf = shelf or _Shelf()
    if name.endswith((".yaml", ".yml")) or name in shelf.names:
        document = shelf.load(name)
        path = document.path
        if not isinstance(document.data, dict):
            raise document.error("a card is a list of `key: value` lines; `base:` is the one it needs.")
        parent = document.data.get("control_of") or document.data.get("extends")
        if parent is None:
            return document.data, path
        if parent in seen:
            raise document.error(f"the cards extend each other in a circle ({' -> '.join([*seen, parent])}).")
        if str(parent) not in shelf.names and not str(parent).endswith((".yaml", ".yml")):
            hint = nearest(str(parent), shelf.names)
            key = "control_of" if "control_of" in document.data else "extends"
            raise document.error(f"there is no card '{parent}' to extend; {hint}", (key,))
        above = _card_data(str(parent), shelf, (*seen, name))[0]
        if "control_of" in document.data:
            above = _merge(above, {"train": {"control": "matched"}})
        if "control_of" in document.data or ("train" in document.data and above.get("adapter")):
            # Never the other card's own adapter: training this one would overwrite it.
            above = _merge(above, {"adapter": path.stem, "adapter_revision": None})
        return _merge(above, document.data), path
    folder = Path(name).expanduser()
    if is_file(folder / "adapter_config.json"):
        base = adapter_folders.base_of(folder)
        return {"adapter": str(folder.resolve())} | ({"base": base} if base else {}), None
    if is_file(folder / "config.json"):
        return {"base": str(folder.resolve())}, None
    if name.startswith("pypi:") or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return _fetched_adapter(name) or {"base": name}, None
    if is_folder(folder):
        raise EmEvalsError(f"{folder} holds neither adapter_config.json (PEFT) nor config.json (a model).")
    hint = nearest(name[:100], shelf.names)
    hint = f"{hint} `" if hint.startswith("did you mean") else "`"
    raise EmEvalsError(
        f"there is no card, folder or hub id '{name[:100]}'; {hint}em-evals models list` shows all cards."
    )


def _fetched_adapter(name: str) -> dict[str, Any] | None:
    """Return the fields of a hub id that is a fetched adapter; to find out about another takes the network."""
    folder = identity.fetched(name, "adapter_config.json", None)
    if folder is None or (folder / "config.json").is_file():
        return None
    base = adapter_folders.base_of(folder)
    return {"adapter": name} | ({"base": base} if base else {})


def _find_adapter(card: ModelCard, name: str, path: Path | None) -> str | None:
    if card.adapter is None:
        return None
    found = adapter_folders.find(card.adapter, path)
    if found is None:
        looked = " and ".join(
            dict.fromkeys(str(place) for place in adapter_folders.places(card.adapter, path))
        )
        todo = f"train it with `em-evals train {name}`" if card.train else "put a PEFT adapter there"
        raise EmEvalsError(
            f"the adapter '{card.adapter}' of {name} is missing (looked in {looked}): {todo}.", path
        )
    if card.adapter_revision is not None:
        if Path(found).is_dir():
            raise EmEvalsError(
                f"`adapter_revision` is for adapters on the hub, and {name}'s is the folder {found}: leave it out.",
                path,
            )
        return f"{found}@{card.adapter_revision}"
    config = Path(found) / "adapter_config.json"
    if config.is_file() and not adapter_folders.may_be_base(
        base := adapter_folders.base_of(Path(found)), card.base, card.adapter_base
    ):
        raise EmEvalsError(
            f"the adapter was made for the base '{base}', the card says '{card.base}': correct `base:`, or say "
            f"`adapter_base: {base}` (`-M adapter_base={base}`) if that is the same model under another name.",
            config,
        )
    return found


def _interventions(
    interventions: Sequence[Intervention], card: ModelCard, adapter: str | None, path: Path | None
) -> tuple[Intervention, ...]:
    """Interventions on a card's model with their directions found; refused if made for another base."""
    found = []
    for number, one in enumerate(interventions):
        try:
            for direction in one.directions:
                directions.check_base(direction, card.base, card.revision)
                directions.check_known(direction, one.relative, one.reference)
            if not one.directions and adapter is None:
                raise EmEvalsError("`scale_adapter` needs an adapter, and this card has none.")
            one = one.along([_located(direction) for direction in one.directions])
        except EmEvalsError as error:
            if path is None or error.path is not None:
                raise
            key = ("interventions", number)
            raise _author(path, key, _Shelf()).error(error.what, key) from None
        found.append(one)
    return tuple(found)


def _located(direction: Named) -> Named:
    """Return a direction's absolute path; what is in memory stays there."""
    return str(directions.find(direction).resolve()) if isinstance(direction, str) else direction


def _step(name: str) -> tuple[str, int | None]:
    """`NAME@40` as (NAME, 40)."""
    plain, at, step = name.rpartition("@")
    number = step_of(step)
    return (plain, number) if at and plain and number is not None else (name, None)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _overridden(key: documents.KeyPath, overrides: Mapping[str, Any]) -> bool:
    return bool(key) and (key[0] in overrides or key[-1] in overrides)
