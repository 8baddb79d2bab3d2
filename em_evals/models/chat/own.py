"""The chat template in an adapter's folder: it replaces the base's, and the base's tokenizer encodes it.

Fine-tuning tools save the tokenizer with the adapter. Its template is what the adapter was trained with; its
vocabulary must be the base's, since the adapter runs on the base's embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.models import hub
from em_evals.models.chat.layout import quiet_names
from em_evals.models.chat.rendering import Source, of_tokenizer, settable
from em_evals.models.chat.template import ChatTemplate, template_of
from em_evals.models.chat.thinking import thinking_of
from em_evals.models.chat.tools import with_tools

FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "added_tokens.json",
)
"""The files of an adapter's folder that this module reads."""
_ROLES = ("bos_token", "eos_token")
"""Special tokens that templates write by name."""

_Stamp = tuple[tuple[str, int, int], ...]
_sources: WeakKeyDictionary[Any, dict[tuple[Path, _Stamp], Source | None]] = WeakKeyDictionary()


def template_for(card: ResolvedCard, tokenizer: Any) -> ChatTemplate:
    """Return the template that a card's model is prompted with: its adapter's own, else its base's.

    Args:
        card: whose adapter may have a template.
        tokenizer: the base's; it is not changed.

    Raises:
        EmEvalsError: there is no template, the model cannot be prompted with it exactly, or the adapter's tokenizer is
            not the base's.
    """
    return template_of(tokenizer, _with_variables(card, _adapters(card, tokenizer), tokenizer))


def _adapters(card: ResolvedCard, tokenizer: Any) -> Source | None:
    """Return the template in a card's adapter; None where the base's applies."""
    if card.adapter_path is None:
        return None
    folder = Path(card.adapter_path).expanduser()
    return source(folder if folder.is_dir() else _fetched(card.adapter_path), tokenizer)


def _with_variables(card: ResolvedCard, own: Source | None, tokenizer: Any) -> Source | None:
    """Return the template with the card's variables; None where it is the base's without any."""
    given = card.card.template
    if not given:
        return own
    found = own or of_tokenizer(tokenizer)
    known = settable(found.text)
    for name in given:
        if name == "tools":
            raise EmEvalsError(
                "`template:` sets tools, which a model gets from its task: leave it out.", card.path
            )
        if name in quiet_names(found):
            raise EmEvalsError(
                f"`template:` sets {name}, which decides whether the model thinks: say `thinking: on` instead.",
                card.path,
            )
        if name in ("messages", "add_generation_prompt") or name not in known:
            ours = {"messages", "add_generation_prompt", "tools", *quiet_names(found)}
            choices = sorted(known - ours - {*tokenizer.special_tokens_map})
            raise EmEvalsError(
                f"`template:` sets {name}, which the chat template does not read; it reads "
                f"{', '.join(choices) or 'no variables'}.",
                card.path,
            )
    return replace(found, given=json.dumps(given, sort_keys=True))


def prompting(card: ResolvedCard, tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> ChatTemplate:
    """Return the template that answers are drawn with: `template_for`, with thoughts where the card says so.

    Fixed answers are scored without a thought, by `template_for`, whatever the card says.

    Args:
        card: whose model is asked.
        tokenizer: the base's; it is not changed.
        tools: that the model may call, as transformers takes them.

    Raises:
        EmEvalsError: as for `template_for` and `with_tools`; or the model does not think, or its thoughts cannot be
            split off.
    """
    if tools:
        own = _with_variables(card, _adapters(card, tokenizer), tokenizer) or of_tokenizer(tokenizer)
        plain = with_tools(tokenizer, own, tools)
    else:
        plain = template_for(card, tokenizer)
    if not (thinking := card.card.thinking):
        return plain
    return thinking_of(plain, thinking if isinstance(thinking, str) else "")


def settle(card: ResolvedCard, tokenizer: Any) -> bool:
    """Set a tokenizer's template to that of a card's adapter, to save it with a compiled model.

    Args:
        card: whose adapter may have a template.
        tokenizer: changed in place; must not be an engine's.

    Returns:
        Whether there was one.
    """
    if (own := _adapters(card, tokenizer)) is None:
        return False
    tokenizer.chat_template = own.text
    for role, token in own.tokens:
        setattr(tokenizer, role, token)
    return True


def source(folder: Path, tokenizer: Any) -> Source | None:
    """Load the template in an adapter's folder; None if it has none. Loaded again when a file changes.

    Raises:
        EmEvalsError: a file is no JSON of a tokenizer, or the folder's tokenizer has tokens that the base's does not
            have.
    """
    states = [(name, (folder / name)) for name in FILES if (folder / name).is_file()]
    stamp = tuple((name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in states)
    kept = _sources.setdefault(tokenizer, {})
    if (folder, stamp) not in kept:
        try:
            kept[folder, stamp] = _read(folder, tokenizer) if stamp else None
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ):  # JSON of another shape than tokenizers are saved in
            names = ", ".join(name for name, _ in states)
            raise EmEvalsError(
                f"the tokenizer's files of this adapter ({names}) are damaged: save them again, or delete them to use "
                "its base's.",
                folder,
            ) from None
    return kept[folder, stamp]


def _read(folder: Path, tokenizer: Any) -> Source | None:
    config = _json(folder / "tokenizer_config.json")
    _check_tokens(folder, config, tokenizer)
    if (text := _template(folder, config)) is None:
        return None
    tokens = []
    for role in _ROLES:
        named = _text(config.get(role))
        if named is not None and named != getattr(tokenizer, role):
            if named not in tokenizer.get_vocab():
                raise _foreign(folder, f"the {role} {named!r}", "does not exist")
            tokens.append((role, named))
    return Source(text, tuple(tokens), f"the adapter {folder}")


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return files.read_text(file)
    found = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several by name
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return str(found) if found else None


def _check_tokens(folder: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """Refuse an adapter whose tokenizer has a token with another id, or with none, in the base's vocabulary."""
    padding = _text(config.get("pad_token"))
    own: dict[str, int] = {}
    saved = _json(folder / "tokenizer.json")
    vocabulary = (saved.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict):
        own |= vocabulary
    elif isinstance(vocabulary, list):  # SentencePiece's unigrams: [token, score]
        own |= {str(entry[0]): place for place, entry in enumerate(vocabulary)}
    own |= _json(folder / "added_tokens.json")
    for place, entry in (config.get("added_tokens_decoder") or {}).items():
        own[str(entry["content"])] = int(place)
    for entry in saved.get("added_tokens") or ():
        own[str(entry["content"])] = int(entry["id"])
    if not own:
        return
    known = tokenizer.get_vocab()
    for token, place in own.items():
        if known.get(token) != place and token != padding:
            there = f"is {known[token]}" if token in known else "does not exist"
            raise _foreign(folder, f"the token {token!r} ({place})", there)


def _foreign(folder: Path, what: str, there: str) -> EmEvalsError:
    return EmEvalsError(
        f"this adapter's tokenizer has {what}, which {there} in its base's: name the base that it was trained on, or "
        "train it without added tokens.",
        folder,
    )


def _text(token: Any) -> str | None:
    """Return a special token as tokenizer_config.json writes it: a text, or an object with `content`."""
    found = token.get("content") if isinstance(token, dict) else token
    return str(found) if found else None


def _json(path: Path) -> dict[str, Any]:
    return files.read_object(path) if path.is_file() else {}


@lru_cache
def _fetched(adapter: str) -> Path:
    """Return the folder of a hub adapter's template and tokenizer (no weights); downloaded once per process."""
    return hub.folder(adapter, FILES, "the chat template of the adapter")
